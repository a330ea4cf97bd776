import io
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, scalar_dtypes

from edgekiln.engines import open_engine
from edgekiln.errors import BadInput
from edgekiln.prove.arrays import npz_bytes, read_npz
from edgekiln.prove.golden import SHARE_OF_RANGE, arithmetic_of, check, record, tolerances
from edgekiln.records import Artifact

RAPIDOCR = Path(find_spec("rapidocr").origin).parent / "models"
NUMERIC = scalar_dtypes().filter(lambda d: d.kind in "biufc")


def artifact(entry="m.onnx", **precisions):
    return Artifact(
        id="a",
        target="onnxruntime",
        recipe="r",
        engine="onnxruntime",
        proof_engine="onnxruntime",
        entry=entry,
        files=(),
        options={},
        tools={},
        precisions=precisions or {"fp32": 3},
    )


class Affine:
    """A whole engine: y = gain * x + offset."""

    def __init__(self, gain=2.0, offset=0.0, name="y"):
        self.gain, self.offset, self.name = gain, offset, name

    def __call__(self, inputs):
        return {self.name: (self.gain * inputs["x"] + self.offset).astype(np.float32)}

    def close(self):
        pass


INPUTS = [{"x": np.linspace(-1, 1, 9, dtype=np.float32)}, {"x": np.linspace(0, 4, 9, dtype=np.float32)}]


@pytest.fixture(scope="module")
def classifier():
    made = artifact("ch_ppocr_mobile_v2.0_cls_mobile.onnx")
    return made, open_engine("onnxruntime", made, RAPIDOCR, 1)


def test_a_real_model_keeps_its_golden_outputs_and_another_input_does_not(classifier, tmp_path):
    made, runner = classifier
    random = np.random.default_rng(0)
    inputs = [{"x": random.normal(0, 0.5, (1, 3, 48, 192)).astype(np.float32)} for _ in range(3)]
    golden = record(runner, made, inputs, tmp_path)
    assert check(golden, tmp_path, runner) == []

    def other(arrays):
        return runner({"x": np.ascontiguousarray(-arrays["x"])})

    problems = check(golden, tmp_path, other)
    assert problems
    assert "more than the tolerance" in problems[0]


def test_recording_twice_gives_the_same_bytes(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    first = record(Affine(), artifact(), INPUTS, one)
    time.sleep(2.1)  # zip time stamps have a resolution of two seconds
    assert record(Affine(), artifact(), INPUTS, two) == first
    for name in (first.inputs, first.outputs):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_numpy_reads_what_was_recorded(tmp_path):
    golden = record(Affine(), artifact(), INPUTS, tmp_path)
    with np.load(tmp_path / golden.outputs, allow_pickle=False) as stored:
        assert np.array_equal(stored["1/y"], 2 * INPUTS[1]["x"])


@pytest.mark.parametrize(("kind", "share"), SHARE_OF_RANGE.items())
def test_the_tolerance_is_a_share_of_the_outputs_range(kind, share, tmp_path):
    golden = record(Affine(), artifact(**{kind: 1}), INPUTS, tmp_path)
    assert golden.atol["y"] == pytest.approx(share * 10)  # outputs run from -2 to 8
    within, beyond = Affine(offset=0.9 * share * 10), Affine(offset=1.1 * share * 10)
    assert check(golden, tmp_path, within) == []
    assert len(check(golden, tmp_path, beyond)) == 2


def test_a_coarse_output_gets_two_of_its_steps():
    outputs = [{"y": np.array([0.0, 1.0])}]
    assert tolerances(outputs, "int8", {"y": 0.1})["y"] == pytest.approx(0.2)
    assert tolerances(outputs, "int8", {"y": 0.001})["y"] == pytest.approx(0.05)


def test_a_constant_output_is_scaled_by_its_size():
    assert tolerances([{"y": np.full(3, -7.0)}], "fp32")["y"] == pytest.approx(7e-3)
    assert tolerances([{"y": np.zeros(3)}], "fp32")["y"] == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("precisions", "expected"),
    [
        ({"float32": 9}, "fp32"),
        ({"fp32": 9, "int8": 40}, "int8"),
        ({"float32": 9, "FLOAT16": 1}, "fp16"),
        ({"bfloat16": 5, "float16": 5}, "bf16"),
        ({"int8": 0, "fp32": 2}, "fp32"),
        ({}, "fp32"),
        ({"novel9": 1}, "int8"),
    ],
)
def test_the_coarsest_arithmetic_decides(precisions, expected):
    assert arithmetic_of(precisions) == expected


