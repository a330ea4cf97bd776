"""Tuning on the road: which artifacts, what ships, what the report shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from edgekiln.bundle.unpack import read_manifest
from edgekiln.devices import load as device
from edgekiln.prove.judge import Judged
from edgekiln.prove.timing import Timing
from edgekiln.records import Budget, Build, Evidence, Golden
from edgekiln.rows import Made, Timings
from edgekiln.tuned import _best
from fakes import digits
from fakes.command import Kiln
from fakes.variants import artifact


def made(name: str, agreement: float = 1.0, engine: str = "onnxruntime") -> Made:
    one = msgspec.structs.replace(artifact("m.onnx", engine), id=name, recipe=name)
    evidence = Evidence(what="agreement", unit="", value=agreement, how="measured")
    golden = Golden(inputs="", outputs="", engine=engine, atol={})
    judged = Judged(evidence=(evidence,), top1=(), float_top1=(), golden=golden)
    return Made(device("host"), one, Path(), judged, Path())


def timing(name: str, ms: float) -> Timing:
    samples = tuple(ms * (1 + 0.001 * (i % 7)) for i in range(200))
    figures = {"import_ms": 1.0, "load_ms": 1.0, "first_ms": 1.0}
    return Timing(
        id=name, engine="onnxruntime", engine_version="1", threads=1, spinning=False, contenders=5,
        samples_ms=samples, blocks=(20,) * 10, turns=tuple(range(10)), warmup_calls=1, warmup_stable=True,
        peak_rss_bytes=2, baseline_rss_bytes=1, **figures,
    )  # fmt: skip


def test_only_what_meets_the_budget_and_is_near_the_fastest_is_tuned() -> None:
    ms = {"wrong": 1.0, "fast": 5.0, "near": 6.0, "far": 9.0, "slow": 20.0}
    every = [made(name, 0.5 if name == "wrong" else 1.0) for name in ms]
    times = Timings(timed=tuple(timing(name, value) for name, value in ms.items()))
    best = _best(every, times, Budget(agreement=0.97))
    assert [m.artifact.id for m in best] == ["fast", "near"]


def test_another_devices_artifact_is_not_tuned_here() -> None:
    orin = replace(made("a"), device=device("jetson-orin-nano-8gb"))
    assert list(_best([orin], Timings(timed=(timing("a", 1.0),)), Budget())) == []


def test_a_build_that_tunes_ships_what_it_found_and_shows_all_it_tried(
    digit_files: Path, shared_cache: Path, tmp_path: Path
) -> None:
    fixed = ["--target", "onnxruntime", "--recipe", "fp32", "--threads", "1", "--samples", "20"]
    arguments = [*fixed, "--tune-seconds", "2", "--out", "out", *digits.data_arguments(digit_files)]
    done = Kiln(tmp_path, shared_cache)("build", digit_files / "digits.onnx", *arguments)
    assert done.code == 0, done.stderr
    found = msgspec.json.decode((tmp_path / "out" / "evidence.json").read_bytes(), type=Build)
    assert {t.artifact_id for t in found.tuning} == {"host.onnxruntime.fp32"}
    taken = {k: v for t in found.tuning if t.taken for k, v in t.options.items()}
    (proof,) = found.proofs
    assert {k: proof.artifact.options[k] for k in taken} == taken
    latency = proof.get("latency_p50_ms")
    assert latency is not None
    assert latency.environment["spinning"] is taken.get("spinning", False)
    manifest = read_manifest(tmp_path / "out" / "bundles" / "host.edgekiln")
    assert manifest.artifact.options == proof.artifact.options
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Host tuning" in page
    assert page.count("spinning = yes") >= 1
    assert np.isfinite(latency.value or np.nan)
