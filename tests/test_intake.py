"""What a job brings: shapes, preprocessing and data sets settled, and every assumption a warning."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.errors import BadInput
from edgekiln.intake import Intake, dataset_key, factory_code, random_inputs, read_labels, samples, take_in
from edgekiln.job import Job, ModelOrder
from edgekiln.records import Preprocess, Signature, TensorSpec
from fakes import digits

GREY = Preprocess(width=8, height=8, colour="GRAY", mean=(0.5,), std=(0.25,))


@pytest.fixture
def job(digit_files: Path) -> Job:
    """The digits with all their data, relative to their folder."""
    order = ModelOrder(source="digits.onnx", labels="labels.txt")
    return Job(model=order, data="data", eval="eval", preprocess=GREY, base=str(digit_files))


def changed(job: Job, **changes: object) -> Job:
    return msgspec.structs.replace(job, **changes)


def steps(cache: Path) -> set[str]:
    return {p.name for p in (cache / "import").iterdir()}


# ---------------------------------------------------------------- data sets


def test_calibration_and_holdout_are_disjoint_parts_of_the_data(job: Job, tmp_path: Path) -> None:
    found = take_in(job, tmp_path)
    assert found.calibration is not None
    assert found.holdout is not None
    assert found.evaluation is not None
    one = {s.sha256 for s in found.calibration.samples}
    other = {s.sha256 for s in found.holdout.samples}
    assert not one & other
    assert len(other) == round(0.25 * 24)
    assert len(found.evaluation.samples) == 60
    assert not found.random
    assert not found.warnings


def test_a_holdout_of_its_own_leaves_all_the_data_to_calibration(job: Job, tmp_path: Path) -> None:
    found = take_in(changed(job, holdout="eval", eval=None), tmp_path)
    assert found.calibration is not None
    assert found.holdout is not None
    assert (len(found.calibration.samples), len(found.holdout.samples)) == (24, 60)


def test_without_data_the_labelled_pictures_are_the_holdout(job: Job, tmp_path: Path) -> None:
    found = take_in(changed(job, data=None), tmp_path)
    assert found.calibration is None
    assert found.holdout == found.evaluation


def test_without_anything_the_inputs_are_random_the_same_every_time_and_a_warning_says_so(
    job: Job, tmp_path: Path
) -> None:
    bare = changed(job, data=None, eval=None)
    found = take_in(bare, tmp_path)
    assert found.random
    assert any("no data was given" in w for w in found.warnings)
    one, other = (list(samples(take_in(bare, tmp_path), None)) for _ in range(2))
    assert len(one) == 8
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(one, other, strict=True))
    assert not np.array_equal(one[0]["x"], one[1]["x"])


def test_labels_are_indices_into_the_labels_file(job: Job, tmp_path: Path) -> None:
    found = take_in(job, tmp_path)
    assert found.evaluation is not None
    for sample in found.evaluation.samples:
        assert sample.label is not None
        assert digits.CLASSES[sample.label] == Path(sample.path).parent.name


def test_the_key_of_a_data_set_changes_with_its_files_the_preprocessing_and_the_shape(
    job: Job, tmp_path: Path
) -> None:
    found = take_in(job, tmp_path)
    other = msgspec.structs.replace(found.model, preprocess=msgspec.structs.replace(GREY, scale=1.0))
    smaller = msgspec.structs.replace(found.model, signature=Signature(inputs=(), outputs=()))
    keys = {
        dataset_key(found.holdout, found.model),
        dataset_key(found.calibration, found.model),
        dataset_key(found.holdout, other),
        dataset_key(found.holdout, smaller),
        dataset_key(None, found.model),
    }
    assert len(keys) == 5


# ---------------------------------------------------------------- what was left open


def test_a_preprocessing_that_was_not_given_is_assumed_with_a_warning(job: Job, tmp_path: Path) -> None:
    found = take_in(changed(job, preprocess=None), tmp_path)
    assert found.model.preprocess is not None
    assert found.model.preprocess.colour == "GRAY"
    assert any("no preprocessing was given for 'x'" in w for w in found.warnings)


def test_an_open_batch_becomes_one(job: Job, tmp_path: Path) -> None:
    found = take_in(job, tmp_path)
    assert found.model.signature.inputs[0].shape == (1, 1, 8, 8)
    assert found.model.signature.outputs[0].shape == (1, 10)


def test_one_of_two_inputs_may_be_given_and_the_others_open_batch_is_still_one(tmp_path: Path) -> None:
    _two_inputs(tmp_path / "two.onnx")
    order = ModelOrder(source="two.onnx", input_shape={"a": "1x6"})
    found = take_in(Job(model=order, base=str(tmp_path)), tmp_path / "cache")
    assert {i.name: i.shape for i in found.model.signature.inputs} == {"a": (1, 6), "b": (1, 4)}


def test_an_axis_that_nothing_settles_is_an_error_that_names_it(tmp_path: Path) -> None:
    _two_inputs(tmp_path / "two.onnx")
    with pytest.raises(BadInput, match="still open: a nxlength"):
        take_in(Job(model=ModelOrder(source="two.onnx"), base=str(tmp_path)), tmp_path / "cache")


def _two_inputs(path: Path) -> None:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("ReduceMean", ["a"], ["m"], axes=[1]),
        helper.make_node("Mul", ["m", "b"], ["y"]),
    ]
    takes = [
        helper.make_tensor_value_info("a", kind, ["n", "length"]),
        helper.make_tensor_value_info("b", kind, ["k", 4]),
    ]
    graph = helper.make_graph(nodes, "two", takes, [helper.make_tensor_value_info("y", kind, ["n", 4])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


# ---------------------------------------------------------------- the labels file


def test_labels_are_lines_whoever_saved_them(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffcat\r\n dog \r\nün çiçek\r\n\r\n".encode())
    assert read_labels(path) == ("cat", "dog", "ün çiçek")


@settings(max_examples=30)
@given(
    st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8), min_size=1, max_size=9)
)
def test_labels_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    path = tmp_path_factory.mktemp("labels") / "labels.txt"
    path.write_text("\n".join(names), encoding="utf-8")
    assert read_labels(path) == tuple(names)


# ---------------------------------------------------------------- the cache of imports


def test_an_import_is_done_once_and_again_when_anything_that_it_rests_on_changes(
    job: Job, digit_files: Path, tmp_path: Path
) -> None:
    shutil.copytree(digit_files, tmp_path / "copy")
    job, cache = changed(job, base=str(tmp_path / "copy")), tmp_path / "cache"
    seen: list[set[str]] = []

    def take(order: Job) -> Intake:
        found = take_in(order, cache)
        seen.append(steps(cache))
        return found

    first = take(job)
    assert take(job) == first
    assert len(seen[-1]) == 1
    take(changed(job, preprocess=msgspec.structs.replace(GREY, mean=(0.1,))))
    take(changed(job, name="another"))
    take(changed(job, model=msgspec.structs.replace(job.model, input_shape="1x1x8x8")))
    assert len(seen[-1]) == 4
    model = onnx.load(tmp_path / "copy" / "digits.onnx")
    model.graph.node[0].name = "renamed"
    onnx.save(model, tmp_path / "copy" / "digits.onnx")
    assert take(job).model.sha256 != first.model.sha256
    assert len(seen[-1]) == 5


FACTORY = """
import torch
from {module} import SCALE


