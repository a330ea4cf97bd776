"""How warm the machine gets from what it does: a thermal model that learns while the machine runs.

The model is the network of resistors and capacitors that data sheets of heat sinks use, in Foster's form: the
temperature is the surroundings' plus the rise over each of one or two stages, and a stage is a first-order
lag with resistance R (K/W) and capacity C (J/K), so that ``rise' = (P R - rise) / (R C)`` (JEDEC JESD51-14;
V. Szekely, "Identification of RC networks by deconvolution", 1998). One stage alone is
``T' = (P R + T_ambient - T) / (R C)``.

It is fitted by output error, over a bank of time constants: for a given ``tau = R C`` the temperature is
linear in the lagged power, so each pair of time constants in ``BANK`` has its own least squares for the
surroundings, both resistances and what was left of the start. They are recursive in information form with
exponential forgetting (L. Ljung, "System Identification", 1999, 11.2); the prior is never forgotten, so a
constant input lets the uncertainty grow back to the prior and no further (no wind-up). The bank is weighed by
its forgotten sums of squares (P. Maybeck's multiple-model estimation), and members with a negative resistance
count for nothing: no stage cools by being heated. The lagged power has no measurement noise of the
temperature in it, so the estimate isn't biased by it as a regression on differences of the temperature would
be.

Where no sensor of power is there, the share of the time in which the engine computed stands in for it: R is
then the rise in K of a busy machine, and ``ambient_c`` the temperature of an idle one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.records import Record

Floats: TypeAlias = NDArray[np.float64]
Input: TypeAlias = Literal["power", "busy"]

FAST_S = (0.0, 3.0)
SLOW_S = tuple(10.0 * 1.3**n for n in range(21))
"""Time constants of the die and of what it sits on. A fast one of 0 is a model of one stage."""
BANK: Floats = np.array([(f, s) for f in FAST_S for s in SLOW_S if s > 2.5 * f or f == 0.0])
LONGEST_GAP_S = 30.0
"""After a hole so long nobody knows what was computed in it: the lags start anew, what was learned stays."""
CORRELATION_S = 4.0
"""Errors nearer in time than this tell the same thing twice: ambient air, rounding, what the model leaves
out."""
FORGET_S = 1500.0
NOISE_C = 0.5
"""The least error of a temperature that is believed: sensors round to as much."""
BELIEF = 20.0
"""So many samples is ``NOISE_C`` worth as what is known of the error before the first."""
PRIOR_AMBIENT_C, PRIOR_AMBIENT_SD_C = 30.0, 15.0
PRIOR_RESISTANCE_SD = {"power": 12.0, "busy": 60.0}
LEAST_C, MOST_C = -40.0, 150.0
LEAST_SPAN_SHARE = 0.2
"""An input that moved by less than this share of its highest has taught nothing about its effect."""
LEAST_SAMPLES = 10
TRUST_SD_C = 4.0
TRUST_HORIZON_S = 30.0
_STAGES: Floats = np.stack([BANK[:, 0] > 0.0, np.ones(len(BANK))], axis=1)
"""Shape (M, 2): 1 for a stage that a member has, else 0."""
_TERMS = 5
"""Surroundings, fast and slow stage, and what is left of each stage's start."""


@dataclass(frozen=True, slots=True)
class Thermal:
    """What was learned so far. Arrays have a row for each of the M pairs of time constants in ``BANK``.

    ``lags`` (M, 2) are the lagged inputs, ``left`` (M, 2) what is left of the unknown start; ``information``
    (M, 5, 5), ``moment`` (M, 5) and ``energy`` are the sums of squares, ``mass`` the samples in them that
    count as independent. ``theta`` and ``weights`` (M,) are the
    estimate. ``at_s`` is None before the first sample. ``clock_errors`` counts times that did not go on.
    """

    of: Input
    lags: Floats
    left: Floats
    information: Floats
    moment: Floats
    energy: Floats
    theta: Floats
    covariance: Floats
    weights: Floats
    mass: float = 0.0
    at_s: float | None = None
    samples: int = 0
    temperature_c: float = 0.0
    last_input: float = 0.0
    lowest_input: float = math.inf
    highest_input: float = -math.inf
    clock_errors: int = 0


class Fitted(Record, frozen=True, kw_only=True):
    """The estimate for people: the likeliest pair of stages, and what is known of the whole.

    ``resistance`` is K per unit of input of all stages together (steady state) with its standard deviation
    over the bank; ``time_constants_s``, ``resistances`` and ``capacities`` are of the likeliest member, fast
    stage first; a member of one stage has one of each. ``of`` says whether the input was power (W) or the
    busy share.
    """

    of: Input
    samples: int
    ambient_c: float
    resistance: float
    resistance_sd: float
    time_constants_s: tuple[float, ...]
    resistances: tuple[float, ...]
    capacities: tuple[float, ...]
    identified: bool


