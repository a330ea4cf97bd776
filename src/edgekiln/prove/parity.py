"""How far an artifact's outputs are from the float model's, sample by sample, in constant memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Arrays
from edgekiln.errors import BadInput
from edgekiln.prove.accuracy import probabilities, top_class
from edgekiln.prove.flips import Floats, expected_agreement, leads, moves
from edgekiln.prove.statistics import Interval, wilson
from edgekiln.records import Evidence, How, Record, Scalar, Task

SQNR_CAP_DB = 200.0
"""What equal outputs are given: JSON holds no infinity, and float64 sums resolve no more anyway."""
SURE = 0.5
ESTIMATED_ROWS = 1000
"""Above so many rows the count is as sure as an estimate from margins."""


class OutputParity(Record, frozen=True, kw_only=True):
    """One output over all samples. Every figure is None where ``reason`` says why.

    ``sqnr_db`` is 10 log10 of the reference's energy over the error's, both summed over all samples;
    ``relative_rms`` is the square root of the inverse ratio; cosines are of whole samples.
    """

    name: str
    sqnr_db: float | None = None
    cosine_mean: float | None = None
    cosine_min: float | None = None
    max_abs_error: float | None = None
    relative_rms: float | None = None
    nonfinite: int = 0
    reason: str = ""


class Agreement(Record, frozen=True, kw_only=True):
    """Rows of scores whose top class is the reference's, with the Wilson 95 % interval; or the share that is
    expected (``flips``), with its bootstrap interval."""

    n: int
    value: float | None
    interval: Interval | None = None
    reason: str = ""


class Parity(Record, frozen=True, kw_only=True):
    """All outputs in the reference's order, and the agreement of the first one if it holds classes.

    ``sure`` counts only the rows where the float model gives its class a probability of at least 0.5:
    near-ties flip with any rounding, sure ones should not. ``expected`` estimates the agreement from margins:
    a count of few rows knows it in steps.
    """

    samples: int
    outputs: tuple[OutputParity, ...]
    agreement: Agreement
    sure: Agreement
    expected: Agreement

    @property
    def worst(self) -> OutputParity | None:
        """The output that decides: one without a figure first, else the one of the lowest SQNR."""
        return min(self.outputs, key=lambda o: -math.inf if o.sqnr_db is None else o.sqnr_db, default=None)


class _Output:
    """Running sums of one output. Where a sample is broken, the first reason stays."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.signal = self.error = self.max_error = 0.0
        self.cosine_sum, self.cosine_min, self.samples = 0.0, 1.0, 0
        self.nonfinite = 0
        self.reason = ""

    def add(self, reference: NDArray[Any], candidate: NDArray[Any], sample: int) -> None:
        a = np.asarray(reference, np.float64).ravel()
        b = np.asarray(candidate, np.float64).ravel()
        energy_a, energy_b = float(a @ a), float(b @ b)
        sound = math.isfinite(energy_a + energy_b)  # then no value is NaN or infinite
        for values, whose in () if sound else ((b, "the artifact's"), (a, "the float model's")):
            broken = int(values.size - np.isfinite(values).sum())
            if broken and whose == "the artifact's":
                self.nonfinite += broken
            if broken and not self.reason:
                self.reason = (
                    f"{whose} output '{self.name}' holds {broken} NaN or infinite values in sample {sample}"
                )
        if self.reason or not a.size:
            return
        difference = b - a
        error = float(difference @ difference)
        if not math.isfinite(energy_a + energy_b + error):
            self.reason = f"output '{self.name}' holds values too large to square, in sample {sample}"
            return
        self.signal += energy_a
        self.error += error
        self.max_error = max(self.max_error, float(difference.max()), -float(difference.min()))
        cosine = _cosine(float(a @ b), energy_a, energy_b)
        self.cosine_sum += cosine
        self.cosine_min = min(self.cosine_min, cosine)
        self.samples += 1

    def result(self) -> OutputParity:
        if not self.samples and not self.reason:
            self.reason = f"output '{self.name}' was empty in every sample"
        if self.reason:
            return OutputParity(name=self.name, nonfinite=self.nonfinite, reason=self.reason)
        if self.signal == 0 and self.error > 0:
            reason = f"the float model's output '{self.name}' is zero throughout, so errors have no scale"
            return OutputParity(name=self.name, max_abs_error=self.max_error, reason=reason)
        return OutputParity(
            name=self.name,
            sqnr_db=_sqnr_db(self.signal, self.error),
            cosine_mean=self.cosine_sum / self.samples,
            cosine_min=self.cosine_min,
            max_abs_error=self.max_error,
            relative_rms=math.sqrt(self.error / self.signal) if self.signal else 0.0,
        )


def _cosine(dot: float, energy_a: float, energy_b: float) -> float:
    """Cosine of two vectors; two zero vectors are alike (1), a zero and another are not (0)."""
    if energy_a == 0 or energy_b == 0:
        return 1.0 if energy_a == energy_b else 0.0
    return max(-1.0, min(1.0, dot / (math.sqrt(energy_a) * math.sqrt(energy_b))))


def _sqnr_db(signal: float, error: float) -> float:
    if error == 0:
        return SQNR_CAP_DB
    return min(SQNR_CAP_DB, 10 * (math.log10(signal) - math.log10(error)))


