"""Mixed precision under a bound: the fewest, cheapest layers back in float until the bound holds.

1. Wholly in INT8, does the bound hold on samples that calibration never saw? Then nothing is put back.
2. What does the model's own output gain when one activation is no longer rounded (simulated, with one switch
   per activation in one session)? An activation is float only where all that make and read it are: such a
   set of nodes is the unit. Where all that may be put back are not enough, the search ends here.
3. What do the layers around each cost in float (the written models, timed in turns)? The sets are put back,
   the best gain per cost first; after each step the written model itself is judged.

A judgement has an interval by its number of samples; the search stops at the first set whose own figure
holds and says how sure that is. Where no set holds, the caller gets a ConversionFailed with the best that
was reached, and the float artifact wins.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np

from edgekiln.compile.quantise import simulate
from edgekiln.compile.quantise.bounds import Bound, Verdict, outputs
from edgekiln.compile.quantise.layers import layers
from edgekiln.compile.quantise.observers import Ranges
from edgekiln.engines import Arrays
from edgekiln.errors import ConversionFailed
from edgekiln.records import LayerLoss, Record

CANDIDATES = 16
"""Activations whose float form is written and timed."""
PROBES, LEAST_PROBES = 8, 2
"""Validation samples on which each activation's effect on the output is simulated."""
PROBE_MACS = 4e11
"""What all these simulations may take, in multiply-adds: a minute where a core does some 5 GMAC a second."""
LADDER = (1, 2, 3, 4, 6, 8, 12)
LEAST_SAMPLES = 8


Write: TypeAlias = Callable[[Collection[str]], Path]
"""Writes the quantised model in which these nodes stay float; gives the file."""
Time: TypeAlias = Callable[[Sequence[Path]], Sequence[float] | None]
"""Median latencies in ms of model files, alternated in one run; None where they can't run here."""


class Gain(Record, frozen=True, kw_only=True):
    """An activation and the nodes around it. ``gain`` is the output's error energy that goes with its
    rounding, as a share of the signal; ``whole`` is that of the wholly quantised model.
    """

    activation: str
    nodes: tuple[str, ...]
    gain: float
    whole: float


@dataclass(frozen=True)
class Ground:
    """What the search stands on: ``original`` is the float model, ``recovered`` the same with decided
    weights.

    ``run`` opens a written model and maps samples to outputs. ``bound`` is held on samples that neither
    ranges nor rounding saw. ``gains`` gives what leaving each activation unrounded gains.
    """

    original: Any
    recovered: Any
    run: Callable[[Path], Callable[[Arrays], dict[str, Any]]]
    write: Write
    time: Time
    bound: Bound
    gains: Callable[[], Sequence[Gain]]


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


def search(ground: Ground, losses: Sequence[LayerLoss]) -> Found:
    """The fewest, cheapest layers in float so that the bound holds.

    Raises ConversionFailed where there are too few samples to judge by, or no set of layers holds the bound.
    """
    whole = ground.write(())
    verdict = ground.bound.judge(ground.run(whole))
    if verdict.n < LEAST_SAMPLES:
        why = f"{verdict.n} samples were kept from calibration; a bound needs at least {LEAST_SAMPLES}"
        raise ConversionFailed("holding the bound of", "int8-mixed", why, "Give more --data")
    if verdict.holds:
        note = f"every layer in INT8 keeps the bound: {verdict.sentence()}"
        return Found((), whole, tuple(losses), verdict, note)
    units = _units(ground)
    most = _most(ground, units)
    if most is not None and not most.holds:
        raise _unheld(verdict, most, sum(x.node in _nodes(units) for x in losses), len(losses))
    ranked = _ranked(ground, units, whole)
    rungs = [n for n in LADDER if n < len(ranked)] + ([] if most is None else [len(ranked)])
    keep, found = _nodes(()), verdict
    for count in rungs:
        keep = _nodes(ranked[:count])
        file = ground.write(keep)
        found = ground.bound.judge(ground.run(file))
        if found.holds:
            break
    else:
        raise _unheld(verdict, found, sum(x.node in keep for x in losses), len(losses))
    told = tuple(msgspec.structs.replace(x, in_float=x.node in keep) for x in _marked(ranked, losses))
    many = f"{sum(x.in_float for x in told)} of {len(losses)} layers stay float"
    note = f"{many}: {found.sentence()}; wholly in INT8: {verdict.sentence()}"
    return Found(keep, file, told, found, note)


def _most(ground: Ground, units: Sequence[_Unit]) -> Verdict | None:
    """What the model keeps with all ``units`` in float; None where nothing would be left in INT8."""
    try:
        file = ground.write(_nodes(units))
    except ConversionFailed:
        return None
    return ground.bound.judge(ground.run(file))


def _unheld(whole: Verdict, most: Verdict, in_float: int, of: int) -> ConversionFailed:
    best = max(whole, most, key=lambda v: v.value)
    why = (
        f"with {in_float} of {of} layers in float the best is {best.sentence()}; wholly in INT8: "
        f"{whole.sentence()}"
    )
    cure = "Use the float artifact, allow a larger drop, or give more data like that of the field"
    return ConversionFailed("holding the bound of", "int8-mixed", why, cure)


# ---------------------------------------------------------------- ranking


@dataclass(frozen=True)
class _Unit:
    """What may be given back, and at what price. ``cost_ms`` is None where nothing was timed."""

    of: Gain
    cost_ms: float | None = None
    work: float = 0.0

    @property
    def nodes(self) -> tuple[str, ...]:
        return self.of.nodes

    @property
    def gain(self) -> float:
        return self.of.gain


