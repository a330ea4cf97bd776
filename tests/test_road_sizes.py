"""A whole build for several input sizes: every target says how it takes them, and each size is proved."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from edgekiln.bundle.unpack import opened
from edgekiln.compile.targets import TARGETS
from edgekiln.engines import open_engine
from edgekiln.job import Job, ModelOrder, SearchOrder
from edgekiln.model.preprocess import apply, open_image
from edgekiln.records import Build, Preprocess, Proof
from edgekiln.road import build
from edgekiln.runtime.once import run
from edgekiln.verification import verify
from fakes import sized

SIZES = ((32, 32), (48, 64), (96, 96))
TABLE = {
    **TARGETS,
    # As a target of static shapes would be; its converter and engine are the real ones.
    "onnxruntime": dataclasses.replace(TARGETS["onnxruntime"], flexible=False, proof_samples=2),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("sizes")
    onnx.save(sized.graph(), where / "m.onnx")
    sized.photographs(where / "data", 12)
    sized.photographs(where / "eval", 10, labelled=True)
    return where


@pytest.fixture(scope="module")
def job(folder: Path) -> Job:
    return Job(
        model=ModelOrder(source="m.onnx", sizes=(32, "48x64", 96), task="classification"),
        devices=("host", "jetson-orin-nano-8gb"),
        data="data",
        eval="eval",
        out="out",
        preprocess=Preprocess(height=32, width=32, fit="crop"),
        search=SearchOrder(threads=1, samples=5, recipes=("fp32", "int8-static-minmax")),
        base=str(folder),
    )


@pytest.fixture(scope="module")
def found(job: Job, folder: Path) -> Build:
    return build(job, cache=folder / "cache", targets=TABLE)


def proof(found: Build, name: str) -> Proof:
    return next(p for p in found.proofs if p.artifact.id == name)


def test_every_artifact_takes_every_size_flexibly_or_in_a_file_each_and_says_which(found: Build) -> None:
    assert {p.artifact.target for p in found.proofs} == {"onnxruntime", "openvino", "tensorrt"}
    assert not [f for f in found.failures if f.kind == "failed"]
    for p in found.proofs:
        assert [(r.height, r.width) for r in p.artifact.resolutions] == list(SIZES)
        (said,) = (c.detail for c in p.artifact.checks if c.name == "resolutions")
        flexible = p.artifact.target != "onnxruntime"
        assert p.artifact.flexible == flexible
        assert said.startswith("flexible: one file" if flexible else "one file per size")
        names = {r.entry for r in p.artifact.resolutions}
        assert len(names) == (1 if flexible else 3)


def test_parity_and_accuracy_are_known_at_every_size(found: Build) -> None:
    for p in found.proofs:
        for what in ("sqnr_db", "agreement", "top1", "accuracy_drop"):
            for at in ("", "@48x64", "@96x96"):
                figure = p.get(what + at)
                assert figure is not None, (p.artifact.id, what + at)
                assert figure.value is not None
                assert figure.how == ("measured" if p.device == "host" else "emulated")
        exact = p.artifact.recipe == "fp32"
        worst = min(p.value(f"sqnr_db{at}") or 0 for at in ("", "@48x64", "@96x96"))
        assert (worst > 90) == exact


def test_the_figures_at_a_size_are_those_of_the_files_in_the_bundle(found: Build, folder: Path) -> None:
    """Agreement and error at 48x64, worked out again from the bundle and the source model."""
    import onnxruntime

    host = next(c for c in found.decision.choices if c.device == "host")
    native = onnxruntime.InferenceSession(folder / "m.onnx")
    with opened(folder / "out" / str(host.bundle)) as held:
        artifact = held.manifest.artifact
        assert [(r.height, r.width) for r in artifact.resolutions] == list(SIZES)
        runner = open_engine(artifact.engine, artifact, held.model_folder, 1, (48, 64))
        spec = Preprocess(height=48, width=64, fit="crop")
        assert found.holdout is not None
        signal = error = 0.0
        for sample in found.holdout.samples:
            x = {"x": apply(spec, open_image(folder / "data" / sample.path))}
            want, got = native.run(None, x)[0], runner(x)["y"]
            signal, error = signal + float((want**2).sum()), error + float(((got - want) ** 2).sum())
    figure = proof(found, artifact.id).get("sqnr_db@48x64")
    assert figure is not None
    bounded = "samples_bounded" in figure.environment
    if not bounded:
        assert figure.value == pytest.approx(min(200.0, 10 * np.log10(signal / max(error, 1e-30))), abs=0.5)


def test_a_target_whose_proof_engine_is_slow_is_shown_a_part_of_the_data(found: Build) -> None:
    p = proof(found, "host.onnxruntime.fp32")
    for what in ("sqnr_db", "top1", "sqnr_db@96x96", "accuracy_drop@96x96"):
        figure = p.get(what)
        assert figure is not None
        assert figure.n == 2
        assert "2 of 10 labelled samples" in str(figure.environment["samples_bounded"])
    whole = proof(found, "host.openvino.fp32").get("top1@96x96")
    assert whole is not None
    assert whole.n == 10


def test_a_bundle_of_one_file_per_size_runs_and_verifies_at_its_base(job: Job, folder: Path) -> None:
    search = msgspec.structs.replace(job.search, targets=("onnxruntime",), recipes=("fp32",))
    one = msgspec.structs.replace(job, search=search, devices=("host",), out="one")
    built = build(one, cache=folder / "cache", targets=TABLE)
    bundle = folder / "one" / str(built.decision.choices[0].bundle)
    with zipfile.ZipFile(bundle) as archive:
        names = {n for n in archive.namelist() if n.startswith("model/")}
    assert names == {f"model/{h}x{w}/model.onnx" for h, w in SIZES}
    assert verify(bundle).golden is True
    predictions, rejected = run(bundle, [folder / "data" / "00.png"], 1)
    assert (len(predictions), len(rejected)) == (1, 0)


def test_a_second_build_redoes_nothing_and_gives_the_same_answer(
    job: Job, found: Build, folder: Path
) -> None:
    before = {p: p.stat().st_mtime_ns for p in (folder / "cache").glob("*/*")}
    assert build(job, cache=folder / "cache", targets=TABLE) == found
    assert {p: p.stat().st_mtime_ns for p in (folder / "cache").glob("*/*")} == before


def test_the_graph_passes_tell_that_height_and_width_stay_open(found: Build) -> None:
    assert found.graph_passes[0].note == "x: 1x3xhxw → 1x3xheightxwidth"
