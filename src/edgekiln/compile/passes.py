"""The passes of recipes: the table from a pass's name to the function that applies it.

A pass is a function from a ``Step`` to the path of its result and a note of what it did. A new pass is one
function and one row in ``PASSES``.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Literal

from edgekiln.cache import step
from edgekiln.compile.graph import ops
from edgekiln.compile.quantise import mixed
from edgekiln.compile.quantise.bounds import bound
from edgekiln.compile.quantise.mixed import Gain
from edgekiln.compile.quantise.observers import Observation, Ranges, load, ranges, save
from edgekiln.compile.quantise.operators import refuse_quantised, unknown_operators
from edgekiln.compile.quantise.sensitivity import layer_losses
from edgekiln.compile.quantise.shards import observe_in_processes
from edgekiln.compile.quantise.static import (
    DIALECTS,
    layer_nodes,
    prepared,
    quantise_dynamic,
    quantise_static,
    write_static,
)
from edgekiln.compile.recipes import LEFT_TO_TARGET
from edgekiln.compile.step import Applied, Apply, Step, given, left
from edgekiln.compile.weights import compress, palettise
from edgekiln.compile.workshop import Calibration, Validation, Workshop, tools
from edgekiln.errors import ConversionFailed
from edgekiln.files import sha256_file
from edgekiln.model.cost import cost
from edgekiln.records import LayerLoss, PassReport, Record

_OF_FLOAT = frozenset({"equalise", "palettise", "qat", "recover", "compress-weights"})

KEEP_BACK = 4
"""A search holds its bound on one calibration sample in so many, which ranges and rounding don't see."""


class _Recovered(Record, frozen=True, kw_only=True):
    note: str


class _Losses(Record, frozen=True, kw_only=True):
    layers: tuple[LayerLoss, ...]


class _Gains(Record, frozen=True, kw_only=True):
    gains: tuple[Gain, ...]


class _Observed(Record, frozen=True, kw_only=True):
    tensors: int


def apply(one: Step) -> tuple[Path, PassReport]:
    """Run one pass of a recipe; the path of its result and what it did."""
    import onnx

    started = time.perf_counter()
    before = ops(onnx.load(one.path, load_external_data=False))
    function = PASSES.get(one.one.name)
    if function is None and one.one.name not in LEFT_TO_TARGET:
        raise ConversionFailed("applying", one.one.name, "no pass has this name", "Check the recipe")
    if one.one.name in _OF_FLOAT or one.one.name.startswith("quantise-"):
        refuse_quantised(before, one.path.name)
    made, note, found = (function or left)(one)
    after = ops(onnx.load(made, load_external_data=False)) if made.suffix == ".onnx" else _ir_ops(made)
    return made, PassReport(
        name=one.one.name,
        outcome="unneeded" if made == one.path else "kept",
        seconds=time.perf_counter() - started,
        nodes_before=sum(before.values()),
        nodes_after=sum(after.values()),
        ops_before=before,
        ops_after=after,
        note=note,
        layers=found,
    )


def _precision(one: Step) -> Applied:
    import onnx

    from edgekiln.compile.precision import to_bf16, to_fp16, weight_loss

    if one.form == "float":
        return left(one)
    if one.form == "openvino":
        one.into.write_bytes(one.path.read_bytes())
        note = "left to OpenVINO: weights in 16 bits when it converts, arithmetic by its precision hint"
        return Applied(one.into, note)
    kind = str(one.one.params["type"])
    model = onnx.load(one.path)
    loss = weight_loss(model, kind)
    # float32 at input and output: what the application hands over does not change with the recipe.
    onnx.save(to_fp16(model) if kind == "fp16" else to_bf16(model), one.into)
    return Applied(one.into, loss.sentence())


