"""How many tokens the latency left will buy: a cost model of encoder and decoder, fitted to measurements.

Encoder and decoder are measured together, at several numbers of tokens. The median is fitted as
``a + b n + c n^2`` with no coefficient below 0 (a call costs something, linear layers go with n, attention
with n^2), by least squares of the relative errors, so that it can only rise with n. The bound is the same
form fitted to a percentile, raised until no measured point's own percentile lies above it.

A model holds for the machine, the runtime's version and the number of threads that it was measured with; what
differs elsewhere is an error, or said in the answer where the caller takes it nevertheless.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import BadInput
from edgekiln.files import write_json
from edgekiln.prove.environment import fingerprint, fitness, version_of
from edgekiln.records import Record, Scalar

DOING = "fitting a cost model"
TERMS = 3
MACHINE = ("cpu_model", "arch", "cpus_usable", "cpu_quota")
"""What tells machines apart here; kernel, memory and Python change without changing the times much."""
_LIMIT_BYTES = 1 << 20

Coefficients = tuple[float, float, float]


class LatencyTooShort(BadInput):
    """Not even the least bucket fits; ``bucket`` is that one, ``needs_ms`` its bound with the overhead."""

    def __init__(self, left_ms: float, bucket: int, needs_ms: float, percentile: float) -> None:
        self.bucket, self.needs_ms = bucket, needs_ms
        super().__init__(
            "choosing the number of tokens for",
            f"{left_ms:.3g} ms",
            f"the least, {bucket} tokens, is predicted to take up to {needs_ms:.3g} ms (P{percentile:g})",
            f"Allow at least {math.ceil(needs_ms * 10) / 10:g} ms",
        )


class OtherMachine(BadInput):
    """A cost model from elsewhere; ``differences`` says in what."""

    def __init__(self, differences: tuple[str, ...]) -> None:
        self.differences = differences
        super().__init__(
            "using",
            "a cost model",
            f"it was measured elsewhere: {'; '.join(differences)}",
            "Measure one here, or allow that it is from elsewhere: its times are then a guess",
        )


class Point(Record, frozen=True, kw_only=True):
    """Latencies in ms of whole calls with ``tokens`` tokens, in the order in which they were measured."""

    tokens: int
    latency_ms: tuple[float, ...]


class Measured(Record, frozen=True, kw_only=True):
    """What a model keeps of a point: ``n`` samples, their median and percentile in ms."""

    tokens: int
    n: int
    median_ms: float
    percentile_ms: float


class Origin(Record, frozen=True, kw_only=True):
    """Where and with what was measured. ``machine`` holds the keys of MACHINE that the machine tells;
    ``unfit`` what made it unfit to measure on."""

    device: str
    when: str
    runtime: str
    runtime_version: str
    threads: int
    machine: dict[str, Scalar]
    unfit: tuple[str, ...] = ()


class LatencyModel(Record, frozen=True, kw_only=True):
    """Coefficients of 1, n and n^2 in ms for the median and for the bound at ``percentile``.

    ``residual_rms`` and ``residual_worst`` are relative errors of the median's fit at the points (0.05 is
    5 %); ``left_out_worst`` is the worst at a point between the first and the last that the fit did not see,
    None with fewer than 5 points.
    """

    schema: Literal[1] = 1
    what: str
    origin: Origin
    percentile: float
    median: Coefficients
    bound: Coefficients
    residual_rms: float
    residual_worst: float
    left_out_worst: float | None
    points: tuple[Measured, ...]

    def __post_init__(self) -> None:
        figures = (*self.median, *self.bound, self.residual_rms, self.residual_worst)
        counts = [p.tokens for p in self.points]
        if not all(math.isfinite(f) and f >= 0 for f in figures):
            raise ValueError("a coefficient or an error is below 0 or not finite")
        if len(counts) < TERMS or counts != sorted(set(counts)) or counts[0] < 1:
            raise ValueError(f"fewer than {TERMS} points, or not in the order of their tokens")
        if not 50 <= self.percentile < 100:
            raise ValueError("the percentile is not in 50..100")

    def predicted_ms(self, tokens: int) -> float:
        """The typical latency of a call with ``tokens`` tokens: never falls with ``tokens``."""
        return _value(self.median, tokens)

    def bound_ms(self, tokens: int) -> float:
        """What a call stays below at the model's percentile; below the least measured number of tokens, that
        one's. Never below ``predicted_ms``, never falls with ``tokens``."""
        at = max(tokens, self.points[0].tokens)
        return max(_value(self.bound, at), _value(self.median, at))


