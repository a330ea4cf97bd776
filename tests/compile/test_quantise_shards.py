"""Several processes observe what one does: bit for bit where order does not round, with the same refusals."""

import numpy as np
import pytest

from edgekiln.compile.quantise.observers import observe
from edgekiln.compile.quantise.shards import observe_in_processes
from edgekiln.errors import ConversionFailed, MachineFault


@pytest.mark.parametrize(("n", "processes"), [(31, 2), (2, 3), (5, 1)])
def test_processes_observe_what_one_pass_does(digits, n, processes):
    samples = digits.samples(0, n)
    whole = observe(digits.graph, samples, 1)
    parts = observe_in_processes(digits.graph, iter(samples), 2, processes)
    assert set(parts) == set(whole)
    for name, one in whole.items():
        other = parts[name]
        assert (other.lowest, other.highest, other.reach) == (one.lowest, one.highest, one.reach)
        for field in ("counts", "log_counts", "halves"):
            assert np.array_equal(getattr(other, field), getattr(one, field))
        if one.channels is not None:
            assert np.array_equal(other.channels.lowest, one.channels.lowest)
            assert np.array_equal(other.channels.highest, one.channels.highest)
            np.testing.assert_allclose(other.channels.squares, one.channels.squares, rtol=1e-9)


def test_a_broken_sample_is_named_by_its_place_in_the_whole(digits):
    samples = [{"x": s["x"].copy()} for s in digits.samples(0, 40)]
    samples[6]["x"][0, 0, 0, 0] = np.nan
    with pytest.raises(ConversionFailed, match="'x' holds NaN or infinity on sample 7") as caught:
        observe_in_processes(digits.graph, samples, 2, 2)
    assert caught.value.cure


def test_a_process_that_dies_is_the_machines_fault(digits, tmp_path):
    (tmp_path / "graph.onnx").write_bytes(b"no graph")
    with pytest.raises(MachineFault, match="ended with code 1") as caught:
        observe_in_processes(tmp_path / "graph.onnx", digits.samples(0, 20), 2, 2)
    assert "calibrate_processes" in caught.value.cure


def test_no_sample_is_refused_as_ever(digits):
    with pytest.raises(ConversionFailed, match="there is no sample"):
        observe_in_processes(digits.graph, [], 2, 2)
