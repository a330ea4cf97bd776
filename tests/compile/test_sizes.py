"""Artifacts of several sizes: one flexible file, or one per size; real conversions of a real small graph."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from edgekiln.compile.graph import optimise
from edgekiln.compile.sizes import Workshops, joined, make_sizes
from edgekiln.compile.targets import TARGETS
from edgekiln.compile.workshop import Calibration, Workshop
from edgekiln.engines import open_engine
from edgekiln.errors import ConversionFailed
from edgekiln.files import sha256_file
from edgekiln.records import Artifact, Check, Placement
from fakes import sized
from fakes.networks import picture
from fakes.variants import ORIN, PC, artifact, model_of

SIZES = ((32, 32), (48, 64))
PER_SIZE = dataclasses.replace(TARGETS["onnxruntime"], flexible=False)


def sample(size: tuple[int, int], seed: int = 0) -> dict[str, Any]:
    return {"x": picture(seed, (1, 3, *size))}


def workshop(folder: Path, size: tuple[int, int] | None) -> Workshop:
    """The graph of one size, or the symbolic one; its samples are of the size, or of the base."""
    source = folder / "source.onnx"
    if not source.exists():
        onnx.save(sized.graph(), source)
    one = size or SIZES[0]
    path = folder / f"{size and one}.onnx"
    shape = (1, 3, *one) if size else (1, 3, "height", "width")
    others = () if size else (sample(SIZES[1]),)
    optimise(source, {"x": shape}, sample(one), path, others)
    static = folder / f"static-{one}.onnx"
    onnx.save(sized.graph(*one), static)
    data = Calibration(lambda: (sample(one, k) for k in range(3)), 3, f"samples of {one}")
    return Workshop(
        path, sha256_file(path), data, folder / "cache", 1, model_of(static), () if size else SIZES
    )


@pytest.fixture
def shops(tmp_path: Path) -> Workshops:
    return Workshops(SIZES, workshop(tmp_path, None), lambda size: workshop(tmp_path, size))


def outputs(made: tuple[Path, Artifact], size: tuple[int, int]) -> Any:
    folder, found = made
    runner = open_engine("onnxruntime", found, folder, 1, size)
    return runner(sample(size, 7))["y"]


def expected(size: tuple[int, int]) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(sized.graph().SerializeToString())
    return session.run(None, sample(size, 7))[0]


def test_a_flexible_target_gives_one_file_that_takes_every_size_and_says_so(shops: Workshops) -> None:
    made = make_sizes(shops, PC, TARGETS["onnxruntime"], "fp32")
    found = made[1]
    assert found.flexible
    assert [(r.height, r.width, r.entry) for r in found.resolutions] == [(*s, "model.onnx") for s in SIZES]
    assert found.checks[-1].name == "resolutions"
    assert found.checks[-1].detail == "flexible: one file takes 32x32, 48x64"
    for size in SIZES:
        assert np.allclose(outputs(made, size), expected(size), atol=1e-5)


def test_a_static_target_gives_a_file_per_size_in_a_folder_of_its_own(shops: Workshops) -> None:
    made = make_sizes(shops, PC, PER_SIZE, "fp32")
    folder, found = made
    assert not found.flexible
    assert found.entry == "32x32/model.onnx"
    assert [r.entry for r in found.resolutions] == ["32x32/model.onnx", "48x64/model.onnx"]
    assert {f.path for f in found.files} == {r.entry for r in found.resolutions}
    assert found.size_bytes == sum((folder / f.path).stat().st_size for f in found.files)
    assert "one file per size, for 32x32, 48x64" in found.checks[-1].detail
    for resolution, size in zip(found.resolutions, SIZES, strict=True):
        graph = onnx.load(folder / resolution.entry)
        assert [d.dim_value for d in graph.graph.input[0].type.tensor_type.shape.dim] == [1, 3, *size]
        assert np.allclose(outputs(made, size), expected(size), atol=1e-5)
    assert found.id == "intel-n100.onnxruntime.fp32"


def test_the_ranges_of_a_flexible_graph_are_of_the_base_and_the_report_says_it(shops: Workshops) -> None:
    data = shops.flexible.calibration
    assert data is not None
    told = dataclasses.replace(data, remark="of 32x32, the base size alone")
    shops = dataclasses.replace(shops, flexible=dataclasses.replace(shops.flexible, calibration=told))
    made = make_sizes(shops, PC, TARGETS["onnxruntime"], "int8-static-minmax")
    assert "from 3 samples (of 32x32, the base size alone)" in made[1].passes[0].note
    own = make_sizes(shops, PC, PER_SIZE, "int8-static-minmax")
    for one in (made, own):
        for size in SIZES:
            error = np.abs(outputs(one, size) - expected(size)).max()
            assert 0 < error < 0.1 * np.abs(expected(size)).max()


def test_the_same_order_gives_the_same_record_and_bytes_from_the_cache_and_without_it(
    shops: Workshops, tmp_path: Path
) -> None:
    first = make_sizes(shops, PC, PER_SIZE, "fp32")
    assert make_sizes(shops, PC, PER_SIZE, "fp32") == first
    (tmp_path / "again").mkdir()
    anew = Workshops(
        SIZES, workshop(tmp_path / "again", None), lambda size: workshop(tmp_path / "again", size)
    )
    assert make_sizes(anew, PC, PER_SIZE, "fp32")[1].files == first[1].files


def test_a_flexible_target_that_refuses_the_symbolic_graph_gives_a_file_per_size_and_the_reason(
    shops: Workshops,
) -> None:
    """TensorRT plans no engine for open axes that no size bounds, as a workshop without sizes leaves them."""
    bare = dataclasses.replace(shops, flexible=dataclasses.replace(shops.flexible, sizes=()))
    _, found = make_sizes(bare, ORIN, TARGETS["tensorrt"], "fp32")
    assert [r.entry for r in found.resolutions] == ["32x32/model.onnx", "48x64/model.onnx"]
    detail = next(c.detail for c in found.checks if c.name == "resolutions")
    assert "the flexible graph was refused: height of input 'x' is dynamic" in detail


def test_what_fails_at_every_size_is_told_as_the_flexible_target_said_it(shops: Workshops) -> None:
    with pytest.raises(ConversionFailed, match="intel-n100 has no bfloat16 arithmetic"):
        make_sizes(shops, PC, TARGETS["openvino"], "bf16")


def test_what_differs_between_the_sizes_is_kept_beside_the_base(tmp_path: Path) -> None:
    parts = []
    for number, size in enumerate(SIZES):
        name = f"{size[0]}x{size[1]}/m.bin"
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x" * (number + 1))
        one = msgspec.structs.replace(
            artifact("m.bin", "qnn", same=1, scale=number),
            checks=(Check(name="same", passed=True, detail=""), Check(name="own", passed=True, detail=name)),
            placement=(Placement(provider="NPU", how="emulated", operators=4, taken=4 - number),),
        )
        parts.append((size, one))
    found = joined(parts, tmp_path, "one file per size")
    assert found.options == {"same": 1, "scale": 0, "48x64/scale": 1}
    assert [c.name for c in found.checks] == ["same", "own", "own@48x64", "resolutions"]
    assert [(p.provider, p.taken) for p in found.placement] == [("NPU", 4), ("NPU at 48x64", 3)]
    assert found.size_bytes == 3


def test_a_part_without_its_entry_is_never_put_together(tmp_path: Path) -> None:
    with pytest.raises(ConversionFailed, match="the file of 32x32 is missing"):
        joined([(SIZES[0], artifact("m.bin", "qnn"))], tmp_path, "")