class BucketChoice(Record, frozen=True, kw_only=True):
    """The bucket that fits, what its call takes and what at most (ms, without overhead; predicted, from
    ``percentile``), and what a reader must know: buckets left out, a model from elsewhere."""

    bucket: int
    predicted_ms: float
    bound_ms: float
    percentile: float
    how: Literal["predicted"] = "predicted"
    notes: tuple[str, ...] = ()


# ---------------------------------------------------------------- the fit


def fit(
    points: Sequence[Point], origin: Origin, *, percentile: float = 95, what: str = "encoder + decoder"
) -> LatencyModel:
    """The cost model of ``points``. Reads no clock and no file.

    Raises BadInput for fewer than 3 numbers of tokens, for one that stands twice, for a latency that is
    none, and for fewer samples than the percentile takes (20 for P95, 100 for P99).
    """
    if not 50 <= percentile < 100:
        raise BadInput(DOING, f"at P{percentile:g}", "it is not in 50..100", "Give a percentile such as 95")
    ordered = sorted(points, key=lambda p: p.tokens)
    counts = [p.tokens for p in ordered]
    if len(counts) < TERMS or len(set(counts)) != len(counts):
        why = f"it takes {TERMS} different numbers of tokens, each once; given: {counts}"
        raise BadInput(DOING, f"{len(counts)} points", why, "Measure at each bucket")
    measured = [_measured(p, percentile) for p in ordered]
    tokens = np.array(counts, np.float64)
    medians = np.array([m.median_ms for m in measured])
    percentiles = np.array([m.percentile_ms for m in measured])
    median = _form(tokens, medians)
    off = np.abs(_values(median, tokens) / medians - 1)
    bound = _form(tokens, percentiles)
    # A hair above, so that rounding does not leave the point that decides below its own percentile.
    bound = bound * max(1.0, float(np.max(percentiles / _values(bound, tokens)))) * (1 + 1e-12)
    left_out = [_left_out(tokens, medians, i) for i in range(1, len(tokens) - 1)]
    return LatencyModel(
        what=what,
        origin=origin,
        percentile=float(percentile),
        median=_coefficients(median),
        bound=_coefficients(bound),
        residual_rms=float(np.sqrt(np.mean(off**2))),
        residual_worst=float(off.max()),
        left_out_worst=max(left_out) if len(tokens) > TERMS + 1 else None,
        points=tuple(measured),
    )


def _measured(point: Point, percentile: float) -> Measured:
    to, data = f"{point.tokens} tokens", np.asarray(point.latency_ms, np.float64)
    least = math.ceil(100 / (100 - percentile) - 1e-9)
    if point.tokens < 1:
        raise BadInput(DOING, to, "a call takes at least one token", "Give the number of tokens")
    if len(data) < least:
        why = f"{len(data)} samples do not reach P{percentile:g}; it takes at least {least}"
        raise BadInput(DOING, to, why, "Measure more calls, or take a lower percentile")
    if not (np.isfinite(data).all() and (data > 0).all()):
        raise BadInput(DOING, to, "a latency is not above 0 or not finite", "Measure again")
    return Measured(
        tokens=point.tokens,
        n=len(data),
        median_ms=float(np.median(data)),
        percentile_ms=float(np.quantile(data, percentile / 100)),
    )


