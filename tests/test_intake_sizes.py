"""Several input sizes as a job brings them: signature and preprocessing of each, and who has only one."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from edgekiln.errors import BadInput
from edgekiln.intake import dataset_key, samples, take_in
from edgekiln.job import Job, ModelOrder
from edgekiln.model.preprocess import apply, open_image
from edgekiln.records import Preprocess
from fakes import sized

SPEC = Preprocess(height=48, width=64, fit="crop", crop=0.9, mean=(0.1, 0.2, 0.3))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A model of any size with 8 photographs, for 48x64 (the base) and 32x32."""
    onnx.save(sized.graph(), tmp_path / "m.onnx")
    sized.photographs(tmp_path / "data", 8)
    order = ModelOrder(source="m.onnx", sizes=(32, "48x64"))
    return Job(model=order, data="data", preprocess=SPEC, base=str(tmp_path))


def changed(job: Job, **changes: object) -> Job:
    return msgspec.structs.replace(job, **changes)


def test_each_size_has_its_own_signature_and_prepares_the_same_pictures_for_it(
    job: Job, tmp_path: Path
) -> None:
    found = take_in(job, tmp_path / "cache")
    assert found.sizes == ((48, 64), (32, 32))
    assert found.model.signature.inputs[0].shape == (1, 3, 48, 64)
    small = found.at((32, 32))
    assert small.model.signature.inputs[0].shape == (1, 3, 32, 32)
    assert small.model.preprocess == msgspec.structs.replace(SPEC, height=32, width=32)
    assert small.sizes == ()
    assert found.holdout is not None
    paths = [Path(found.holdout.root) / s.path for s in found.holdout.samples]
    for path, sample in zip(paths, samples(small, small.holdout), strict=True):
        spec = msgspec.structs.replace(SPEC, height=32, width=32)
        assert np.array_equal(sample["x"], apply(spec, open_image(path)))
    keys = {dataset_key(one.holdout, one.model) for one in (found, small, found.at((48, 64)))}
    assert len(keys) == 2


def test_the_imported_graph_keeps_its_height_and_width_open(job: Job, tmp_path: Path) -> None:
    found = take_in(job, tmp_path / "cache")
    dims = onnx.load(found.graph).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param for d in dims] == ["", "", "h", "w"]


def test_one_size_alone_fixes_the_model_as_a_shape_would(job: Job, tmp_path: Path) -> None:
    one = changed(job, model=ModelOrder(source="m.onnx", sizes=("48x64",)))
    found = take_in(one, tmp_path / "cache")
    assert (found.sizes, found.symbolic) == ((), None)
    assert found.model.signature.inputs[0].shape == (1, 3, 48, 64)
    assert found.at((48, 64)) is found


@pytest.mark.parametrize("sizes", [(48,), (32, "48x64")])
def test_a_model_of_fixed_size_is_refused_with_the_cure(
    sizes: tuple[int | str, ...], job: Job, tmp_path: Path
) -> None:
    onnx.save(sized.graph(48, 64), tmp_path / "m.onnx")
    order = ModelOrder(source="m.onnx", sizes=sizes)
    with pytest.raises(BadInput, match=r"fixed at (48|64)") as caught:
        take_in(changed(job, model=order, preprocess=None), tmp_path / "cache")
    assert "symbolic height and width" in caught.value.cure


def test_only_the_axis_that_the_sizes_agree_in_may_be_fixed(job: Job, tmp_path: Path) -> None:
    onnx.save(sized.graph(48, "w"), tmp_path / "m.onnx")
    order = ModelOrder(source="m.onnx", sizes=("48x64", "48x32"))
    assert take_in(changed(job, model=order), tmp_path / "cache").sizes == ((48, 64), (48, 32))
    order = ModelOrder(source="m.onnx", sizes=("48x64", "32x64"))
    with pytest.raises(BadInput, match="its height is fixed at 48"):
        take_in(changed(job, model=order), tmp_path / "cache")


def test_sizes_and_an_input_shape_contradict_each_other(job: Job, tmp_path: Path) -> None:
    order = ModelOrder(source="m.onnx", sizes=(32, "48x64"), input_shape="1x3x48x64")
    with pytest.raises(BadInput, match="both sizes and an input shape"):
        take_in(changed(job, model=order), tmp_path / "cache")


def test_tensor_files_have_one_size(job: Job, tmp_path: Path) -> None:
    np.savez(tmp_path / "data" / "a.npz", x=np.zeros((1, 3, 48, 64), np.float32))
    with pytest.raises(BadInput, match="tensor files have one size"):
        take_in(job, tmp_path / "cache")


def test_a_model_of_numbers_has_no_sizes(job: Job, tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [value("x", onnx.TensorProto.FLOAT, ["n", 4])],
        [value("y", onnx.TensorProto.FLOAT, ["n", 4])],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(BadInput, match="takes no single picture"):
        take_in(changed(job, preprocess=None, data=None), tmp_path / "cache")
