"""Mixed precision under a bound: the fewest, cheapest layers back in float until the bound holds.

1. Wholly in INT8, does the bound hold on samples that calibration never saw? Then nothing is put back.
2. Of the layers that lose most alone (``sensitivity``), what does the model's own output gain when one stays
   float (by simulation), and what does it cost (by timing the written model)? Best gain per cost first.
3. Layers are put back in that order; after each the written model itself is judged on those samples.

A judgement has an interval by its number of samples; the search stops at the first set whose own figure
holds and says how sure that is. Where no set holds, the caller gets a ConversionFailed with the best that
was reached, and the float artifact wins.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np

from edgekiln.compile.quantise import simulate
from edgekiln.compile.quantise.layers import layers
from edgekiln.compile.quantise.observers import Ranges
from edgekiln.engines import Arrays
from edgekiln.errors import ConversionFailed
from edgekiln.prove.parity import ParityStream
from edgekiln.prove.statistics import wilson
from edgekiln.records import LayerLoss, Task

CANDIDATES = 16
PROBES = 24
"""Validation samples on which one layer's effect on the output is simulated."""
LADDER = (1, 2, 3, 4, 6, 8, 10, 12, 16)
LEAST_SAMPLES = 8
SQNR_FLOOR_DB = 20.0


@dataclass(frozen=True)
class Verdict:
    """``value`` against ``limit`` (both: higher is better) on ``n`` samples; ``interval`` is the 95 % one."""

    what: str
    value: float
    limit: float
    n: int
    interval: tuple[float, float] | None

    @property
    def holds(self) -> bool:
        return self.value >= self.limit - 1e-12

    def sentence(self) -> str:
        unit = " dB" if self.what == "SQNR" else ""
        sure = ""
        if self.interval is not None:
            sure = f", 95 % interval {self.interval[0]:.3f} to {self.interval[1]:.3f}"
        sign = "at least" if self.holds else "below"
        return f"{self.what} {self.value:.4g}{unit}, {sign} {self.limit:.4g} (n = {self.n}{sure})"


Write: TypeAlias = Callable[[Collection[str]], Path]
"""Writes the quantised model in which these nodes stay float; gives the file."""
Time: TypeAlias = Callable[[Sequence[Path]], Sequence[float] | None]
"""Median latencies in ms of model files, alternated in one run; None where they can't run here."""


@dataclass(frozen=True)
class Ground:
    """What the search stands on: ``original`` is the float model, ``recovered`` the same with decided
    weights.

    ``run`` opens a written model and maps samples to outputs. ``validation`` are samples that neither ranges
    nor rounding saw.
    """

    original: Any
    recovered: Any
    ranges: Ranges
    symmetric: bool
    validation: Callable[[], Iterable[Arrays]]
    run: Callable[[Path], Callable[[Arrays], dict[str, Any]]]
    write: Write
    time: Time
    task: Task
    threads: int


@dataclass(frozen=True)
class Found:
    """The layers that stay float, the file, the losses with what was tried on each, and the story in
    words.
    """

    keep_float: tuple[str, ...]
    file: Path
    losses: tuple[LayerLoss, ...]
    verdict: Verdict
    note: str


def search(ground: Ground, drop: float, losses: Sequence[LayerLoss]) -> Found:
    """The fewest, cheapest layers in float so that ``1 - drop`` of the decisions stay the float model's.

    Decisions are top classes; a model without classes is held to ``SQNR_FLOOR_DB``. Whatever changes top-1
    accuracy changes a decision, so accuracy can't drop by more on the same samples. Raises ConversionFailed
    where there are too few samples to judge by, or no set of layers holds the bound.
    """
    reference = _reference(ground)
    whole = ground.write(())
    verdict = _judged(ground, whole, reference, drop)
    if verdict.n < LEAST_SAMPLES:
        why = f"{verdict.n} samples were kept from calibration; a bound needs at least {LEAST_SAMPLES}"
        raise ConversionFailed("holding the bound of", "int8-mixed", why, "Give more --data")
    if verdict.holds:
        note = f"every layer in INT8 keeps the bound: {verdict.sentence()}"
        return Found((), whole, tuple(losses), verdict, note)
    ranked, marked = _ranked(ground, losses, whole)
    best, tried = verdict, 0
    for count in LADDER:
        if count > len(ranked):
            break
        keep = tuple(ranked[:count])
        file = ground.write(keep)
        found, tried = _judged(ground, file, reference, drop), count
        if found.holds:
            told = tuple(msgspec.structs.replace(x, in_float=x.node in keep) for x in marked)
            many = f"{count} of {len(losses)} layers stay float"
            note = f"{many}: {found.sentence()}; wholly in INT8: {verdict.sentence()}"
            return Found(keep, file, told, found, note)
        best = max(best, found, key=lambda v: v.value)
    why = (
        f"with up to {tried} of {len(losses)} layers in float the best is {best.sentence()}; wholly in INT8: "
        f"{verdict.sentence()}"
    )
    cure = "Use the float artifact, allow a larger drop, or give more data like that of the field"
    raise ConversionFailed("holding the bound of", "int8-mixed", why, cure)


