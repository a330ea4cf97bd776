"""One bundle with an artifact of every engine that runs on this machine: a session opens each and agrees."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgekiln.bundle.pack import pack
from edgekiln.compile.targets import executorch, litert
from edgekiln.engines import open_engine
from edgekiln.errors import BadInput
from edgekiln.files import entries
from edgekiln.records import Artifact, Choice, Proof
from edgekiln.runtime.session import open_session
from edgekiln.runtime.vocabulary import Event
from fakes.networks import picture, quantise
from fakes.variants import PC, artifact, model_of, order

HTP = {"backend_type": "htp", "soc_model": 57, "htp_arch": 75, "offload_graph_io_quantization": 0}


@pytest.fixture(scope="module")
def made(net: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Artifact, Path]]:
    """The classifier for ONNX Runtime, LiteRT, ExecuTorch and the NPU's simulator."""
    root = tmp_path_factory.mktemp("engines")
    found = []
    for name, target in (("litert", litert), ("executorch", executorch)):
        converted = target.convert(order(root / name / "variant", net, "fp32", PC), root / name / "out")
        found.append((converted, root / name / "out"))
    for name in ("onnxruntime", "qnn"):
        folder = root / name
        folder.mkdir()
        if name == "qnn":
            quantise(net, folder / "model.onnx", symmetric=False)
        else:
            shutil.copy(net, folder / "model.onnx")
        options = HTP if name == "qnn" else {}
        one = artifact("model.onnx", name, **options)
        found.append((msgspec.structs.replace(one, files=entries(folder)), folder))
    return [(msgspec.structs.replace(a, id=f"{a.engine}.{a.recipe}"), folder) for a, folder in found]


@pytest.fixture(scope="module")
def bundle(net: Path, made: list[tuple[Artifact, Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "every.edgekiln"
    (first, where), *others = [(Proof(device="host", artifact=a, evidence=()), folder) for a, folder in made]
    pack(
        path,
        version="0",
        model=model_of(net),
        proof=first,
        choice=Choice(device="host", status="proven", artifact_id=first.artifact.id, basis="a test's"),
        artifact_folder=where,
        golden=None,
        golden_folder=None,
        provenance={},
        alternates=others,
    )
    return path


def test_each_answers_what_its_own_runner_answers(bundle: Path, made: list[tuple[Artifact, Path]]) -> None:
    events: list[Event] = []
    with open_session(bundle, threads=1, every=True, on_event=events.append) as session:
        assert not session.unusable
        for one, folder in made:
            runner = open_engine(one.engine, one, folder, 1)
            for seed in range(3):
                x = {"image": picture(seed)}
                expected = runner(x)["logits"]
                assert np.array_equal(session(x, one.id)["logits"], expected), one.id
                held = session.input_buffer(one.id)
                held["image"][:] = x["image"]
                assert np.array_equal(session(held, one.id)["logits"], expected), one.id
            runner.close()
        notes = {c.engine: c.note for c in session.candidates}
    assert notes["qnn"].startswith("emulated")
    assert notes["litert"] == notes["executorch"] == notes["onnxruntime"] == ""
    in_place = {e.facts["engine"]: e.facts["in_place"] for e in events if e.kind == "opened"}
    assert in_place == {"litert": False, "executorch": False, "onnxruntime": True, "qnn": True}


@pytest.mark.parametrize("engine", ["litert", "executorch", "onnxruntime", "qnn"])
def test_wrong_inputs_are_refused_in_the_same_words_by_each(bundle: Path, engine: str) -> None:
    with open_session(bundle, threads=1) as session:
        with pytest.raises(BadInput, match="the rung takes float32"):
            session({"image": picture(1).astype(np.float64)}, f"{engine}.fp32")
        with pytest.raises(BadInput, match="takes 1x3x32x32"):
            session({"image": picture(1)[:, :, 1:]}, f"{engine}.fp32")
