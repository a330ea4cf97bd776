"""ONNX files from strangers: what is refused and with which cure, and that equal graphs are equal bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekiln.errors import BadInput
from edgekiln.files import sha256_file
from edgekiln.model.importers import import_model
from edgekiln.model.onnx_file import write_onnx
from edgekiln.model.signature import fix_shapes, guess_task, image_layout, signature
from edgekiln.records import Preprocess, Signature, TensorSpec

RAPIDOCR = Path(__import__("rapidocr").__file__).parent / "models"


def linear(opset: int = 17, outputs: bool = True, domain: str = "") -> onnx.ModelProto:
    """x [n, 4] times w [4, 300]; w is also listed as an input, as old exporters do."""
    w = numpy_helper.from_array(np.arange(1200, dtype=np.float32).reshape(4, 300), "w")
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 300])]
    node = helper.make_node("MatMul", ["x", "w"], ["y"], doc_string="/home/me/train.py", domain=domain)
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 300]),
        ],
        out if outputs else [],
        [w],
    )
    sets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    proto = helper.make_model(graph, opset_imports=sets, ir_version=8)
    proto.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File /home/me/train.py")
    return proto


def external(folder: Path, location: str | None = None) -> Path:
    """The same model with its weights in ``w.bin``; ``location`` overrides what the graph says."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "m.onnx"
    onnx.save(linear(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    if location is not None:
        proto = onnx.load(path, load_external_data=False)
        entry = next(e for e in proto.graph.initializer[0].external_data if e.key == "location")
        entry.value = location
        path.write_bytes(proto.SerializeToString())
    return path


def test_an_onnx_file_is_imported_without_traces_of_the_machine_it_was_made_on(tmp_path: Path) -> None:
    onnx.save(linear(), tmp_path / "my model.onnx")
    found = import_model(str(tmp_path / "my model.onnx"), tmp_path / "a")
    again = import_model(str(tmp_path / "my model.onnx"), tmp_path / "b")
    assert found == again
    written = tmp_path / "a" / found.path
    assert found.sha256 == sha256_file(written)
    assert b"train.py" not in written.read_bytes()
    assert [(i.name, i.dtype, i.shape) for i in found.signature.inputs] == [("x", "float32", ("n", 4))]
    assert found.signature.outputs[0].shape == ("n", 300)
    assert (found.name, found.task, found.source.kind) == ("my-model", "tensors", "onnx")


def test_external_data_is_taken_in_and_both_files_are_recorded(tmp_path: Path) -> None:
    found = import_model(str(external(tmp_path / "in")), tmp_path / "out")
    assert [f.path for f in found.source.files] == ["m.onnx", "w.bin"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model.onnx"]
    held = onnx.load(tmp_path / "out/model.onnx")
    assert numpy_helper.to_array(held.graph.initializer[0])[3, 299] == 1199


def test_weights_above_the_limit_lie_beside_the_graph(tmp_path: Path) -> None:
    files = write_onnx(linear(), tmp_path, embed_limit=1000)
    assert [f.name for f in files] == ["model.onnx", "model.onnx.data"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert numpy_helper.to_array(onnx.load(files[0]).graph.initializer[0])[3, 299] == 1199


@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/hostname", "sub/../../secret.bin", "gone.bin", ""]
)
def test_external_data_that_leaves_the_folder_or_is_missing_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(4800))
    path = external(tmp_path / "in", location)
    with pytest.raises(BadInput):
        import_model(str(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_external_data_behind_a_link_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path / "in")
    (tmp_path / "in/w.bin").rename(tmp_path / "secret.bin")
    (tmp_path / "in/w.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(BadInput):
        import_model(str(path), tmp_path / "out")
    (tmp_path / "in/w.bin").unlink()
    (tmp_path / "secret.bin").rename(tmp_path / "in/real.bin")
    (tmp_path / "in/w.bin").symlink_to("real.bin")
    with pytest.raises(BadInput, match="link"):
        import_model(str(path), tmp_path / "out")


def test_external_data_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path / "in")
    data = tmp_path / "in/w.bin"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(BadInput, match="ends before"):
        import_model(str(path), tmp_path / "out")


def test_a_tensor_hidden_in_an_attribute_can_not_read_outside_either(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    stolen = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[4])
    stolen.data_location = TensorProto.EXTERNAL
    stolen.external_data.add(key="location", value="../secret.bin")
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=stolen)],
        "then",
        [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [4])],
    )
    node = helper.make_node("If", ["b"], ["y"], then_branch=inner, else_branch=inner)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("b", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    (tmp_path / "in").mkdir()
    (tmp_path / "in/m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(BadInput, match="leaves its folder"):
        import_model(str(tmp_path / "in/m.onnx"), tmp_path / "out")


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"hello, I am a model\n" * 30, "text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"PK\x03\x04" + bytes(99), "package.module:factory"),
        (bytes(range(256)) * 20, "no ONNX model"),
        (linear().SerializeToString()[:2000], "no ONNX model"),
        (linear(outputs=False).SerializeToString(), "no outputs"),
        (linear(opset=999).SerializeToString(), "operator set is 999"),
        (linear(opset=3).SerializeToString(), "operator set is 3"),
        (linear(domain="my.ops").SerializeToString(), "my.ops"),
    ],
)
def test_what_is_no_sound_model_is_refused_and_nothing_is_written(
    tmp_path: Path, data: bytes, word: str
) -> None:
    path = _write(tmp_path / "m.onnx", data)
    with pytest.raises(BadInput, match=word):
        import_model(str(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_file_a_folder_and_other_formats_are_refused(tmp_path: Path) -> None:
    for source, word in (
        (tmp_path / "none.onnx", "no such file"),
        (tmp_path, "not a file"),
        (_write(tmp_path / "w.pth", b"PK\x03\x04"), "--weights"),
        (_write(tmp_path / "m.tflite", b"x"), "onnx"),
    ):
        with pytest.raises(BadInput, match=word):
            import_model(str(source), tmp_path / "out")
    onnx.save(linear(), tmp_path / "m.onnx")
    with pytest.raises(BadInput, match="factory"):
        import_model(str(tmp_path / "m.onnx"), tmp_path / "out", weights="w.pth")


def test_types_that_clash_are_refused(tmp_path: Path) -> None:
    proto = linear()
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(BadInput, match="ONNX Runtime refuses"):
        import_model(str(tmp_path / "m.onnx"), tmp_path / "out")


def test_a_real_dynamic_model_is_fixed_to_the_shape_that_was_given(tmp_path: Path) -> None:
    source = str(RAPIDOCR / "PP-OCRv6_det_small.onnx")
    free = import_model(source, tmp_path / "free")
    assert [isinstance(d, str) for d in free.signature.inputs[0].shape] == [True, False, True, True]
    spec = Preprocess(width=320, height=256)
    fixed = import_model(source, tmp_path / "a", input_shapes={"": (1, 3, 256, 320)}, preprocess=spec)
    assert fixed.signature.inputs[0].shape == (1, 3, 256, 320)
    assert fixed.signature.outputs[0].shape == (1, 1, 256, 320)
    assert fixed.task == "tensors"
    wide = Preprocess(width=321, height=256)
    with pytest.raises(BadInput, match="1x3x256x321"):
        import_model(source, tmp_path / "b", input_shapes={"": (1, 3, 256, 320)}, preprocess=wide)
    with pytest.raises(BadInput, match="does not fit"):
        import_model(source, tmp_path / "b", input_shapes={"": (1, 4, 256, 320)})


def test_a_real_classifier_is_recognised_and_its_labels_are_counted(tmp_path: Path) -> None:
    source = str(RAPIDOCR / "ch_ppocr_mobile_v2.0_cls_mobile.onnx")
    found = import_model(source, tmp_path, labels=("upright", "turned"))
    assert (found.task, found.labels) == ("classification", ("upright", "turned"))
    with pytest.raises(BadInput, match="3 labels for 2 classes"):
        import_model(source, tmp_path / "b", labels=("a", "b", "c"))


# ---------------------------------------------------------------- signature


def spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


@pytest.mark.parametrize(
    ("inputs", "outputs", "task"),
    [
        ([spec("x", 1, 3, 224, 224)], [spec("y", 1, 10)], "classification"),
        ([spec("x", "n", 224, 224, 3)], [spec("y", "n", 10, 1, 1)], "classification"),
        ([spec("x", 1, 3, 224, 224)], [spec("y", 1, 1)], "tensors"),
        ([spec("x", 1, 3, 224, 224)], [spec("y", 1, 10, 7, 7)], "tensors"),
        ([spec("x", 1, 3, 224, 224)], [spec("y", 1, 10), spec("z", 1, 10)], "tensors"),
        ([spec("x", 1, 128, dtype="int64")], [spec("y", 1, 10)], "tensors"),
        ([spec("x", 1, 3, 224, 224)], [spec("y", 1, 10, dtype="int64")], "tensors"),
    ],
)
def test_the_task_is_guessed_from_the_shapes(inputs, outputs, task) -> None:
    assert guess_task(Signature(inputs=tuple(inputs), outputs=tuple(outputs))) == task


def test_layout_is_where_the_channels_lie() -> None:
    assert image_layout(spec("x", "n", 3, "h", "w")) == "NCHW"
    assert image_layout(spec("x", 1, 28, 28, 1)) == "NHWC"
    assert image_layout(spec("x", 1, 64, 28, 28)) is None
    assert image_layout(spec("x", 1, 3, 28)) is None


def test_shapes_bind_axis_names_everywhere_and_contradictions_are_refused() -> None:
    sig = Signature(
        inputs=(spec("a", "n", "t"), spec("b", "n", 4)),
        outputs=(spec("y", "n", "t", "u"),),
    )
    fixed = fix_shapes(sig, {"a": (2, 7)})
    assert fixed.inputs[1].shape == (2, 4)
    assert fixed.outputs[0].shape == (2, 7, "u")
    for shapes, word in (
        ({"a": (2, 7), "b": (3, 4)}, "axis 'n'"),
        ({"b": (2, 5)}, "does not fit"),
        ({"b": (2,)}, "axes"),
        ({"b": (0, 4)}, "holds 0"),
        ({"c": (2, 4)}, "no input"),
        ({"": (2, 4)}, "2 inputs"),
    ):
        with pytest.raises(BadInput, match=word):
            fix_shapes(sig, shapes)


def test_an_unknown_axis_is_never_equal_to_another_unknown_axis() -> None:
    proto = onnx.load(RAPIDOCR / "ch_ppocr_mobile_v2.0_cls_mobile.onnx")
    assert signature(proto).inputs[0].shape == ("x_0", 3, "x_2", "x_3")
