"""The calibration file: carried whole, refused where it is damaged, of another kind, or impossible."""

import contextlib
import io
import zipfile

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.compile.quantise.calibration_file import header, read_calibration, write_calibration
from edgekiln.compile.quantise.observers import RULES, Observation, ranges
from edgekiln.errors import BadInput

ABOUT = header("digits", "a" * 64, "b" * 64, 40, {"onnx": "1.2", "numpy": "2.0"})


def observations():
    rng = np.random.default_rng(0)
    seen = {}
    for name, axis, shape in (("conv", 1, (1, 4, 6, 6)), ("flat", -1, (1, 8)), ("top", None, ())):
        seen[name] = Observation(axis=axis)
        for number in range(5):
            seen[name].add(np.asarray(rng.standard_normal(shape), np.float32), number)
    seen["never"] = Observation(0.0, 0.0)
    return seen


@pytest.fixture
def path(tmp_path):
    write_calibration(tmp_path / "calibration.npz", ABOUT, observations())
    return tmp_path / "calibration.npz"


def arrays_of(path):
    with np.load(path) as held:
        return {name: held[name] for name in held.files}


def test_a_file_brings_back_what_was_seen_and_of_what(path):
    found = read_calibration(path)
    assert found.header == ABOUT
    seen = observations()
    assert set(found.seen) == set(seen)
    for name, one in seen.items():
        again = found.seen[name]
        assert (again.lowest, again.highest, again.reach, again.axis) == (
            one.lowest,
            one.highest,
            one.reach,
            one.axis,
        )
        for field in ("counts", "log_counts", "halves"):
            assert np.array_equal(getattr(again, field), getattr(one, field))
        assert (again.channels is None) == (one.channels is None)
        if one.channels is not None:
            assert again.channels.n == one.channels.n
            assert np.array_equal(again.channels.lowest, one.channels.lowest)
            assert np.array_equal(again.channels.mean, one.channels.mean)
    for rule in RULES:
        given_ = {"percentile": 99.9}
        assert ranges(found.seen, rule, False, given_) == ranges(seen, rule, False, given_)


def test_the_same_observations_are_the_same_bytes_and_other_ones_have_another_hash(path, tmp_path):
    write_calibration(tmp_path / "b.npz", ABOUT, dict(reversed(observations().items())))
    assert path.read_bytes() == (tmp_path / "b.npz").read_bytes()
    first = read_calibration(path).sha256
    seen = observations()
    seen["flat"].add(np.ones((1, 8), np.float32))
    write_calibration(tmp_path / "b.npz", ABOUT, seen)
    assert read_calibration(tmp_path / "b.npz").sha256 != first


def test_what_was_read_can_be_observed_further_and_merged(path):
    seen = dict(read_calibration(path).seen)
    seen["conv"].add(np.full((1, 4, 6, 6), 1e5, np.float32))
    assert seen["conv"].highest == 1e5
    assert seen["flat"].merge(observations()["flat"]).counts.sum() == 2 * 40


CHANGES = {
    "another array": lambda a: a | {"more": np.zeros(3)},
    "an array less": lambda a: {k: v for k, v in a.items() if k != "halves"},
    "no header": lambda a: {k: v for k, v in a.items() if k != "header"},
    "a header that is no JSON": lambda a: a | {"header": np.frombuffer(b"{", np.uint8)},
    "a header of other fields": lambda a: a | {"header": np.frombuffer(b'{"schema": 1}', np.uint8)},
    "another type of counts": lambda a: a | {"counts": a["counts"].astype(np.float64)},
    "fewer bins": lambda a: a | {"counts": a["counts"][:, :100]},
    "negative counts": lambda a: a | {"counts": a["counts"] - 1},
    "a range that is NaN": lambda a: a | {"ends": a["ends"] * np.nan},
    "a range upside down": lambda a: a | {"ends": a["ends"][:, [1, 0, 2]]},
    "a reach that is no power of two": lambda a: a | {"ends": a["ends"] * [1, 1, 3]},
    "values beyond the reach": lambda a: a | {"ends": a["ends"] * [9, 9, 1]},
    "a name twice": lambda a: a | {"names": np.array(["conv"] * 4)},
    "names that are numbers": lambda a: a | {"names": np.arange(4)},
    "more channels than there are": lambda a: a | {"channel_sizes": a["channel_sizes"] * 2},
    "a negative number of channels": lambda a: a | {"channel_sizes": -a["channel_sizes"]},
    "channels of no value": lambda a: a | {"channel_n": a["channel_n"] * 0},
    "an axis that is none": lambda a: a | {"axes": a["axes"] + 5},
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_can_not_have_been_written_is_refused_with_a_cure(path, what):
    changed = CHANGES[what](arrays_of(path))
    np.savez_compressed(path, **changed)
    with pytest.raises(BadInput) as caught:
        read_calibration(path)
    assert "--data" in caught.value.cure


def test_a_file_of_another_version_says_so(path):
    held = arrays_of(path)
    said = msgspec.json.decode(held["header"].tobytes()) | {"schema": 2}
    np.savez(path, **(held | {"header": np.frombuffer(msgspec.json.encode(said), np.uint8)}))
    with pytest.raises(BadInput, match="it is of version 2, this program reads version 1"):
        read_calibration(path)


def test_pickled_objects_and_headers_that_claim_too_much_are_refused(path):
    np.savez(path, names=np.array([{"a": 1}], dtype=object))
    with pytest.raises(BadInput, match="pickled"):
        read_calibration(path)
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(data, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("counts.npy", data.getvalue())
    with pytest.raises(BadInput, match="bytes instead of"):
        read_calibration(path)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_no_changed_byte_gives_another_error(tmp_path_factory, at, value):
    folder = tmp_path_factory.mktemp("bytes")
    write_calibration(folder / "c.npz", ABOUT, observations())
    data = bytearray((folder / "c.npz").read_bytes())
    data[at % len(data)] = value
    (folder / "c.npz").write_bytes(data)
    with contextlib.suppress(BadInput):
        read_calibration(folder / "c.npz")


@pytest.mark.parametrize(("name", "content"), [("none.npz", None), ("c.txt", b"x"), ("c.npz", b"x")])
def test_a_file_that_is_missing_or_something_else_is_refused(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match="reading") as caught:
        read_calibration(tmp_path / name)
    assert caught.value.cure