def _form(tokens: NDArray[np.float64], ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """The coefficients (3,) >= 0 of 1, n, n^2 with the least squares of relative errors.

    Exact: the answer is the unrestricted one on the terms that it uses, so it is the best of the seven sets
    of terms that need no negative coefficient. (``forecast.fitting.non_negative`` goes by coordinates; over a
    narrow range of n the terms are so alike that it does not arrive.)
    """
    unit = tokens.max()
    shares = np.vander(tokens / unit, TERMS, increasing=True) / ms[:, None]
    best, least = np.zeros(TERMS), math.inf
    for size in range(1, TERMS + 1):
        for terms in map(list, combinations(range(TERMS), size)):
            found = np.linalg.lstsq(shares[:, terms], np.ones(len(ms)), rcond=None)[0]
            error = float(np.sum((shares[:, terms] @ found - 1) ** 2))
            if (found >= 0).all() and error < least:
                best, least = np.zeros(TERMS), error
                best[terms] = found
    scaled: NDArray[np.float64] = best / unit ** np.arange(TERMS)
    return scaled


def _left_out(tokens: NDArray[np.float64], ms: NDArray[np.float64], at: int) -> float:
    """The relative error at one point of the fit to all others."""
    form = _form(np.delete(tokens, at), np.delete(ms, at))
    return abs(float(_values(form, tokens[at : at + 1])[0]) / float(ms[at]) - 1)


def _values(coefficients: NDArray[np.float64], tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.vander(tokens, TERMS, increasing=True) @ coefficients


def _coefficients(found: NDArray[np.float64]) -> Coefficients:
    a, b, c = (float(v) for v in found)
    return a, b, c


def _value(coefficients: Coefficients, tokens: int) -> float:
    a, b, c = coefficients
    return a + tokens * (b + tokens * c)


# ---------------------------------------------------------------- the choice


def bucket_for(
    latency_left_ms: float,
    model: LatencyModel,
    buckets: Sequence[int],
    overhead_ms: float = 0.0,
    *,
    elsewhere: bool = False,
    here: Origin | None = None,
) -> BucketChoice:
    """The largest of ``buckets`` (tokens) whose bound and ``overhead_ms`` fit into ``latency_left_ms``.

    ``overhead_ms`` is what else the latency has to hold: texture array, scorers, allocation, gather. Buckets
    beyond the largest number of tokens that was measured are left out, and that is noted. ``here`` is what
    runs now (default: this machine, with the model's runtime and threads); ``elsewhere`` takes a model that
    was measured on another, and notes it.

    Raises LatencyTooShort where not even the least fits, OtherMachine for a model from elsewhere, BadInput
    for no bucket or none that was measured, and for times that are none.
    """
    doing = "choosing the number of tokens for"
    if math.isnan(latency_left_ms) or not 0 <= overhead_ms < math.inf:
        why = f"{latency_left_ms} ms with {overhead_ms} ms overhead is no time"
        raise BadInput(doing, "a latency", why, "Give milliseconds")
    notes = differences(model, here)
    if notes and not elsewhere:
        raise OtherMachine(notes)
    notes = tuple(f"the cost model is from elsewhere: {n}" for n in notes)
    most = model.points[-1].tokens
    known = sorted({b for b in buckets if 0 < b <= most})
    if beyond := sorted({b for b in buckets if b > most}):
        listed = ", ".join(map(str, beyond))
        notes += (f"left out, as no more than {most} tokens were measured: {listed}",)
    if not known:
        why = f"none of the buckets {list(buckets)} is in what was measured, up to {most} tokens"
        raise BadInput(doing, f"{latency_left_ms} ms", why, "Measure at the buckets")
    fitting = [b for b in known if overhead_ms + model.bound_ms(b) <= latency_left_ms]
    if not fitting:
        needs = overhead_ms + model.bound_ms(known[0])
        raise LatencyTooShort(latency_left_ms, known[0], needs, model.percentile)
    return BucketChoice(
        bucket=fitting[-1],
        predicted_ms=model.predicted_ms(fitting[-1]),
        bound_ms=model.bound_ms(fitting[-1]),
        percentile=model.percentile,
        notes=notes,
    )


def differences(model: LatencyModel, here: Origin | None = None) -> tuple[str, ...]:
    """In what ``here`` is not what ``model`` was measured with, one sentence part each; () where it is.

    Default: this machine and the installed version of the model's runtime, read once in a process.
    """
    was = model.origin
    now = _now(was.runtime, was.threads) if here is None else here
    pairs: list[tuple[str, Scalar | None, Scalar | None]] = [
        (key.replace("_", " "), was.machine.get(key), now.machine.get(key)) for key in MACHINE
    ]
    pairs += [
        ("runtime", f"{was.runtime} {was.runtime_version}", f"{now.runtime} {now.runtime_version}"),
        ("threads", was.threads, now.threads),
    ]
    return tuple(f"{name} was {_told(old)}, here {_told(new)}" for name, old, new in pairs if old != new)


def _told(value: Scalar | None) -> str:
    return "not known" if value is None else str(value)


@functools.lru_cache(maxsize=8)
def _now(runtime: str, threads: int) -> Origin:
    return _origin("host", runtime, version_of(runtime) or "not installed", threads, ())


# ---------------------------------------------------------------- the clock, the machine, the file


def measure(
    call: Callable[[int], object],
    tokens: Sequence[int],
    *,
    samples: int = 100,
    warmup: int = 5,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Point, ...]:
    """Latencies of ``call(n)`` for each n of ``tokens``, ``samples`` each, after ``warmup`` calls each.

    The numbers of tokens take turns, in an order that is shuffled anew each round (``seed``), so that what
    slows the machine for a while slows all of them. ``clock`` gives seconds.
    """
    if samples < 1 or warmup < 0 or not tokens or len(set(tokens)) != len(tokens):
        why = "it takes one sample at least, and each number of tokens once"
        raise BadInput("measuring", f"{samples} samples at {list(tokens)} tokens", why, "Change them")
    for count in tokens:
        for _ in range(warmup):
            call(count)
    random = np.random.default_rng(seed)
    found: dict[int, list[float]] = {count: [] for count in tokens}
    for _ in range(samples):
        for place in random.permutation(len(tokens)):
            count = tokens[int(place)]
            started = clock()
            call(count)
            found[count].append((clock() - started) * 1e3)
    return tuple(Point(tokens=count, latency_ms=tuple(ms)) for count, ms in found.items())


def origin(
    runtime: str, threads: int, *, device: str = "host", unfit: tuple[str, ...] | None = None
) -> Origin:
    """This machine now, with the installed version of the package ``runtime``. Raises BadInput without it."""
    version = version_of(runtime)
    if version is None:
        why = "no such package is installed"
        raise BadInput("describing", f"the runtime {runtime}", why, "Give the name of its package")
    return _origin(device, runtime, version, threads, fitness(look_seconds=0.0) if unfit is None else unfit)


def _origin(device: str, runtime: str, version: str, threads: int, unfit: tuple[str, ...]) -> Origin:
    told = fingerprint()
    return Origin(
        device=device,
        when=time.strftime("%Y-%m-%d", time.gmtime()),
        runtime=runtime,
        runtime_version=version,
        threads=threads,
        machine={key: told[key] for key in MACHINE if key in told},
        unfit=unfit,
    )


def save(model: LatencyModel, path: Path) -> None:
    """Write ``model`` as JSON, whole or not at all."""
    write_json(path, model)


def read(path: Path) -> LatencyModel:
    """The model in a file of ``save``. Raises BadInput for a file that is none, or of another version."""
    doing, cure = "reading a cost model", "Give a file that this version wrote, or measure anew"
    try:
        if path.stat().st_size > _LIMIT_BYTES:
            raise BadInput(doing, path, "it is larger than 1 MB", cure)
        return msgspec.json.decode(path.read_bytes(), type=LatencyModel)
    except (OSError, msgspec.DecodeError) as error:
        raise BadInput(doing, path, str(error), cure) from error