def begin(of: Input) -> Thermal:
    """A model that knows nothing but what every machine has in common."""
    members = len(BANK)
    return Thermal(
        of=of,
        lags=np.zeros_like(BANK),
        left=np.ones_like(BANK),
        information=np.zeros((members, _TERMS, _TERMS)),
        moment=np.zeros((members, _TERMS)),
        energy=np.zeros(members),
        theta=np.zeros((members, _TERMS)),
        covariance=np.tile(np.diag(1.0 / _precision(of)), (members, 1, 1)),
        weights=np.full(members, 1.0 / members),
    )


def observe(model: Thermal, at_s: float, temperature_c: float, given: float) -> Thermal:
    """``model`` after one look: ``given`` is the mean input since the look before (W, or a share of 0 to 1).

    What is not finite, or no temperature of a machine, changes nothing. A time that stands still or goes back
    (a virtual clock that was set) or a hole of more than ``LONGEST_GAP_S`` starts the lags anew.
    """
    if not (math.isfinite(at_s) and math.isfinite(temperature_c) and math.isfinite(given)):
        return model
    if not LEAST_C < temperature_c < MOST_C or not 0.0 <= given < 1e4:
        return model
    if model.at_s is None:
        return _started(model, at_s, temperature_c, given)
    step = at_s - model.at_s
    if step <= 0.0 or step > LONGEST_GAP_S:
        again = _started(model, at_s, temperature_c, given)
        return replace(again, clock_errors=model.clock_errors + (step <= 0.0))
    return _learned(model, at_s, temperature_c, given, step)


def _started(model: Thermal, at_s: float, temperature_c: float, given: float) -> Thermal:
    """The lags as though ``given`` had been for ever; how wrong that is, ``left`` will tell."""
    if model.samples:
        model = _without_start(model)
    return replace(
        model,
        at_s=at_s,
        temperature_c=temperature_c,
        last_input=given,
        lags=np.full_like(BANK, given),
        left=np.ones_like(BANK),
    )


def _without_start(model: Thermal) -> Thermal:
    """What is known of the machine apart from the old start, which says nothing of the new one (Schur
    complement)."""
    known, start = slice(0, 3), slice(3, _TERMS)
    own = model.information[:, start, start] + np.diag(_precision(model.of)[start])
    across = model.information[:, known, start]
    gain = across @ np.linalg.inv(own)
    information, moment = np.zeros_like(model.information), np.zeros_like(model.moment)
    information[:, known, known] = model.information[:, known, known] - gain @ across.transpose(0, 2, 1)
    moment[:, known] = model.moment[:, known] - np.einsum("mks,ms->mk", gain, model.moment[:, start])
    explained = np.einsum("ms,mst,mt->m", model.moment[:, start], np.linalg.inv(own), model.moment[:, start])
    return replace(model, information=information, moment=moment, energy=model.energy - explained)


def _learned(model: Thermal, at_s: float, temperature_c: float, given: float, step: float) -> Thermal:
    decay = _decays(step)
    lags = decay * model.lags + (1.0 - decay) * given
    left = decay * model.left
    x = _terms(lags, left)
    # as if the temperature were measured once in CORRELATION_S, with the least error that is believed
    worth = min(1.0, step / CORRELATION_S) / NOISE_C**2
    kept = math.exp(-step / FORGET_S)
    above = temperature_c - PRIOR_AMBIENT_C
    information = kept * model.information + worth * x[:, :, None] * x[:, None, :]
    moment = kept * model.moment + (worth * above) * x
    energy = kept * model.energy + worth * above * above
    mass = kept * model.mass + min(1.0, step / CORRELATION_S)
    theta, covariance, weights = _solved(model.of, information, moment, energy, mass)
    return replace(
        model,
        at_s=at_s,
        samples=model.samples + 1,
        temperature_c=_smoothed(model.temperature_c, temperature_c, step),
        last_input=given,
        lowest_input=min(model.lowest_input, given),
        highest_input=max(model.highest_input, given),
        lags=lags,
        left=left,
        information=information,
        moment=moment,
        energy=energy,
        mass=mass,
        theta=theta,
        covariance=covariance,
        weights=weights,
    )


def _smoothed(before: float, now: float, step: float) -> float:
    """Two seconds of smoothing take the rounding off and hardly any of the heat."""
    return now + (before - now) * math.exp(-step / 2.0)


@functools.lru_cache(maxsize=64)
def _decays(step: float) -> Floats:
    with np.errstate(divide="ignore"):
        return np.where(BANK > 0.0, np.exp(-step / np.maximum(BANK, 1e-9)), 0.0)