# ---------------------------------------------------------------- judging


def _reference(ground: Ground) -> list[dict[str, Any]]:
    runner = simulate.session(ground.original, ground.threads)
    names = [o.name for o in runner.get_outputs()]
    return [dict(zip(names, runner.run(names, dict(s)), strict=True)) for s in ground.validation()]


def _judged(ground: Ground, file: Path, reference: Sequence[dict[str, Any]], drop: float) -> Verdict:
    stream = ParityStream(ground.task)
    runner = ground.run(file)
    for sample, expected in zip(ground.validation(), reference, strict=True):
        made = runner(sample)
        stream.add(expected, dict(zip(expected, made.values(), strict=True)))
    parity = stream.result()
    if parity.agreement.value is not None:
        n, value = parity.agreement.n, parity.agreement.value
        return Verdict("agreement", value, 1 - drop, n, wilson(value * n, n))
    worst = parity.worst
    value = -math.inf if worst is None or worst.sqnr_db is None else worst.sqnr_db
    return Verdict("SQNR", value, SQNR_FLOOR_DB, parity.samples, None)


# ---------------------------------------------------------------- ranking


def _ranked(
    ground: Ground, losses: Sequence[LayerLoss], whole: Path
) -> tuple[list[str], tuple[LayerLoss, ...]]:
    """Candidate layers, best gain per cost first, and the losses with both figures filled in."""
    known = {layer.node for layer in layers(ground.original)}
    worst = sorted(
        (x for x in losses if x.node in known and x.isolated_db is not None),
        key=lambda x: (x.isolated_db, x.node),
    )
    names = [x.node for x in worst[:CANDIDATES]]
    probes = list(itertools.islice(ground.validation(), PROBES))
    truth = _outputs(ground.original, probes, ground.threads)
    before = _error(truth, _simulated(ground, probes, ()))
    gains = {name: before - _error(truth, _simulated(ground, probes, (name,))) for name in names}
    costs = _costs(ground, names, whole)
    floor = 0.02 * max(costs.values(), default=1.0) or 1e-9
    order = sorted((n for n in names if gains[n] > 0), key=lambda n: (-gains[n] / max(costs[n], floor), n))
    timed = ground.time([]) is not None
    told = []
    for loss in losses:
        if loss.node not in gains:
            told.append(loss)
            continue
        after = max(before - gains[loss.node], 1e-30)
        gain_db = 10 * math.log10(max(before, 1e-30) / after)
        note = "" if timed else "its cost is its share of the multiply-adds: nothing could be timed here"
        cost = costs[loss.node] if timed else None
        told.append(msgspec.structs.replace(loss, output_gain_db=gain_db, cost_ms=cost, note=note))
    return order, tuple(told)


def _costs(ground: Ground, names: Sequence[str], whole: Path) -> dict[str, float]:
    """What each layer in float costs: ms where the model runs here, else its multiply-adds."""
    files = [whole, *(ground.write((name,)) for name in names)]
    medians = ground.time(files)
    if medians is not None:
        return {name: ms - medians[0] for name, ms in zip(names, medians[1:], strict=True)}
    return {layer.node: _work(ground.original, layer) for layer in layers(ground.original)}


def _work(model: Any, layer: Any) -> float:
    weight = next(i for i in model.graph.initializer if i.name == layer.weight)
    return float(np.prod(weight.dims))


def _simulated(ground: Ground, probes: Sequence[Arrays], keep: Sequence[str]) -> list[dict[str, Any]]:
    """The quantised model's outputs with ``keep`` in float, computed in float."""
    import onnx
    from onnx import numpy_helper

    model = onnx.ModelProto()
    model.CopyFrom(ground.recovered)
    theirs = {i.name: i for i in ground.original.graph.initializer}
    ours = [layer for layer in layers(ground.original) if layer.node in keep]
    names = [n for layer in ours for n in (layer.weight, layer.bias) if n]
    simulate.with_weights(model, {n: numpy_helper.to_array(theirs[n]) for n in names})
    held = simulate.quantised_activations(model, ground.ranges, keep)
    outputs = {o.name for o in model.graph.output}
    held = tuple(h for h in held if h not in outputs)
    return _outputs(
        simulate.fake_quantised(model, held, ground.ranges, ground.symmetric), probes, ground.threads
    )


def _outputs(model: Any, probes: Sequence[Arrays], threads: int) -> list[dict[str, Any]]:
    runner = simulate.session(model, threads)
    names = [o.name for o in runner.get_outputs()]
    return [dict(zip(names, runner.run(names, dict(s)), strict=True)) for s in probes]


def _error(truth: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> float:
    """Error energy over signal energy, summed over outputs (each on its own scale)."""
    total = 0.0
    for name in truth[0]:
        a = np.concatenate([np.asarray(t[name], np.float64).ravel() for t in truth])
        b = np.concatenate([np.asarray(f[name], np.float64).ravel() for f in found])
        total += float(((a - b) ** 2).sum() / max(float((a**2).sum()), 1e-30))
    return total