def _static(one: Step) -> Applied:
    dialect, data = DIALECTS[one.form], given(one)
    ready = prepared(one.path, dialect, one.into.with_name("prepared.onnx"))
    seen, rule, remark = _seen(one, ready, data)
    held = quantise_static(ready, seen, rule, one.one.params, dialect, one.into)
    note = f"dialect {one.form}: {len(held)} ranges by {rule} from {samples_text(data)}{remark}"
    if not dialect.hexagon and (unknown := unknown_operators(ready)):
        note += f"; in float, without a quantised form: {', '.join(f'{k} {n}' for k, n in unknown.items())}"
    return Applied(one.into, note, _losses(one, ready, held))


def _losses(one: Step, ready: Path, held: Ranges) -> tuple[LayerLoss, ...]:
    """What 8 bits cost each layer. A Hexagon graph's grids are chosen by its own quantiser: nothing is
    said.
    """
    import onnx

    from edgekiln.compile.quantise.simulate import on_grids

    dialect, params, shop, data = DIALECTS[one.form], one.one.params, one.shop, given(one)
    if dialect.hexagon or data.ranges_alone:
        return ()

    def produce(into: Path) -> _Losses:
        original, decided = onnx.load(one.shop.graph), onnx.load(ready)
        if one.origin is not None:
            original = onnx.load(one.origin)
        only = layer_nodes(ready) if params.get("layers") else None
        keep = () if only is None else {n.name for n in original.graph.node if n.name not in only}
        decided = on_grids(decided, 63 if dialect.reduce_range else 127, keep)
        found = layer_losses(
            original, decided, held, dialect.symmetric, data.samples(), shop.threads, only=only
        )
        return _Losses(layers=found)

    origin = sha256_file(one.origin) if one.origin is not None else shop.model_sha256
    key = [sha256_file(ready), origin, data.sha256, params, dialect.symmetric, dialect.reduce_range, tools()]
    _, found, _ = step(shop.cache, "losses", key, _Losses, produce)
    return found.layers


def _align(one: Step) -> Applied:
    import onnx

    from edgekiln.compile.align import align

    model, multiple = onnx.load(one.path), int(one.one.params["multiple"])
    found = align(model, multiple)
    if not found.padded:
        return Applied(one.path, found.sentence(multiple))
    onnx.save(model, one.into)
    return Applied(one.into, found.sentence(multiple))


def _equalise(one: Step) -> Applied:
    """Tied channels levelled: the same function, with weights and activations that 8 bits hold better."""
    import onnx

    from edgekiln.compile.quantise.equalise import equalised

    data = given(one)
    made, note = equalised(
        onnx.load(one.path), data.samples(), one.shop.threads, float(one.one.params["alpha"])
    )
    onnx.save(made, one.into)
    return Applied(one.into, note)


def _qat(one: Step) -> Applied:
    """The float graph after fine-tuning by the user's own trainer."""
    from edgekiln.compile.finetune.apart import fine_tuned

    made, tuned = fine_tuned(one.shop, _grid_end(one))
    one.into.write_bytes(made.read_bytes())
    return Applied(one.into, tuned.note)


def _grid_end(one: Step) -> int:
    return 63 if DIALECTS[one.form].reduce_range else 127


def _seen(one: Step, ready: Path, data: Calibration) -> tuple[dict[str, Observation], str, str]:
    """What was seen, the rule to read it by, and a remark: ranges that training learned are extremes."""
    seen, rule = observations(one.shop, ready, data), str(one.one.params["rule"])
    if rule != "learned":
        return seen, rule, ""
    from edgekiln.compile.finetune.apart import as_learned

    learned, remark = as_learned(one.shop, _grid_end(one), seen)
    return learned, "minmax", remark


def _recover(one: Step) -> Applied:
    """Weights on their grids and biases corrected; what 8 bits then cost each layer."""
    data = given(one)
    made, note = _recovered(one, data)
    one.into.write_bytes(made.read_bytes())
    return Applied(one.into, note)


