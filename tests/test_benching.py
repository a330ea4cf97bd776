"""``bench``: models and bundles, alternated, on the same input."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekiln.benching import bench
from edgekiln.errors import BadInput
from fakes.command import Kiln


def _work(path: Path, layers: int, size: object = 32, name: str = "x") -> Path:
    """``layers`` convolutions over a picture of 8 channels: time grows with their number."""
    rng = np.random.default_rng(0)
    held = [numpy_helper.from_array(rng.standard_normal((8, 8, 3, 3)).astype(np.float32) / 9, "w")]
    names = [name, *(f"t{i}" for i in range(layers - 1)), "y"]
    pads = [1, 1, 1, 1]
    nodes = [helper.make_node("Conv", [a, "w"], [b], pads=pads) for a, b in itertools.pairwise(names)]
    shape = ["n", 8, size, size]
    graph = helper.make_graph(
        nodes,
        "work",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        held,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_more_work_takes_longer_and_the_verdict_says_by_how_much(tmp_path: Path) -> None:
    slow = _work(tmp_path / "slow.onnx", 24)
    fast = _work(tmp_path / "fast.onnx", 2)
    found = bench(slow, fast, threads=1, samples=40)
    assert found.ratio is not None
    assert found.ratio.value > 3
    assert found.ratio.interval is not None
    low, high = found.ratio.interval
    assert 1 < low <= found.ratio.value <= high
    assert found.tie is False
    assert found.verdict.startswith("b: fast.onnx is ")
    turned = bench(fast, slow, threads=1, samples=40)
    assert turned.verdict.startswith("a: fast.onnx is ")


def test_a_model_against_itself_has_a_ratio_around_one_and_its_spread(tmp_path: Path) -> None:
    model = _work(tmp_path / "same.onnx", 6)
    found = bench(model, model, threads=1, samples=60)
    assert found.ratio is not None
    assert 0.6 < found.ratio.value < 1.7
    assert found.ratio.interval is not None


def test_a_model_against_a_bundle_of_it(kiln: Kiln, digit_files: Path, float_bundle: Path) -> None:
    arguments = ["--samples", "20", "--threads", "1"]
    done = kiln("bench", digit_files / "digits.onnx", "--against", float_bundle, *arguments)
    assert done.code == 0, done.stderr
    assert "digits.onnx" in done.stdout
    assert "host.edgekiln" in done.stdout


def test_different_inputs_can_not_be_compared(tmp_path: Path) -> None:
    one = _work(tmp_path / "one.onnx", 1)
    with pytest.raises(BadInput, match="different inputs"):
        bench(one, _work(tmp_path / "size.onnx", 1, size=16))
    with pytest.raises(BadInput, match="different inputs"):
        bench(one, _work(tmp_path / "name.onnx", 1, name="z"))


def test_an_open_size_has_to_be_given_and_an_open_batch_is_one(tmp_path: Path) -> None:
    model = _work(tmp_path / "open.onnx", 1, size="s")
    with pytest.raises(BadInput, match="--input-shape"):
        bench(model)
    found = bench(model, shapes={"": (1, 8, 16, 16)}, threads=1, samples=10)
    assert found.a_percentiles is not None


def test_a_file_that_is_neither_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_text("hello")
    with pytest.raises(BadInput, match="text file"):
        bench(tmp_path / "x.onnx")
    (tmp_path / "x.edgekiln").write_text("hello")
    with pytest.raises(BadInput, match="no whole zip"):
        bench(tmp_path / "x.edgekiln")
