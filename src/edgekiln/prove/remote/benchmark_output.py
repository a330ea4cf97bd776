"""What the runtimes' own benchmark programs print, as figures.

``benchmark_model`` (TensorFlow Lite, LiteRT; tools/benchmark/benchmark_model.cc), microseconds, each line
with ``INFO: `` before it or not:

    count=50 first=9 curr=8 min=7 max=9 avg=8.1 std=1 p5=7 median=8 p95=9     (the last three: from 2024 on)
    Inference timings in us: Init: 5579, First inference: 13576, Warmup (avg): 9.2, Inference (avg): 8.1
    Memory footprint delta from the start of the tool (MB): init=6.4 overall=109.8        (MB are 2^20 bytes)
    Overall peak memory footprint (MB) via periodic monitoring: 93.2

Of the lines with ``count=`` the last before the summary is that of the timed calls, the one before it that of
the warm-up.

``onnxruntime_perf_test`` (onnxruntime/test/perftest/performance_runner.cc), seconds but for what says else:

    Session creation time cost: 0.2179 s
    First inference time cost: 196 ms
    Total inference requests: 5
    Average inference time cost: 98.96 ms          (newer: "... cost total: 98.96 ms")
    Peak working set size: 271122432 bytes
    P50 Latency: 0.0995 s                          (P90, P95, P99, P999)

and one line per call into its result file: model, seconds, peak bytes, CPU %, number.
"""

from __future__ import annotations

import math
import re

from edgekiln.records import Record

_NUMBER = r"([0-9][0-9.]*(?:[eE][+-]?[0-9]+)?)"
MOST_TEXT = 20_000
_MEBI = 1 << 20


class Parsed(Record, frozen=True, kw_only=True):
    """Figures of one run; None is not told. ``samples_ms`` only where the program gives every call.

    ``unread`` is the output, word for word, where no latency was found in it.
    """

    n: int | None = None
    samples_ms: tuple[float, ...] = ()
    mean_ms: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    peak_bytes: float | None = None
    grown_bytes: float | None = None
    unread: str = ""


def benchmark_model(text: str) -> Parsed:
    """The output of TensorFlow Lite's or LiteRT's ``benchmark_model``."""
    before, summary, _ = text.partition("Inference timings in us:")
    lines = re.findall(r"(?:^|\s)count=(\d{1,9}) ([^\n]*)", before)
    fields: dict[str, str] = {}
    count = None
    if lines and (summary or len(lines) > 1):
        count, rest = int(lines[-1][0]), lines[-1][1]
        fields = dict(re.findall(rf"(\w+)={_NUMBER}", rest))
    mean = _scaled(fields.get("avg") or fields.get("curr"), 1e-3)  # of equal calls it prints one
    mean = _first(rf"Inference \(avg\): {_NUMBER}", text, 1e-3) if mean is None else mean
    return Parsed(
        n=count,
        mean_ms=mean,
        p50_ms=_scaled(fields.get("median"), 1e-3),
        p95_ms=_scaled(fields.get("p95"), 1e-3),
        load_ms=_first(rf"timings in us: Init: {_NUMBER}", text, 1e-3),
        first_ms=_first(rf"First inference: {_NUMBER}", text, 1e-3),
        peak_bytes=_first(rf"Overall peak memory footprint \(MB\)[^:\n]*: {_NUMBER}", text, _MEBI),
        grown_bytes=_first(rf"Memory footprint delta[^\n]* overall={_NUMBER}", text, _MEBI),
        unread="" if mean is not None else text[:MOST_TEXT],
    )


def perf_test(text: str, result_file: str = "") -> Parsed:
    """The output of ``onnxruntime_perf_test``, and its result file where there is one."""
    samples = _samples(result_file)
    mean = _first(rf"Average inference time cost(?: total)?: {_NUMBER} ms", text, 1.0)
    p50 = _first(rf"\bP50 Latency: {_NUMBER} s", text, 1e3)
    requests = _first(rf"Total inference requests: {_NUMBER}", text, 1.0)
    known = bool(samples) or mean is not None or p50 is not None
    return Parsed(
        n=len(samples) or (None if requests is None else int(requests)),
        samples_ms=samples,
        mean_ms=mean,
        p50_ms=p50,
        p95_ms=_first(rf"\bP95 Latency: {_NUMBER} s", text, 1e3),
        p99_ms=_first(rf"\bP99 Latency: {_NUMBER} s", text, 1e3),
        load_ms=_first(rf"Session creation time cost: {_NUMBER} s", text, 1e3),
        first_ms=_first(rf"First inference time cost: {_NUMBER} ms", text, 1.0),
        peak_bytes=_first(rf"Peak working set size: {_NUMBER} bytes", text, 1.0),
        unread="" if known else text[:MOST_TEXT],
    )


def _samples(result_file: str) -> tuple[float, ...]:
    """The seconds of each call, in ms; () where a line is not as expected: half of a series is none."""
    found = []
    for line in result_file.splitlines():
        if not line.strip():
            break  # statistics follow
        fields = line.split(",")
        value = _scaled(fields[-4], 1e3) if len(fields) >= 5 else None
        if value is None or value <= 0:
            return ()
        found.append(value)
    return tuple(found)


def _first(pattern: str, text: str, factor: float) -> float | None:
    found = re.search(pattern, text)
    return None if found is None else _scaled(found[1], factor)


def _scaled(text: str | None, factor: float) -> float | None:
    try:
        value = float(text or "") * factor
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
