"""ExecuTorch artifacts: the same function, the same bytes, an honest placement, and always executed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekiln.compile.targets.executorch import convert
from edgekiln.engines import executorch as engine
from edgekiln.engines import onnxruntime as reference
from edgekiln.errors import ConversionFailed
from edgekiln.records import Artifact, PassReport
from fakes.networks import picture, sqnr_db
from fakes.trained_digits import TRAINED, Digits
from fakes.variants import PC, order
from fakes.variants import artifact as variants_artifact


def made(model: Path, recipe: str, folder: Path, **more: Any) -> Artifact:
    return convert(order(folder / "variant", model, recipe, PC, **more), folder / "out")


def calibration(digits: Digits, folder: Path, count: int = 32) -> str:
    folder.mkdir()
    for number, sample in enumerate(digits.samples(0, count)):
        np.savez(folder / f"sample-{number:04d}.npz", **sample)
    return str(folder)


def decisions(runner: Any, digits: Digits, start: int, stop: int) -> list[int]:
    return [int(runner(s)["y"].argmax()) for s in digits.samples(start, stop)]


def test_efficientnet_lite0_is_the_same_and_runs_whole_in_the_delegate(lite0: Path, tmp_path: Path) -> None:
    artifact = made(lite0, "fp32", tmp_path)
    x = {"image": picture(7, (1, 3, 224, 224))}
    found = engine.open(artifact, tmp_path / "out", 1)(x)
    expected = reference.open(variants_artifact(lite0.name, "onnxruntime"), lite0.parent, 1)(x)
    assert list(found) == list(expected) == ["logits"]
    assert sqnr_db(expected["logits"], found["logits"]) > 80
    (placed,) = artifact.placement
    assert (placed.provider, placed.how, placed.partitions) == ("XnnpackBackend", "measured", 1)
    assert placed.fallback == {}
    assert placed.operators == placed.taken
    assert placed.taken is not None
    assert placed.taken >= 49 + 33 + 9  # its convolutions, activations and additions
    assert all(c.passed for c in artifact.checks)
    assert [c.name for c in artifact.checks] == ["same as the ONNX graph", "runs here"]


@pytest.fixture(scope="module")
def static(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:
    """The trained digits in int8, static, as a build would order it: with the pass left to the target."""
    folder = tmp_path_factory.mktemp("static")
    data = calibration(digits, folder / "data")
    one = order(folder / "variant", digits.graph, "int8-xnnpack-static", PC, calibration=data)
    left = PassReport(name="quantise-xnnpack", outcome="kept", seconds=0, nodes_before=1, nodes_after=1)
    variant = msgspec.structs.replace(one.variant, passes=(left,))
    return convert(msgspec.structs.replace(one, variant=variant), folder / "out"), folder / "out"


def test_static_int8_keeps_the_decisions_in_less_space(
    static: tuple[Artifact, Path], digits: Digits, tmp_path: Path
) -> None:
    runner = engine.open(*static, 1)
    full = made(digits.graph, "fp32", tmp_path)
    exact = engine.open(full, tmp_path / "out", 1)
    stop = TRAINED + 300
    low, high = (np.array(decisions(r, digits, TRAINED, stop)) for r in (runner, exact))
    assert (low == high).mean() > 0.98
    sample = digits.samples(TRAINED, TRAINED + 1)[0]
    assert 15 < sqnr_db(exact(sample)["y"], runner(sample)["y"]) < 60, "8 bits, neither float nor noise"
    assert static[0].size_bytes < 0.7 * full.size_bytes
    assert static[0].precisions == {"float32": 1, "int8": 7}
    assert "3 layers with int8 weights, 16 samples" in static[0].passes[0].note


def test_dynamic_int8_quantises_the_linear_layers_alone(digits: Digits, tmp_path: Path) -> None:
    artifact = made(digits.graph, "int8-xnnpack-dynamic", tmp_path)
    assert artifact.precisions == {"float32": 7, "int8": 1}
    assert artifact.placement[0].fallback == {}
    runner = engine.open(artifact, tmp_path / "out", 1)
    right = (
        np.array(decisions(runner, digits, TRAINED, TRAINED + 100)) == digits.labels[TRAINED : TRAINED + 100]
    )
    assert right.mean() > 0.9


def test_another_process_and_folder_give_the_same_bytes(
    static: tuple[Artifact, Path], tmp_path: Path
) -> None:
    artifact, folder = static
    graph, data = folder.parent / "variant" / "graph.onnx", str(folder.parent / "data")
    again = order(tmp_path / "elsewhere", graph, artifact.recipe, PC, calibration=data)
    (tmp_path / "order.json").write_bytes(msgspec.json.encode(again))
    program = """
import sys, msgspec
from pathlib import Path
from edgekiln.compile.targets import Conversion
from edgekiln.compile.targets.executorch import convert
order = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Conversion)
print(convert(order, Path(sys.argv[2])).files[0].sha256)
"""
    command = [sys.executable, "-c", program, tmp_path / "order.json", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == artifact.files[0].sha256
    assert "cpuinfo" not in done.stderr
    assert str(tmp_path).encode() not in (tmp_path / "out" / artifact.entry).read_bytes()


def scattering(folder: Path) -> Path:
    """y = x + x with some elements of it multiplied in: the reduction is one that no kernel has."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["twice"], name="add"),
        helper.make_node(
            "ScatterElements", ["twice", "where", "x"], ["y"], name="scatter", axis=1, reduction="mul"
        ),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 4]) for n in ("x", "y")]
    where = numpy_helper.from_array(np.zeros((2, 4), np.int64), "where")
    graph = helper.make_graph(nodes, "odd", values[:1], values[1:], [where])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9),
        folder / "odd.onnx",
    )
    return folder / "odd.onnx"


def test_an_operator_without_a_kernel_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConversionFailed, match="scatter_reduce"):
        made(scattering(tmp_path), "fp32", tmp_path)


def test_an_operator_without_a_translation_is_named(net: Path, tmp_path: Path) -> None:
    model = onnx.load(net)
    relu = next(n for n in model.graph.node if n.op_type == "Clip")
    relu.op_type, relu.domain = "Unheard", "made.up"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ConversionFailed, match=f"Unheard '{relu.name}'"):
        made(tmp_path / "odd.onnx", "fp32", tmp_path)


def test_a_graph_without_linear_layers_has_no_dynamic_form(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 4]) for n in ("x", "y")]
    graph = helper.make_graph([node], "bare", values[:1], values[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9),
        tmp_path / "bare.onnx",
    )
    with pytest.raises(ConversionFailed, match="no linear layer"):
        made(tmp_path / "bare.onnx", "int8-xnnpack-dynamic", tmp_path)


def test_without_the_package_the_extra_is_named(net: Path, tmp_path: Path) -> None:
    """In a process of its own, in which the package can't be found."""
    (tmp_path / "order.json").write_bytes(msgspec.json.encode(order(tmp_path / "variant", net, "fp32", PC)))
    program = """
import sys, msgspec
sys.modules["executorch"] = None
from pathlib import Path
from edgekiln.compile.targets import Conversion
from edgekiln.compile.targets.executorch import convert
from edgekiln.errors import MissingExtra
try:
    convert(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Conversion), Path(sys.argv[2]))
except MissingExtra as error:
    print(error.extra)
"""
    command = [sys.executable, "-c", program, tmp_path / "order.json", tmp_path / "out"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "executorch"