def _terms(lags: Floats, left: Floats) -> Floats:
    """Shape (M, 5). A member of one stage has no fast term: zeros, which leave its prior as it is."""
    terms = np.empty((len(BANK), _TERMS))
    terms[:, 0] = 1.0
    terms[:, 1:3] = _STAGES * lags
    terms[:, 3:5] = _STAGES * left
    return terms


@functools.cache
def _precision(of: Input) -> Floats:
    """Of the prior, shape (5,), whose mean is 0, the surroundings counted from ``PRIOR_AMBIENT_C``."""
    sd = PRIOR_RESISTANCE_SD[of]
    deviations = np.array([PRIOR_AMBIENT_SD_C, sd, sd, 20.0, 40.0])
    return np.asarray(1.0 / deviations**2)


@functools.cache
def _prior(of: Input) -> Floats:
    """Its information, shape (5, 5)."""
    return np.diag(_precision(of))


def _solved(
    of: Input, information: Floats, moment: Floats, energy: Floats, mass: float
) -> tuple[Floats, Floats, Floats]:
    """Estimate (M, 5), covariance (M, 5, 5) and weight (M,) of each member.

    The weight is the evidence for the member: its misfit, and its volume of parameters that fit (Laplace).
    The variance of the error is not known either: it is ``NOISE_C`` squared where the fit is as good, else
    what is left.
    """
    whole = information + _prior(of)
    covariance = np.linalg.inv(whole)
    theta = np.einsum("mij,mj->mi", covariance, moment)
    misfit = np.maximum(energy - np.einsum("mi,mi->m", theta, moment), 0.0)
    _, volume = np.linalg.slogdet(whole)
    variance = (BELIEF + misfit) / (BELIEF + mass)
    score = -0.5 * (BELIEF + mass) * np.log(variance) - 0.5 * volume
    covariance = covariance * np.maximum(variance, 1.0)[:, None, None]
    physical = (theta[:, 1] > -1e-9) & (theta[:, 2] > 0.0)
    if not physical.any():
        return theta, covariance, np.zeros(len(BANK))
    weights = np.exp(np.where(physical, score - score[physical].max(), -np.inf))
    return theta, covariance, weights / weights.sum()


# ---------------------------------------------------------------- what it says


def identified(model: Thermal) -> bool:
    """Whether a forecast may be acted on: the input moved, and a forecast over ``TRUST_HORIZON_S`` at the
    most and at the least input seen so far is known to ``TRUST_SD_C``."""
    return trusted(model, (), ()) is not None


def trusted(
    model: Thermal, ahead_s: Sequence[float], inputs: Sequence[float] | Floats
) -> tuple[Floats, Floats] | None:
    """``reaction``, or None where the model is not identified."""
    if model.samples < LEAST_SAMPLES or not model.weights.any():
        return None
    if model.highest_input - model.lowest_input <= LEAST_SPAN_SHARE * model.highest_input:
        return None
    mean, whole = _reacting(model, (*ahead_s, TRUST_HORIZON_S))
    _, doubt = _reached(model, mean[:, -1:], whole[:, :, -1:], (model.lowest_input, model.highest_input))
    if not (doubt < TRUST_SD_C).all():
        return None
    return _reached(model, mean[:, :-1], whole[:, :, :-1], inputs)


def reaction(
    model: Thermal, ahead_s: Sequence[float], inputs: Sequence[float] | Floats
) -> tuple[Floats, Floats]:
    """Temperature in °C and its standard deviation, shape (len(inputs), len(ahead_s)), if each constant input
    is held from now on. The forecast starts at the temperature of now, so what the model has wrong as a whole
    cancels out.
    """
    return _reached(model, *_reacting(model, tuple(ahead_s)), inputs)


def _reacting(model: Thermal, ahead_s: tuple[float, ...]) -> tuple[Floats, Floats]:
    """The change of every term is linear in the input, so its mean is too and its variance is quadratic.

    Mean, shape (2, H), and covariance, shape (2, 2, H), of the change without any input (0) and of what one
    unit of it adds (1): they tell of all inputs.
    """
    kept = np.flatnonzero(model.weights > 0.02 * model.weights.max())
    share = model.weights[kept] / model.weights[kept].sum()
    change = _changes(model, _ahead(ahead_s)[kept], kept)  # (K, 2, H, 5)
    flat = change.reshape(len(kept), 2 * len(ahead_s), _TERMS)
    each = (flat @ model.theta[kept, :, None]).reshape(change.shape[:3])
    spread = (flat @ model.covariance[kept]).reshape(change.shape)
    mean = np.einsum("k,kah->ah", share, each)
    off = each - mean
    within = np.einsum("kaht,kbht->kabh", change, spread)
    return mean, np.einsum("k,kabh->abh", share, within + off[:, :, None] * off[:, None])