def _recovered(one: Step, data: Calibration) -> tuple[Path, str]:
    """The recovered graph, kept apart by what went in: dialects, targets and recipes share it."""
    import onnx

    from edgekiln.compile.quantise.recover import Recovery, recover

    dialect, params = DIALECTS[one.form], one.one.params
    what = Recovery(
        round=bool(params["round"]),
        bias=bool(params["bias"]),
        symmetric=dialect.symmetric,
        most=_grid_end(one),
        bits=int(params.get("activation_bits", 8)),
    )
    ready = prepared(one.path, dialect, one.into.with_name("prepared.onnx"))
    own = {k: v for k, v in params.items() if k in {"rule", "percentile", "layers"}}

    def produce(into: Path) -> _Recovered:
        model = onnx.load(ready)
        seen, rule, _ = _seen(one, ready, data)
        held = ranges(seen, rule, dialect.symmetric, params)
        only = layer_nodes(ready) if params.get("layers") else None
        made, note = recover(model, held, data.samples, what, one.shop.threads, only)
        _remember(made, sha256_file(ready))
        onnx.save(made, into / "graph.onnx")
        return _Recovered(note=note)

    key = [sha256_file(ready), data.sha256, data.n, own, dataclasses.asdict(what), tools()]
    folder, found, _ = step(one.shop.cache, "recover", key, _Recovered, produce)
    return folder / "graph.onnx", found.note


_SOURCE = "edgekiln.ranges_of"


def _remember(model: Any, sha256: str) -> None:
    """Say in ``model`` of which graph the ranges are: weights that moved by half a step move no range."""
    model.metadata_props.add(key=_SOURCE, value=sha256)


def _remembered(path: Path) -> str | None:
    import onnx

    held = onnx.load(path, load_external_data=False).metadata_props
    return next((p.value for p in held if p.key == _SOURCE), None)


def _mixed(one: Step) -> Applied:
    """The search for the layers that stay float (``quantise.mixed``)."""
    import onnx

    from edgekiln.compile.quantise import candidates

    dialect, params, shop = DIALECTS[one.form], one.one.params, one.shop
    fit, kept = held_on(shop)
    recovered, how = _recovered(one, fit)
    seen = observations(shop, one.path, fit)
    held = ranges(seen, str(params["rule"]), dialect.symmetric, params)
    written: dict[frozenset[str], Path] = {}

    def write(keep_float: Collection[str]) -> Path:
        """Layers that stay float keep the decided weights: their biases were corrected together with them."""
        key = frozenset(keep_float)
        if key not in written:
            into = one.into.with_name(f"candidate-{len(written)}.onnx")
            write_static(recovered, held, params, dialect, into, key)
            written[key] = into
        return written[key]

    original, decided = onnx.load(one.path), onnx.load(recovered)
    only = layer_nodes(one.path) if params.get("layers") else None
    about = (original, decided, held, dialect.symmetric)
    key = [sha256_file(one.path), sha256_file(recovered), held, dialect.symmetric, kept.sha256]
    key += [None if only is None else sorted(only), tools()]

    def lost(into: Path) -> _Losses:
        return _Losses(layers=layer_losses(*about, kept.samples(), shop.threads, only=only))

    def gained(into: Path) -> _Gains:
        macs = float(sum(o.macs for o in cost(one.path).ops))
        return _Gains(gains=mixed.gains(*about, kept.samples(), shop.threads, macs, only))

    # Dialects of one grid share both: they differ in the engine that times and judges.
    _, losses, _ = step(shop.cache, "losses", key, _Losses, lost)
    own = shop.validation or Validation()
    of = (shop.model.task, float(params["drop"]), original, kept.samples, fit.samples, shop.threads)
    ground = mixed.Ground(
        original=original,
        recovered=decided,
        bound=bound(*of, own.metric, own.truths),
        run=candidates.runner(one.form, shop.threads),
        write=write,
        time=candidates.timer(one.form, shop.threads, next(iter(kept.samples()))),
        gains=lambda: step(shop.cache, "gains", key, _Gains, gained)[1].gains,
    )
    found = mixed.search(ground, losses.layers)
    one.into.write_bytes(found.file.read_bytes())
    of_all = "" if fit is shop.calibration else f" of {fit.n + kept.n}"
    return Applied(one.into, f"{how}{of_all}; {found.note}", found.losses)