class Net(torch.nn.Module):
    def forward(self, x):
        return x * SCALE


def build():
    return Net()
"""


def test_a_factory_is_exported_again_when_a_module_that_it_imports_changes(tmp_path: Path) -> None:
    """In a process each, because a module is imported once."""
    import subprocess
    import sys

    from fakes.command import SOURCE

    package = tmp_path / "kiln_nets"
    (package / "parts").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "parts" / "__init__.py").write_text("")
    (package / "model.py").write_text(FACTORY.format(module="kiln_nets.parts.scale"))
    script = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n"
        "from pathlib import Path\n"
        "from edgekiln.intake import take_in\n"
        "from edgekiln.job import Job, ModelOrder\n"
        "order = ModelOrder(source='kiln_nets.model:build', input_shape='1x3')\n"
        "print(take_in(Job(model=order), Path('cache')).model.sha256)"
    )

    def sha256() -> str:
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[-1]

    (package / "parts" / "scale.py").write_text("SCALE = 2.0\n")
    first = sha256()
    assert sha256() == first
    assert len(steps(tmp_path / "cache")) == 1
    (package / "parts" / "scale.py").write_text("SCALE = 3.0\n")
    assert sha256() != first


# ---------------------------------------------------------------- random inputs


@given(
    st.lists(st.integers(1, 4), max_size=4),
    st.sampled_from(["float32", "float16", "int64", "int32", "uint8", "bool"]),
    st.integers(0, 5),
)
def test_random_inputs_fit_the_signature_and_depend_on_the_seed_alone(
    shape: list[int], dtype: str, seed: int
) -> None:
    spec = TensorSpec(name="x", dtype=dtype, shape=tuple(shape))
    one = random_inputs(Signature(inputs=(spec,), outputs=()), seed)["x"]
    assert (one.shape, one.dtype.name) == (tuple(shape), dtype)
    assert np.array_equal(one, random_inputs(Signature(inputs=(spec,), outputs=()), seed)["x"])


# ---------------------------------------------------------------- where a search holds its bound


def test_validation_in_class_folders_has_its_labels(job: Job, tmp_path: Path) -> None:
    found = take_in(changed(job, validation="eval", eval=None, holdout="data"), tmp_path)
    assert found.validation is not None
    assert len(found.validation_truths) == len(found.validation.samples) == 60
    assert set(found.validation_truths) == {s.label for s in found.validation.samples}
    assert found.evaluation is None


def test_validation_without_folders_has_none_and_what_is_shared_is_told(job: Job, tmp_path: Path) -> None:
    found = take_in(changed(job, validation="data"), tmp_path)
    assert found.validation_truths == ()
    shared = [w for w in found.warnings if "validation data: the bound" in w]
    assert len(shared) == 1
    assert "flatters the quantised artifacts" in shared[0]
    assert any("both in the validation and in the holdout data" in w for w in found.warnings)


def test_without_validation_there_is_none(job: Job, tmp_path: Path) -> None:
    found = take_in(job, tmp_path)
    assert (found.validation, found.validation_truths) == (None, ())
    assert not any("validation" in w for w in found.warnings)


def test_what_a_library_adds_to_the_search_path_is_no_change_of_a_factorys_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a build in a program that has imported much would redo what another has cached."""
    before = factory_code("torch:nothing", ())
    assert before["numpy"] == np.__version__
    added = tmp_path / "made_up-9.dist-info"
    added.mkdir()
    (added / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up\nVersion: 9\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert factory_code("torch:nothing", ()) == before