@pytest.mark.parametrize(
    ("runner", "says"),
    [
        (Affine(name="z"), "the engine does not give it"),
        (Affine(offset=np.nan), "NaN or infinite"),
        (lambda inputs: {"y": np.zeros((1, 9), np.float32)}, "its shape is (1, 9), recorded was (9,)"),
    ],
)
def test_what_can_not_be_compared_is_a_problem(runner, says, tmp_path):
    golden = record(Affine(), artifact(), INPUTS, tmp_path)
    problems = check(golden, tmp_path, runner)
    assert len(problems) == 2
    assert problems[0].startswith("sample 0, output 'y': ")
    assert says in problems[0]


def test_an_artifact_with_broken_outputs_is_not_recorded(tmp_path):
    with pytest.raises(BadInput, match="'y' holds NaN"):
        record(Affine(offset=np.nan), artifact(), INPUTS, tmp_path)
    with pytest.raises(BadInput, match="not numeric"):
        record(lambda inputs: {"y": np.array(["a"], object)}, artifact(), INPUTS, tmp_path)
    with pytest.raises(BadInput, match="no input"):
        record(Affine(), artifact(), [], tmp_path)
    assert list(tmp_path.iterdir()) == []


@given(st.dictionaries(st.text("abc/_:.", min_size=1), arrays(NUMERIC, array_shapes(min_dims=0)), max_size=4))
def test_any_named_arrays_survive_the_file(tmp_path_factory, named):
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    path.write_bytes(npz_bytes(named))
    found = read_npz(path)
    assert set(found) == set(named)
    for name, values in named.items():
        assert found[name].dtype == values.dtype
        assert found[name].shape == values.shape
        assert found[name].tobytes() == values.tobytes()
    assert npz_bytes(dict(reversed(named.items()))) == path.read_bytes()


def hostile(header=None, **options):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **options) as archive:
        data = io.BytesIO()
        np.lib.format.write_array(data, np.zeros(4, np.float32))
        content = data.getvalue()
        if header:
            content = content.replace(b"(4,)", header)
        archive.writestr("0/y.npy", content)
    return out.getvalue()


def pickled():
    out = io.BytesIO()
    np.savez(out, y=np.array([{"a": 1}], object))
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (hostile(b"(9999999999,)"), "does not match its size"),
        (hostile(b"(-4,)"), "does not match its size"),
        (hostile(compression=zipfile.ZIP_DEFLATED), "compressed"),
        (pickled(), "pickled"),
        (b"PK not a zip", "not a zip"),
        (npz_bytes({"0/y": np.zeros(8)})[:-30], "not a zip"),
        (npz_bytes({"0/y": np.zeros(1 << 20)}), "more than 1000000 bytes"),
    ],
)
def test_a_hostile_or_damaged_file_is_refused(content, says, tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=says):
        read_npz(path, 1_000_000)


def test_the_golden_files_can_not_lie_outside_their_folder(tmp_path):
    import msgspec

    golden = record(Affine(), artifact(), INPUTS, tmp_path / "bundle")
    outside = msgspec.structs.replace(golden, inputs="../bundle/golden-inputs.npz")
    with pytest.raises(BadInput, match="leaves its folder"):
        check(outside, tmp_path / "bundle", Affine())


def test_inputs_without_outputs_are_a_damaged_bundle(tmp_path):
    golden = record(Affine(), artifact(), INPUTS, tmp_path)
    (tmp_path / golden.outputs).write_bytes(npz_bytes({"0/y": np.zeros(9)}))
    with pytest.raises(BadInput, match="same samples"):
        check(golden, tmp_path, Affine())
