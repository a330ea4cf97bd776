"""``inspect``: what a model is, what it costs, and each target's word."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import pytest
import rapidocr
from onnx import TensorProto, helper

from edgekiln.api import inspect
from edgekiln.compile.targets import TARGETS
from edgekiln.errors import BadInput
from edgekiln.inspection import Inspection

MODELS = sorted((Path(rapidocr.__file__).parent / "models").glob("*.onnx"))


def words(found: Inspection) -> dict[str, bool | None]:
    return {word.target: word.accepts for word in found.words}


def test_the_wheel_of_rapidocr_holds_three_models() -> None:
    assert len(MODELS) == 3


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_models_that_no_example_was_written_for_are_counted_whole_once_their_shape_is_given(
    path: Path,
) -> None:
    shape = {"det": "1x3x64x96", "rec": "1x3x48x320", "cls": "1x3x48x192"}
    kind = next(k for k in shape if k in path.name)
    found = inspect(path, input_shape=shape[kind], targets=())
    assert found.cost is not None
    assert found.cost.unresolved_count == 0
    assert found.cost.macs > 1e6
    held = list(onnx.load(path).graph.initializer)
    held += [a.t for n in onnx.load(path).graph.node if n.op_type == "Constant" for a in n.attribute]
    weights = sum(math.prod(t.dims) for t in held if t.data_type == TensorProto.FLOAT)
    assert found.cost.parameters == pytest.approx(weights, rel=0.02)


def test_targets_are_asked_and_say_what_they_found(digit_files: Path) -> None:
    found = inspect(digit_files / "digits.onnx")
    assert words(found) == dict.fromkeys(TARGETS, True)
    assert found.cost is not None
    # By hand: 8x8x16 outputs of 9 products, 4x4x32 of 144, 10 of 512.
    assert found.cost.macs == 64 * 16 * 9 + 16 * 32 * 144 + 10 * 512
    assert found.opset == 17


def test_a_target_that_refuses_says_why(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Det", ["x"], ["y"])],
        "det",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "det.onnx")
    found = inspect(tmp_path / "det.onnx")
    takes = {"onnxruntime", "web"}
    assert words(found) == {name: name in takes for name in TARGETS}
    assert all("Det" in w.says for w in found.words if not w.accepts)


def test_only_the_targets_that_were_named_are_asked(digit_files: Path) -> None:
    found = inspect(digit_files / "digits.onnx", targets=("openvino",))
    assert words(found) == {"openvino": True}
    with pytest.raises(BadInput, match="no target has this name"):
        inspect(digit_files / "digits.onnx", targets=("openvin",))


def test_open_shapes_leave_the_targets_unasked_and_the_cost_unknown_with_the_cure() -> None:
    path = next(p for p in MODELS if "det" in p.name)
    found = inspect(path)
    assert found.cost is None
    assert "--input-shape" in found.cost_reason
    assert set(words(found).values()) == {None}
    assert all("--input-shape" in w.says for w in found.words)


def test_a_factory_is_exported_and_inspected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kiln_test_factory.py").write_text(
        "import torch\n\n\ndef build():\n    return torch.nn.Conv2d(3, 4, 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    found = inspect("kiln_test_factory:build", input_shape="1x3x16x16", targets=())
    assert found.model.source.kind == "torch"
    assert found.cost is not None
    assert found.cost.macs == 14 * 14 * 4 * 27
    assert found.model.source.parity_max_error is not None
    assert found.model.source.parity_max_error < 1e-5


def test_a_model_that_is_not_there_is_bad_input() -> None:
    with pytest.raises(BadInput, match="no such file"):
        inspect("none.onnx")


def test_factories_of_one_name_in_one_process_are_read_from_disk_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for channels in (4, 5):
        folder = tmp_path / str(channels)
        folder.mkdir()
        (folder / "kiln_namesake.py").write_text(
            f"import torch\n\n\ndef build():\n    return torch.nn.Conv2d(3, {channels}, 3)\n"
        )
        monkeypatch.chdir(folder)
        found.append(inspect("kiln_namesake:build", input_shape="1x3x16x16", targets=()))
    (folder / "kiln_namesake.py").write_text(
        (folder / "kiln_namesake.py").read_text().replace("(3, 5", "(3, 66")
    )
    found.append(inspect("kiln_namesake:build", input_shape="1x3x16x16", targets=()))
    assert [f.model.signature.outputs[0].shape[1] for f in found] == [4, 5, 66]