class ParityStream:
    """Feed ``add`` one sample at a time, then read ``result``. ``task`` decides about agreement.

    ``further`` are ``flips.leads`` of the reference on samples that are not compared: they say how close its
    calls are.
    """

    def __init__(self, task: Task, further: Sequence[Floats] = ()) -> None:
        self._task = task
        self._leads, self._moves = list(further), list[Floats]()
        self._outputs: dict[str, _Output] = {}
        self._samples = 0
        self._rows = self._agreed = self._sure_rows = self._sure_agreed = 0
        self._unscored = ""

    def add(self, reference: Arrays, candidate: Arrays) -> None:
        """One sample's named outputs of the float model and of the artifact.

        Raises BadInput where names or shapes differ: the two are not the same function then.
        """
        _same_outputs(reference, candidate)
        for name, expected in reference.items():
            output = self._outputs.setdefault(name, _Output(name))
            output.add(expected, candidate[name], self._samples)
        if self._task == "classification" and reference:
            name = next(iter(reference))
            self._score(np.asarray(reference[name]), np.asarray(candidate[name]))
        self._samples += 1

    def _score(self, reference: NDArray[Any], candidate: NDArray[Any]) -> None:
        if not reference.size or not (np.isfinite(reference).all() and np.isfinite(candidate).all()):
            return
        same = top_class(reference) == top_class(candidate)
        sure = probabilities(reference).max(axis=1) >= SURE
        self._rows += int(same.size)
        self._agreed += int(same.sum())
        self._sure_rows += int(sure.sum())
        self._sure_agreed += int((same & sure).sum())
        ahead = leads(reference)
        if ahead.size and self._rows <= ESTIMATED_ROWS:
            self._leads.append(ahead)
            self._moves.append(moves(reference, candidate))

    def result(self) -> Parity:
        outputs = tuple(output.result() for output in self._outputs.values())
        reason = self._missing(outputs)
        nobody = f"in no sample is the float model {SURE:g} sure of a class"
        return Parity(
            samples=self._samples,
            outputs=outputs,
            agreement=_agreement(self._agreed, self._rows, reason),
            sure=_agreement(self._sure_agreed, self._sure_rows, reason or nobody * (self._sure_rows == 0)),
            expected=self._expected(reason),
        )

    def _expected(self, reason: str) -> Agreement:
        if not reason and self._rows > ESTIMATED_ROWS:
            reason = f"the count of {self._rows} samples is as sure"
        if not reason and not self._moves:
            reason = "there is one class alone"
        if reason:
            return Agreement(n=self._rows, value=None, reason=reason)
        value, interval = expected_agreement(np.concatenate(self._leads), np.concatenate(self._moves))
        return Agreement(n=self._rows, value=value, interval=interval)

    def _missing(self, outputs: tuple[OutputParity, ...]) -> str:
        if self._task != "classification":
            return f"the task '{self._task}' has no top class"
        if not outputs or not self._samples:
            return "no sample was compared"
        # A sample left out for NaN must not leave a clean-looking share of the others behind.
        broken = "NaN" in outputs[0].reason
        return outputs[0].reason if broken or not self._rows else ""


def _agreement(hits: int, n: int, reason: str) -> Agreement:
    if reason:
        return Agreement(n=n, value=None, reason=reason)
    return Agreement(n=n, value=hits / n, interval=wilson(hits, n))


def _same_outputs(reference: Arrays, candidate: Arrays) -> None:
    doing = "comparing outputs"
    if set(reference) != set(candidate):
        names = f"{', '.join(reference)} against {', '.join(candidate)}"
        cure = "Compare an artifact with the model it was made from; a converter must keep output names"
        raise BadInput(doing, names, "the two do not give the same outputs", cure)
    for name, expected in reference.items():
        shape, other = np.shape(expected), np.shape(candidate[name])
        if shape != other:
            raise BadInput(
                doing,
                f"'{name}'",
                f"the float model gives the shape {shape}, the artifact {other}",
                "Compare an artifact with the model it was made from; where the shape depends on the "
                "data (NonMaxSuppression, NonZero), end the graph before that operator",
            )
        if not all(np.asarray(x).dtype.kind in "fiub" for x in (expected, candidate[name])):
            why = f"its type {np.asarray(expected).dtype} is not numeric"
            raise BadInput(doing, f"'{name}'", why, "End the graph before the operator that makes it")


def parity_evidence(
    parity: Parity, how: How, where: str, when: str, environment: dict[str, Scalar]
) -> tuple[Evidence, ...]:
    """``sqnr_db``, ``cosine_mean``, ``cosine_min``, ``max_abs_error``, ``relative_rms`` of the worst
    output (its name in the environment), ``nonfinite_values``, ``agreement``, ``agreement_sure`` and
    ``agreement_expected``."""
    worst = parity.worst or OutputParity(name="", reason="no sample was compared")
    reason = worst.reason

    def figure(
        what: str, unit: str, value: float | None, n: int, reason: str = "", interval: Interval | None = None
    ) -> Evidence:
        return Evidence(
            what=what,
            unit=unit,
            value=value,
            how=None if value is None else how,
            where=where,
            when=when,
            n=n,
            interval=interval,
            environment={**environment, "output": worst.name} if worst.name else environment,
            reason=reason if value is None else "",
        )

    n = parity.samples
    broken = sum(output.nonfinite for output in parity.outputs)
    return (
        figure("sqnr_db", "dB", worst.sqnr_db, n, reason),
        figure("cosine_mean", "1", worst.cosine_mean, n, reason),
        figure("cosine_min", "1", worst.cosine_min, n, reason),
        figure("max_abs_error", "1", worst.max_abs_error, n, reason),
        figure("relative_rms", "1", worst.relative_rms, n, reason),
        figure("nonfinite_values", "values", float(broken) if n else None, n, reason),
        *(
            figure(what, "fraction", part.value, part.n, part.reason, part.interval)
            for what, part in (
                ("agreement", parity.agreement),
                ("agreement_sure", parity.sure),
                ("agreement_expected", parity.expected),
            )
        ),
    )
