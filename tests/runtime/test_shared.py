"""Arrays that two processes see: what goes in comes out, and what does not lie there is refused."""

import mmap
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgekiln.errors import BadInput
from edgekiln.runtime.shared import Block, Placed, block

KINDS = ["f2", "f4", "f8", "i1", "u1", "i4", "i8", "?", "c8"]
SOME = st.dictionaries(
    st.text(max_size=8),
    st.sampled_from(KINDS).flatmap(lambda k: arrays.arrays(k, arrays.array_shapes(min_dims=0, min_side=0))),
    max_size=4,
)


@settings(deadline=None, max_examples=60)
@given(st.lists(SOME, min_size=1, max_size=4))
def test_what_one_side_puts_the_other_gets(rounds):
    mine = block("test")
    theirs = Block(os.dup(mine.handle))
    for given_arrays in rounds:
        found = theirs.get(mine.put(given_arrays), copy=True)
        assert list(found) == list(given_arrays)
        for name, value in given_arrays.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)
    mine.close()
    theirs.close()


def test_an_array_in_any_memory_layout_arrives_as_itself():
    mine = block("test")
    value = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for odd in (value.transpose(2, 0, 1), value[:, ::-1, ::2], np.asfortranarray(value)):
        np.testing.assert_array_equal(mine.get(mine.put({"x": odd}), copy=False)["x"], odd)
    mine.close()


def test_a_copy_outlives_the_next_put_and_a_view_does_not():
    mine = block("test")
    placed = mine.put({"x": np.zeros(4)})
    copy, view = mine.get(placed, copy=True)["x"], mine.get(placed, copy=False)["x"]
    mine.put({"x": np.ones(4)})
    assert copy.tolist() == [0] * 4
    assert view.tolist() == [1] * 4
    mine.close()
    assert view.tolist() == [1] * 4, "a view keeps the memory that it looks into"


def test_what_is_no_number_or_too_much_is_refused():
    mine = block("test", most_bytes=1 << 16)
    with pytest.raises(BadInput, match="not plain numbers"):
        mine.put({"x": np.array([object()])})
    with pytest.raises(BadInput, match="more than the 65536"):
        mine.put({"x": np.zeros(1 << 16, np.uint16)})
    mine.close()


@pytest.mark.parametrize(
    "placed",
    [
        Placed(name="x", dtype="<f4", shape=(4,), offset=mmap.PAGESIZE),
        Placed(name="x", dtype="<f4", shape=(1 << 40,), offset=0),
        Placed(name="x", dtype="<f4", shape=(-4,), offset=0),
        Placed(name="x", dtype="<f4", shape=(4,), offset=-16),
        Placed(name="x", dtype="O", shape=(4,), offset=0),
    ],
)
def test_what_does_not_lie_in_the_block_is_refused(placed):
    mine = block("test")
    mine.put({"x": np.zeros(4, np.float32)})
    with pytest.raises(BadInput, match="does not lie"):
        mine.get((placed,), copy=True)
    mine.close()


def test_nobody_can_cut_the_memory_under_the_other_side():
    mine = block("test")
    mine.put({"x": np.zeros(4)})
    with pytest.raises(PermissionError):
        os.ftruncate(mine.handle, 0)
    mine.close()
