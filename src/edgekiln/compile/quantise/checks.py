"""What can be wrong with calibration data and with the activations that were seen, told in sentences.

Each check is a ``records.Check``: passed, failed with what was found, or None where it could not be asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgekiln.compile.quantise.histogram import Observation
from edgekiln.compile.quantise.range_rules import range_of
from edgekiln.records import Check, Scalar

BEYOND_LIMIT = 0.1
SPREAD_LIMIT = 0.1
LEAST_VALUES = 8
NAMED = 3

_STEPS = 255
_FEW_STEPS = 16
_RARE = 1e-4
_UNCOMMON = 1e-2
_EXTREME = 1000.0
_SHOWN: tuple[tuple[str, dict[str, Scalar]], ...] = (
    ("minmax", {}),
    ("percentile", {"percentile": 99.99}),
    ("mse", {}),
    ("entropy", {}),
)


def observation_checks(seen: Mapping[str, Observation], samples: int) -> tuple[Check, ...]:
    """The checks that observations of ``samples`` samples allow."""
    return (enough_samples(seen, samples), living_channels(seen, samples), outliers(seen))


# ---------------------------------------------------------------- enough samples


def enough_samples(seen: Mapping[str, Observation], samples: int) -> Check:
    """Whether the ranges can be trusted, by two figures.

    Of unlike samples drawn as those of the field are, the share of the field's that goes beyond the highest
    (or lowest) value seen at a tensor is at most 1 - 0.05^(1/n), with 95 % confidence, whatever the
    distribution (Wilks 1941). And how far the ranges of even and odd samples differ says how far they still
    move.
    """
    beyond = 1 - 0.05 ** (1 / max(samples, 1))
    spreads = np.array([s for s in map(half_spread, seen.values()) if s is not None])
    detail = (
        f"{samples} samples: up to {beyond:.0%} of the field's may go beyond one end of a range (95 % "
        "confidence)"
    )
    passed = beyond <= BEYOND_LIMIT
    if samples > 1 and spreads.size:
        middle, wide = np.quantile(spreads, [0.5, 0.95])
        passed = passed and bool(middle <= SPREAD_LIMIT)
        detail += (
            f"; the ranges of one half differ from the other's by {middle:.1%} in the middle tensor of "
            f"{spreads.size}, by up to {wide:.0%} in 95 % of them"
        )
    if not passed:
        needed = int(np.ceil(np.log(0.05) / np.log(1 - BEYOND_LIMIT)))
        more = max(needed, 2 * samples)
        detail = f"too few calibration samples to trust: {detail}; give {more} or more, of all conditions"
    return Check(name="calibration samples", passed=passed, detail=detail)


def half_spread(seen: Observation) -> float | None:
    """How much of the range only one half of the samples saw: 0 alike, 1 nothing in common; None where one
    half saw nothing or the range is a point.
    """
    if not np.isfinite(seen.halves).all():
        return None
    (low, high), (other_low, other_high) = np.clip(seen.halves, [-np.inf, 0.0], [0.0, np.inf])
    whole = max(high, other_high) - min(low, other_low)
    common = min(high, other_high) - max(low, other_low)
    return None if whole == 0 else float(1 - common / whole)


# ---------------------------------------------------------------- channels


def living_channels(seen: Mapping[str, Observation], samples: int) -> Check:
    """Whether any channel of any tensor held one value throughout."""
    name = "calibration channels"
    if samples < 2:
        why = "one sample can't tell a constant channel from one that was not used"
        return Check(name=name, passed=None, detail=why)
    found = [(n, *_constant(o)) for n, o in seen.items()]
    found = [row for row in found if row[1]]
    if not found:
        return Check(name=name, passed=True, detail="no channel is constant over all samples")
    found.sort(key=lambda row: (-row[1] / row[3], row[0]))
    rows = [
        f"'{n}' {constant} of {channels} ({'all' if dead == constant else dead} zero)"
        for n, constant, dead, channels in found
    ]
    total = f"{len(found)} tensor{'s have' if len(found) > 1 else ' has'} channels that held one value"
    detail = f"{total} over {samples} samples: {_some(rows)}; dead weight, or data that never used them"
    return Check(name=name, passed=False, detail=detail)


def _constant(seen: Observation) -> tuple[int, int, int]:
    """How many channels were constant, how many of these zero, and how many there are."""
    channels = seen.channels
    if channels is None or channels.n < LEAST_VALUES:
        return 0, 0, 0
    constant = channels.constant
    return int(constant.sum()), int((constant & (channels.largest == 0)).sum()), constant.size


# ---------------------------------------------------------------- outliers


def outliers(seen: Mapping[str, Observation]) -> Check:
    """Whether a few values far from all others stretch the range of a tensor: what each rule made of it.

    A tensor is told where one value in 10,000 leaves all others fewer than 16 of 255 steps, or one in a
    hundred is a thousand times beyond them.
    """
    rows = []
    for name, one in seen.items():
        core = _core(one, _RARE, _STEPS / _FEW_STEPS) or _core(one, _UNCOMMON, _EXTREME)
        if core:
            rows.append((core / max(-one.lowest, one.highest), name, _outlier(name, one, core)))
    if not rows:
        return Check(name="calibration outliers", passed=True, detail="no value lies far from all others")
    rows.sort()
    total = f"{len(rows)} tensor{'s hold' if len(rows) > 1 else ' holds'} values far from all others"
    detail = f"{total}: {_some([text for *_, text in rows])}; choose a rule that clips, or mend the source"
    return Check(name="calibration outliers", passed=False, detail=detail)


def _core(seen: Observation, rare: float, times: float) -> float:
    """The magnitude of all but ``rare`` of the values, where the largest is so many ``times`` it, else 0."""
    core = seen.core(1 - rare)
    return core if core > 0 and max(-seen.lowest, seen.highest) > times * core else 0.0


def _outlier(name: str, seen: Observation, core: float) -> str:
    wide = core * _STEPS / _FEW_STEPS
    share = seen.beyond(wide)
    told = f"{share:.2g}" if share else "too few to be counted"
    made = []
    for rule, params in _SHOWN:
        low, high = range_of(seen, rule, False, params)
        steps = min(_STEPS, _STEPS * 2 * core / (high - low)) if high > low else 0.0
        told_steps = f"{steps:.0f}" if steps >= 10 else f"{steps:.2g}"
        made.append(f"{rule} [{low:.3g}, {high:.3g}] leaves the others {told_steps} of {_STEPS} steps")
    ends = f"{seen.lowest:.3g} to {seen.highest:.3g}"
    return f"'{name}' runs from {ends}, of which a share of {told} beyond ±{wide:.3g}: {', '.join(made)}"


# ---------------------------------------------------------------- data of another domain


def confidence(calibration: Sequence[float], labelled: Sequence[float]) -> Check:
    """Whether the float model is about as sure of the calibration samples as of those it should know.

    Both are its top-1 probabilities, one a sample; ``labelled`` may be empty.
    """
    name = "calibration domain"
    if not calibration:
        return Check(name=name, passed=None, detail="no calibration sample was looked at")
    sure = float(np.mean(np.asarray(calibration) >= 0.5))
    detail = f"calibration samples: the float model is {_sureness(calibration)}"
    passed = sure >= 0.5
    if labelled:
        detail += f"; labelled samples: {_sureness(labelled)}"
        passed = _alike(calibration, labelled)
    if not passed:
        detail += (
            ". If these samples are not like those it was trained on, ranges and agreement found on them "
            "may not hold in the field"
        )
    return Check(name=name, passed=passed, detail=detail)


def _sureness(values: Sequence[float]) -> str:
    table = np.asarray(values)
    return (
        f"at least 0.5 sure of {int((table >= 0.5).sum())} of {table.size} "
        f"(top-1 probability: mean {table.mean():.2f}, median {np.median(table):.2f})"
    )


def _alike(calibration: Sequence[float], labelled: Sequence[float]) -> bool:
    """Whether chance can explain that fewer calibration samples are sure (two proportions, 95 %)."""
    a, b = np.asarray(calibration) >= 0.5, np.asarray(labelled) >= 0.5
    together = (a.sum() + b.sum()) / (a.size + b.size)
    spread = np.sqrt(together * (1 - together) * (1 / a.size + 1 / b.size))
    return bool(b.mean() - a.mean() <= 1.96 * spread)


def _some(rows: Sequence[str]) -> str:
    more = len(rows) - NAMED
    return "; ".join(rows[:NAMED]) + (f"; and {more} more" if more > 0 else "")
