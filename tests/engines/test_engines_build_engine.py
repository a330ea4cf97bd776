"""The builder that a device runs: what it asks of TensorRT 10 and 11, and what it makes of the answers."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekiln.engines import build_engine as builder
from fakes.tensorrt_module import TensorRT

PLAN: dict[str, Any] = {
    "schema": 1,
    "tensorrt_min": [10, 0],
    "tensorrt_below": 12,
    "profiles": [
        {"image": {"min": [1, 3, 32, 32], "opt": [1, 3, 32, 32], "max": [4, 3, 32, 32]}},
    ],
    "workspace_bytes": 1 << 28,
    "tf32": False,
    "builder_optimization_level": 3,
}
GPU = "Orin (nvgpu) sm87"


def folder(tmp_path: Path, net: Path, **changes: Any) -> Path:
    made = tmp_path / "artifact"
    made.mkdir(exist_ok=True)
    (made / "model.onnx").write_bytes(net.read_bytes())
    (made / "plan.json").write_text(json.dumps(PLAN | changes))
    return made


def asked(trt: TensorRT, what: str) -> list[Any]:
    return [call[1:] if len(call) > 2 else call[1] for call in trt.calls if call[0] == what]


@pytest.mark.parametrize(("version", "flags"), [("10.3.0", 1), ("11.1.0", 0)])
def test_the_network_is_strongly_typed_in_both_versions(
    version: str, flags: int, dynamic_net: Path, tmp_path: Path
) -> None:
    trt = TensorRT(version)
    builder.prepare(trt, folder(tmp_path, dynamic_net), tmp_path / "into", GPU)
    assert asked(trt, "create_network") == [flags]


def test_the_plan_is_what_tensorrt_is_asked_for(dynamic_net: Path, tmp_path: Path) -> None:
    trt = TensorRT("10.3.0")
    builder.prepare(trt, folder(tmp_path, dynamic_net), tmp_path / "into", GPU)
    assert asked(trt, "memory") == [("WORKSPACE", 1 << 28)]
    assert asked(trt, "clear_flag") == ["TF32"]
    assert asked(trt, "profile") == [{"image": ((1, 3, 32, 32), (1, 3, 32, 32), (4, 3, 32, 32))}]
    assert asked(trt, "build") == [3]


def test_no_memory_limit_and_tf32_only_where_the_plan_says_so(dynamic_net: Path, tmp_path: Path) -> None:
    trt = TensorRT("10.3.0")
    builder.prepare(
        trt, folder(tmp_path, dynamic_net, workspace_bytes=None, tf32=True), tmp_path / "into", GPU
    )
    assert asked(trt, "memory") == asked(trt, "clear_flag") == []


def test_a_second_call_finds_the_engine_and_a_changed_plan_gpu_or_version_does_not(
    dynamic_net: Path, tmp_path: Path
) -> None:
    into, artifact = tmp_path / "into", folder(tmp_path, dynamic_net)
    trt = TensorRT("10.3.0")
    first = builder.prepare(trt, artifact, into, GPU)
    assert first.name.startswith("orin-nvgpu-sm87-trt10.3.0-")
    assert builder.prepare(trt, artifact, into, GPU) == first
    assert len(asked(trt, "build")) == 1
    other_gpu = builder.prepare(trt, artifact, into, "Orin sm89")
    other_version = builder.prepare(TensorRT("11.1.0"), artifact, into, GPU)
    other_plan = builder.prepare(trt, folder(tmp_path, dynamic_net, workspace_bytes=None), into, GPU)
    assert len({first, other_gpu, other_version, other_plan}) == 4
    engines = {path.name for path in into.iterdir() if path.suffix == ".engine"}
    assert engines == {p.name for p in (first, other_gpu, other_version, other_plan)}


def test_the_timing_cache_of_a_gpu_and_version_lies_beside_the_engine_and_serves_its_next_build(
    dynamic_net: Path, tmp_path: Path
) -> None:
    into, artifact = tmp_path / "into", folder(tmp_path, dynamic_net)
    engine = builder.prepare(TensorRT("10.3.0"), artifact, into, GPU)
    kept = into / "orin-nvgpu-sm87-trt10.3.0-timing.cache"
    assert kept.read_bytes() == b"orin+timings"
    engine.unlink()
    again = TensorRT("10.3.0")
    assert builder.prepare(again, artifact, into, GPU) == engine
    assert asked(again, "cache") == [b"orin+timings"]
    assert kept.read_bytes() == b"orin+timings+timings"


def test_another_gpu_or_version_begins_a_timing_cache_of_its_own(dynamic_net: Path, tmp_path: Path) -> None:
    into, artifact = tmp_path / "into", folder(tmp_path, dynamic_net)
    builder.prepare(TensorRT("10.3.0"), artifact, into, GPU)
    for version, gpu in (("10.3.0", "Thor sm110"), ("11.0.0", GPU)):
        other = TensorRT(version)
        builder.prepare(other, artifact, into, gpu)
        assert asked(other, "cache") == [b""]
    assert len(list(into.glob("*timing.cache"))) == 3


def test_a_timing_cache_that_tensorrt_does_not_take_is_begun_anew(dynamic_net: Path, tmp_path: Path) -> None:
    into, artifact = tmp_path / "into", folder(tmp_path, dynamic_net)
    builder.prepare(TensorRT("10.3.0"), artifact, into, GPU).unlink()
    foreign = TensorRT("10.3.0", own_cache=b"other driver")
    builder.prepare(foreign, artifact, into, GPU)
    assert asked(foreign, "cache") == [b"orin+timings", b""]
    (kept,) = into.glob("*timing.cache")
    assert kept.read_bytes() == b"other driver+timings"


def test_every_profile_of_the_plan_is_asked_for_in_its_order(dynamic_net: Path, tmp_path: Path) -> None:
    shapes = [{"image": {key: [n, 3, 32, 32] for key in ("min", "opt", "max")}} for n in (2, 1, 4)]
    trt = TensorRT("10.3.0")
    builder.build(trt, folder(tmp_path, dynamic_net, profiles=shapes))
    assert [p["image"][1][0] for p in asked(trt, "profile")] == [2, 1, 4]


@pytest.mark.parametrize("version", ["8.6.1", "9.3.0", "12.0.0"])
def test_a_tensorrt_out_of_range_is_refused_before_anything_is_built(
    version: str, dynamic_net: Path, tmp_path: Path
) -> None:
    with pytest.raises(builder.BuildFailed, match=f"TensorRT {version} is installed"):
        builder.prepare(TensorRT(version), folder(tmp_path, dynamic_net), tmp_path / "into", GPU)
    assert not (tmp_path / "into").exists()


def test_a_newer_opset_needs_a_newer_tensorrt_10(dynamic_net: Path, tmp_path: Path) -> None:
    artifact = folder(tmp_path, dynamic_net, tensorrt_min=[10, 15])
    with pytest.raises(builder.BuildFailed, match=r"10\.3\.0"):
        builder.prepare(TensorRT("10.3.0"), artifact, tmp_path / "into", GPU)
    assert builder.prepare(TensorRT("10.15.1"), artifact, tmp_path / "into", GPU).exists()


def test_parser_errors_carry_op_node_and_message(tmp_path: Path, dynamic_net: Path) -> None:
    artifact = folder(tmp_path, dynamic_net)
    (artifact / "model.onnx").write_text("not a model")
    with pytest.raises(builder.BuildFailed, match=r"^Conv: first: ") as caught:
        builder.build(TensorRT("10.3.0"), artifact)
    assert set(caught.value.errors[0]) == {"op", "node", "message"}


def test_a_refusal_of_the_builder_is_told_in_its_own_words_and_leaves_nothing(
    tmp_path: Path, dynamic_net: Path
) -> None:
    trt = TensorRT("10.3.0", refuse_build="no implementation for {Conv}")
    with pytest.raises(builder.BuildFailed, match=r"no implementation for {Conv}"):
        builder.prepare(trt, folder(tmp_path, dynamic_net), tmp_path / "into", GPU)
    assert not (tmp_path / "into").exists()


def test_a_profile_that_does_not_rise_is_refused(tmp_path: Path, dynamic_net: Path) -> None:
    shapes = {"image": {"min": [4, 3, 32, 32], "opt": [1, 3, 32, 32], "max": [4, 3, 32, 32]}}
    with pytest.raises(builder.BuildFailed, match="profile does not fit"):
        builder.build(TensorRT("10.3.0"), folder(tmp_path, dynamic_net, profiles=[shapes]))


def test_an_unknown_plan_schema_is_refused(tmp_path: Path, dynamic_net: Path) -> None:
    with pytest.raises(builder.BuildFailed, match="schema 2"):
        builder.build(TensorRT("10.3.0"), folder(tmp_path, dynamic_net, schema=2))


def test_without_tensorrt_the_script_ends_with_one_line_and_status_1(
    tmp_path: Path, dynamic_net: Path
) -> None:
    """As on a device: the file alone, without edgekiln; -S keeps this machine's packages out."""
    artifact = folder(tmp_path, dynamic_net)
    script = artifact / "build_engine.py"
    script.write_bytes(Path(builder.__file__).read_bytes())
    run = subprocess.run(
        [sys.executable, "-I", "-S", str(script)], capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 1
    assert run.stderr.startswith("no engine was built: No module named 'tensorrt'")
    assert "Traceback" not in run.stderr


def test_the_script_stands_alone_and_stays_short() -> None:
    source = Path(builder.__file__).read_text()
    tree = ast.parse(source)
    modules = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    modules |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    assert {m.split(".")[0] for m in modules} - set(sys.stdlib_module_names) == {"tensorrt"}
    assert len(source.splitlines()) <= 162