def _arithmetic(one: Step) -> Applied:
    one.into.write_bytes(one.path.read_bytes())
    note = f"what is not quantised is computed in {one.one.params['type']}, by the engine's own hint"
    return Applied(one.into, note)


def _dynamic(one: Step) -> Applied:
    quantise_dynamic(one.path, one.into)
    return Applied(one.into, "")


def _nncf(one: Step) -> Applied:
    from edgekiln.compile.quantise.nncf import quantise_openvino

    data = given(one)
    preset: Literal["performance", "mixed"] = (
        "performance" if one.one.params["preset"] == "performance" else "mixed"
    )
    made = quantise_openvino(one.path, data.samples, data.n, preset, one.into.parent)
    version = importlib.metadata.version("nncf")
    return Applied(made, f"NNCF {version}, preset {preset}, from {samples_text(data)}")


PASSES: dict[str, Apply] = {
    "align": _align,
    "arithmetic": _arithmetic,
    "compress-weights": compress,
    "equalise": _equalise,
    "palettise": palettise,
    "precision": _precision,
    "qat": _qat,
    "quantise-static": _static,
    "quantise-dynamic": _dynamic,
    "quantise-mixed": _mixed,
    "quantise-nncf": _nncf,
    "recover": _recover,
}


def samples_text(data: Calibration) -> str:
    """How many samples ranges were found on, in words."""
    return f"{data.n} samples{data.remark and f' ({data.remark})'}"


def split(data: Calibration) -> tuple[Calibration, Calibration]:
    """The samples to find ranges and rounding on, and every ``KEEP_BACK``-th, which those never see."""

    def part(back: bool) -> Calibration:
        def chosen() -> Iterable[Any]:
            return (s for k, s in enumerate(data.samples()) if (k % KEEP_BACK == KEEP_BACK - 1) == back)

        kept = data.n // KEEP_BACK
        which = f"1 in {KEEP_BACK}, kept back" if back else f"without 1 in {KEEP_BACK}"
        remark = "; ".join(filter(None, (data.remark, which)))
        return Calibration(chosen, kept if back else data.n - kept, f"{data.sha256}:{which}", remark)

    return part(False), part(True)


def held_on(shop: Workshop) -> tuple[Calibration, Calibration]:
    """The samples that a search finds ranges and rounding on, and those that its bound is held on."""
    data, own = shop.calibration, shop.validation
    assert data is not None  # make refuses the recipe otherwise
    if own is None or own.samples is None:
        return split(data)
    return data, Calibration(own.samples, own.n, own.sha256, "the job's validation samples")


def observations(shop: Workshop, graph: Path, data: Calibration) -> dict[str, Observation]:
    """The activations' observations: one pass over the data for all recipes and dialects of one graph."""
    # Most dialects quantise the shop's own graph, whose hash is its name.
    name = shop.model_sha256 if graph == shop.graph else (_remembered(graph) or sha256_file(graph))
    if name in data.kept:
        return dict(data.kept[name])

    def produce(into: Path) -> _Observed:
        seen = observe_in_processes(graph, data.samples(), shop.threads, data.processes)
        save(seen, into / "observations.npz")
        return _Observed(tensors=len(seen))

    folder, _, _ = step(shop.cache, "observe", [name, data.sha256, tools()], _Observed, produce)
    return load(folder / "observations.npz")


def _ir_ops(path: Path) -> dict[str, int]:
    """Operators of an OpenVINO IR by type; constants, inputs and outputs are no operators."""
    kinds = Counter(layer.get("type", "") for layer in ElementTree.parse(path).getroot().iter("layer"))
    return {k: n for k, n in sorted(kinds.items()) if k not in {"Const", "Parameter", "Result"}}