def _units(ground: Ground) -> list[_Unit]:
    """The activations that may be given back, the greatest gain first."""
    found = sorted(ground.gains(), key=lambda g: (-g.gain, g.activation))
    return [_Unit(g) for g in found if g.gain > 0 and g.nodes][:CANDIDATES]


def _nodes(units: Sequence[_Unit]) -> tuple[str, ...]:
    """The nodes around ``units``."""
    return tuple(dict.fromkeys(node for one in units for node in one.nodes))


def _ranked(ground: Ground, units: Sequence[_Unit], whole: Path) -> list[_Unit]:
    """``units`` by gain per cost, the best first."""
    medians = ground.time([whole, *(ground.write(u.nodes) for u in units)]) if units else None
    if medians is not None:
        timed = [replace(u, cost_ms=ms - medians[0]) for u, ms in zip(units, medians[1:], strict=True)]
        # differences below a fiftieth of the whole are this run's noise
        return sorted(timed, key=lambda u: -u.gain / max(u.cost_ms or 0.0, 0.02 * medians[0]))
    work = {layer.node: _work(ground.original, layer) for layer in layers(ground.original)}
    weighed = [replace(u, work=sum(work.get(n, 0.0) for n in u.nodes)) for u in units]
    return sorted(weighed, key=lambda u: -u.gain / max(u.work, 1.0))


def gains(
    original: Any,
    recovered: Any,
    ranges: Ranges,
    symmetric: bool,
    samples: Iterable[Arrays],
    threads: int,
    macs: float,
    only: Collection[str] | None = None,
) -> tuple[Gain, ...]:
    """What leaving each activation unrounded gains at the outputs, all others rounded.

    ``macs`` are the multiply-adds of one inference: large models are simulated on fewer samples. ``only``
    names the nodes that are quantised (all where it is None).
    """
    held = simulate.quantised_activations(recovered, ranges, only=only)
    fake = simulate.fake_quantised(recovered, held, ranges, symmetric, switches=True)
    runner = simulate.session(fake, threads)
    affordable = int(PROBE_MACS // max(macs * (len(held) + 1), 1.0))
    probes = list(itertools.islice(samples, min(max(affordable, LEAST_PROBES), PROBES)))
    truth = outputs(original, probes, threads)
    names = [o.name for o in runner.get_outputs()]
    switches = [f"{simulate.SWITCH}{k}" for k in range(len(held))]

    def error(off: int | None) -> float:
        settings = {s: np.array([k != off]) for k, s in enumerate(switches)}
        made = [dict(zip(names, runner.run(names, {**p, **settings}), strict=True)) for p in probes]
        return _error(truth, made)

    whole = error(None)
    around = _around(recovered, only)
    return tuple(
        Gain(activation=name, nodes=around[name], gain=whole - error(place), whole=whole)
        for place, name in enumerate(held)
    )


def _around(model: Any, only: Collection[str] | None) -> dict[str, tuple[str, ...]]:
    """The nodes that make and read each activation; of a graph where only some are quantised, only those."""
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        if only is not None and node.name not in only:
            continue
        for name in {*node.input, *node.output}:
            found.setdefault(name, []).append(node.name)
    makers = {out: node for node in model.graph.node for out in node.output}
    # What is handed on as it is belongs to what it was made from: the last first, so that chains join.
    for node in reversed(model.graph.node):
        if node.op_type in simulate.HANDED_ON and node.input[0] in found:
            found[node.input[0]] += found.get(node.output[0], [])
    # A Relu or Clip is part of what is before it.
    for name, nodes in found.items():
        maker = makers.get(name)
        if maker is not None and maker.op_type in {"Relu", "Clip"}:
            before = makers.get(maker.input[0])
            nodes += [before.name] if before is not None else []
    return {name: tuple(n for n in dict.fromkeys(nodes) if n) for name, nodes in found.items()}


def _marked(units: Sequence[_Unit], losses: Sequence[LayerLoss]) -> tuple[LayerLoss, ...]:
    """The losses with the gain and cost of the activation that each layer makes, or else reads."""
    best: dict[str, _Unit] = {}
    for unit in units:
        for node in unit.nodes:
            if node not in best or unit.gain > best[node].gain:
                best[node] = unit
    told = []
    for loss in losses:
        mine = best.get(loss.node)
        if mine is None:
            told.append(loss)
            continue
        whole = mine.of.whole
        gain_db = 10 * math.log10(max(whole, 1e-30) / max(whole - mine.gain, 1e-30))
        note = f"with {', '.join(n for n in mine.nodes if n != loss.node) or 'nothing else'}"
        if mine.cost_ms is None:
            note += "; its cost is its share of the weights: nothing could be timed here"
        told.append(msgspec.structs.replace(loss, output_gain_db=gain_db, cost_ms=mine.cost_ms, note=note))
    return tuple(told)


def _work(model: Any, layer: Any) -> float:
    weight = next(i for i in model.graph.initializer if i.name == layer.weight)
    return float(np.prod(weight.dims))


def _error(truth: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> float:
    """Error energy over signal energy, summed over outputs (each on its own scale)."""
    total = 0.0
    for name in truth[0]:
        a = np.concatenate([np.asarray(t[name], np.float64).ravel() for t in truth])
        b = np.concatenate([np.asarray(f[name], np.float64).ravel() for f in found])
        total += float(((a - b) ** 2).sum() / max(float((a**2).sum()), 1e-30))
    return total