def _reached(
    model: Thermal, mean: Floats, whole: Floats, inputs: Sequence[float] | Floats
) -> tuple[Floats, Floats]:
    """Temperature and its standard deviation, shape (len(inputs), H), by what ``_reacting`` gave."""
    given = np.asarray(inputs, np.float64)[:, None]
    variance = whole[0, 0] + 2.0 * given * whole[0, 1] + given**2 * whole[1, 1]
    return model.temperature_c + mean[0] + given * mean[1], np.sqrt(np.maximum(variance, 0.0))


@functools.lru_cache(maxsize=16)
def _ahead(ahead_s: tuple[float, ...]) -> Floats:
    """What is left of each lag after each time, shape (M, H, 2)."""
    return np.stack([_decays(h) for h in ahead_s], axis=1)


def _changes(model: Thermal, decay: Floats, kept: NDArray[np.intp]) -> Floats:
    """Shape (K, 2, H, 5): how far each term moves without any input, and what one unit of it adds."""
    made = np.zeros((len(kept), 2, decay.shape[1], _TERMS))
    gone, stages = 1.0 - decay, _STAGES[kept, None]
    made[:, 0, :, 1:3] = -(stages * model.lags[kept, None]) * gone
    made[:, 0, :, 3:5] = -(stages * model.left[kept, None]) * gone
    made[:, 1, :, 1:3] = stages * gone
    return made


def forecast(
    model: Thermal, plan: Sequence[tuple[float, float]], every_s: float = 1.0
) -> tuple[tuple[float, float, float], ...]:
    """Rows of (seconds from now, °C, standard deviation) under ``plan``: (seconds, input) pieces, one after
    another."""
    rows: list[tuple[float, float, float]] = []
    now = model
    base = 0.0
    for seconds, given in plan:
        steps = max(1, round(seconds / every_s))
        ahead = tuple(seconds * (i + 1) / steps for i in range(steps))
        mean, deviation = reaction(now, ahead, (given,))
        carried = rows[-1][2] if rows else 0.0
        rows += [
            (base + h, float(mean[0, i]), math.hypot(carried, float(deviation[0, i])))
            for i, h in enumerate(ahead)
        ]
        base += seconds
        now = _advanced(now, seconds, given, rows[-1][1])
    return tuple(rows)


def _advanced(model: Thermal, seconds: float, given: float, temperature_c: float) -> Thermal:
    decay = _decays(seconds)
    lags = decay * model.lags + (1.0 - decay) * given
    return replace(model, lags=lags, left=decay * model.left, temperature_c=temperature_c)


def sustainable(model: Thermal, limit_c: float) -> float:
    """The input that can be held for ever with the temperature at ``limit_c``; 0 where even none is too
    much."""
    ambient_c, resistance = _settled(model)
    # where the model as a whole is off by now, the surroundings are what changed
    offset = model.temperature_c - _modelled(model)
    return max(0.0, (limit_c - ambient_c - offset) / max(resistance, 1e-6))


def _settled(model: Thermal) -> tuple[float, float]:
    """Surroundings in °C and resistance of all stages together, by the whole bank."""
    surroundings, fast, slow = (model.weights @ model.theta[:, :3]).tolist()
    return PRIOR_AMBIENT_C + surroundings, fast + slow


def _modelled(model: Thermal) -> float:
    each = np.einsum("mt,mt->m", _terms(model.lags, model.left), model.theta)
    return PRIOR_AMBIENT_C + float(each @ model.weights)


def describe(model: Thermal) -> Fitted:
    """The estimate as a record; before the first samples it is the prior."""
    if not model.samples or not model.weights.any():
        return Fitted(
            of=model.of,
            samples=model.samples,
            ambient_c=PRIOR_AMBIENT_C,
            resistance=0.0,
            resistance_sd=PRIOR_RESISTANCE_SD[model.of],
            time_constants_s=(),
            resistances=(),
            capacities=(),
            identified=False,
        )
    best = int(np.argmax(model.weights))
    two = BANK[best, 0] > 0.0
    stages = [(float(BANK[best, i]), float(model.theta[best, 1 + i])) for i in (range(2) if two else (1,))]
    total = model.theta[:, 1] + model.theta[:, 2]
    mean_total = float(total @ model.weights)
    within = np.einsum("mi,mij,mj->m", _STAGES, model.covariance[:, 1:3, 1:3], _STAGES)
    spread = float((within + (total - mean_total) ** 2) @ model.weights)
    return Fitted(
        of=model.of,
        samples=model.samples,
        ambient_c=PRIOR_AMBIENT_C + float(model.theta[:, 0] @ model.weights),
        resistance=mean_total,
        resistance_sd=math.sqrt(max(spread, 0.0)),
        time_constants_s=tuple(t for t, _ in stages),
        resistances=tuple(r for _, r in stages),
        capacities=tuple(t / max(r, 1e-9) for t, r in stages),
        identified=identified(model),
    )
