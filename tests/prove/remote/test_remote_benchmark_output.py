"""What benchmark programs print, in the forms that their sources give it, and anything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.prove.remote.benchmark_output import benchmark_model, perf_test

OLD = """STARTING!
Loaded model mobilenet.tflite
Initialized session in 17.187ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
count=1 curr=3512391

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=50 first=2990275 curr=2913402 min=2727568 max=3189954 avg=2.95034e+06 std=109798

Inference timings in us: Init: 17187, First inference: 3512391, Warmup (avg): 3.51e+06, Inference (avg): 2e+06
Memory footprint delta from the start of the tool (MB): init=4.2 overall=46
"""
NEW = """INFO: count=9 first=87112 curr=51629 min=51629 max=87112 avg=58147.4 std=1 p5=5 median=51962 p95=9

INFO: count=1000 first=52162 curr=49785 min=49088 max=686105 avg=63743.2 std=6 p5=49 median=51891 p95=68628

INFO: Inference timings in us: Init: 119515, First inference: 87112, Warmup (avg): 5.8, Inference (avg): 6.3
INFO: Overall peak memory footprint (MB) via periodic monitoring: 93.5
INFO: Operator-wise Profiling Info for Regular Benchmark Runs:
Timings (microseconds): count=1 curr=354176
"""
PERF = """Session creation time cost: 0.217932 s
First inference time cost: 196 ms
Total inference time cost: 0.49481 s
Total inference requests: 5
Average inference time cost{total}: 98.9 ms
Total inference run time: 0.494854 s
Peak working set size: 271122432 bytes
Min Latency: 0.0958204 s
P50 Latency: 0.0995 s
P90 Latency: 0.1015 s
P95 Latency: 0.1016 s
P99 Latency: 0.1017 s
P999 Latency: 0.2 s
"""


def test_an_old_benchmark_model_tells_no_percentiles() -> None:
    found = benchmark_model(OLD)
    assert found.n == 50
    assert found.mean_ms == pytest.approx(2950.34)
    assert (found.p50_ms, found.p95_ms, found.p99_ms, found.peak_bytes) == (None, None, None, None)
    assert found.load_ms == pytest.approx(17.187)
    assert found.first_ms == pytest.approx(3512.391)
    assert found.grown_bytes == 46 << 20
    assert found.unread == ""


def test_a_new_one_does_and_its_profile_is_not_taken_for_the_timing() -> None:
    found = benchmark_model(NEW)
    assert found.n == 1000
    assert found.mean_ms == pytest.approx(63.7432)
    assert found.p50_ms == pytest.approx(51.891)
    assert found.p95_ms == pytest.approx(68.628)
    assert found.peak_bytes == 93.5 * 2**20


@pytest.mark.parametrize("total", ["", " total"])
def test_perf_test_in_both_spellings(total: str) -> None:
    found = perf_test(PERF.format(total=total))
    assert (found.n, found.mean_ms, found.first_ms, found.peak_bytes) == (5, 98.9, 196.0, 271122432.0)
    assert found.p50_ms == pytest.approx(99.5)
    assert found.p95_ms == pytest.approx(101.6)
    assert found.p99_ms == pytest.approx(101.7)
    assert found.load_ms == pytest.approx(217.932)


def test_the_result_file_holds_every_call_and_statistics_behind_them() -> None:
    lines = "a,b,0.010,100,50,0\na,b,0.020,100,50,1\n\nMin Latency: 0.010 s\n"
    assert perf_test("", lines).samples_ms == (10.0, 20.0)


@pytest.mark.parametrize("line", ["m,zero,100,50,2", "m,-1,100,50,2", "m,nan,100,50,2", "0.5", "m,0,1,1,1"])
def test_half_a_series_is_none(line: str) -> None:
    assert perf_test("", f"m,0.01,100,50,1\n{line}\n").samples_ms == ()


@given(st.text(max_size=200))
def test_anything_else_gives_no_figure_and_stays_word_for_word(text: str) -> None:
    for parse in (benchmark_model, perf_test):
        found = parse(text)
        if found.mean_ms is None and found.p50_ms is None and not found.samples_ms:
            assert found.unread == text


def test_a_run_that_ended_in_its_warm_up_has_no_latency() -> None:
    found = benchmark_model("INFO: count=1 curr=13576\nERROR: out of memory\n")
    assert found.mean_ms is None
    assert "out of memory" in found.unread
