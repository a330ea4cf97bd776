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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from edgekiln.cache import step
from edgekiln.compile.graph import ops
from edgekiln.compile.quantise.observers import Observation, load, observe, save
from edgekiln.compile.quantise.static import DIALECTS, prepared, quantise_dynamic, quantise_static
from edgekiln.compile.recipes import LEFT_TO_TARGET
from edgekiln.compile.workshop import Workshop, tools
from edgekiln.errors import ConversionFailed
from edgekiln.files import sha256_file
from edgekiln.records import Pass, PassReport, Record


@dataclass(frozen=True)
class Step:
    """One pass to apply: ``path`` is the graph so far, ``into`` the file to write, ``form`` the dialect."""

    one: Pass
    shop: Workshop
    form: str
    path: Path
    into: Path


Apply: TypeAlias = Callable[[Step], tuple[Path, str]]
"""Gives the path of the result (``into``, or a file of another suffix beside it) and a note."""


class _Recovered(Record, frozen=True, kw_only=True):
    note: str


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
    made, note = (function or _left)(one)
    after = ops(onnx.load(made, load_external_data=False)) if made.suffix == ".onnx" else _ir_ops(made)
    return made, PassReport(
        name=one.one.name,
        outcome="kept",
        seconds=time.perf_counter() - started,
        nodes_before=sum(before.values()),
        nodes_after=sum(after.values()),
        ops_before=before,
        ops_after=after,
        note=note,
    )


def _left(one: Step) -> tuple[Path, str]:
    one.into.write_bytes(one.path.read_bytes())
    return one.into, "left to the target, which applies it in its own format"


def _precision(one: Step) -> tuple[Path, str]:
    import onnx

    from edgekiln.compile.precision import to_bf16, to_fp16, weight_loss

    if one.form == "float":
        return _left(one)
    if one.form == "openvino":
        one.into.write_bytes(one.path.read_bytes())
        return one.into, (
            "left to OpenVINO: weights in 16 bits when it converts, arithmetic by its precision hint"
        )
    kind = str(one.one.params["type"])
    model = onnx.load(one.path)
    loss = weight_loss(model, kind)
    # float32 at input and output: what the application hands over does not change with the recipe.
    onnx.save(to_fp16(model) if kind == "fp16" else to_bf16(model), one.into)
    return one.into, loss.sentence()


def _static(one: Step) -> tuple[Path, str]:
    rule, dialect = str(one.one.params["rule"]), DIALECTS[one.form]
    ready = prepared(one.path, dialect, one.into.with_name("prepared.onnx"))
    seen = observations(one.shop, ready)
    held = quantise_static(ready, seen, rule, one.one.params, dialect, one.into)
    return one.into, f"dialect {one.form}: {len(held)} ranges by {rule} from {samples_text(one.shop)}"


def _equalise(one: Step) -> tuple[Path, str]:
    """Tied channels levelled: the same function, with weights and activations that 8 bits hold better."""
    import onnx

    from edgekiln.compile.quantise.equalise import equalised

    data = one.shop.calibration
    assert data is not None  # make refuses the recipe otherwise
    made, note = equalised(
        onnx.load(one.path), data.samples(), one.shop.threads, float(one.one.params["alpha"])
    )
    onnx.save(made, one.into)
    return one.into, note


def _recover(one: Step) -> tuple[Path, str]:
    """Weights on their grids and biases corrected. Kept apart from the recipe's last pass, by what went in:
    targets and recipes share it."""
    import onnx

    from edgekiln.compile.quantise.observers import ranges
    from edgekiln.compile.quantise.recover import Recovery, recover
    from edgekiln.compile.quantise.static import layer_nodes

    data, dialect, params = one.shop.calibration, DIALECTS[one.form], one.one.params
    assert data is not None  # make refuses the recipe otherwise
    bits = int(params.get("activation_bits", 8))
    what = Recovery(
        round=bool(params["round"]),
        bias=bool(params["bias"]),
        symmetric=dialect.symmetric,
        most=63 if dialect.reduce_range else 127,
        bits=bits,
    )
    ready = prepared(one.path, dialect, one.into.with_name("prepared.onnx"))

    def produce(into: Path) -> _Recovered:
        model = onnx.load(ready)
        held = ranges(observations(one.shop, ready), str(params["rule"]), dialect.symmetric, params)
        only = layer_nodes(ready) if params.get("layers") else None
        made, note = recover(model, held, data.samples, what, one.shop.threads, only)
        onnx.save(made, into / "graph.onnx")
        return _Recovered(note=note)

    key = [sha256_file(ready), data.sha256, params, dataclasses.asdict(what), tools()]
    folder, found, _ = step(one.shop.cache, "recover", key, _Recovered, produce)
    one.into.write_bytes((folder / "graph.onnx").read_bytes())
    return one.into, found.note


def _arithmetic(one: Step) -> tuple[Path, str]:
    one.into.write_bytes(one.path.read_bytes())
    return one.into, f"what is not quantised is computed in {one.one.params['type']} by the engine's own hint"


def _dynamic(one: Step) -> tuple[Path, str]:
    quantise_dynamic(one.path, one.into)
    return one.into, ""


def _nncf(one: Step) -> tuple[Path, str]:
    from edgekiln.compile.quantise.nncf import quantise_openvino

    data = one.shop.calibration
    assert data is not None  # make refuses the recipe otherwise
    preset: Literal["performance", "mixed"] = (
        "performance" if one.one.params["preset"] == "performance" else "mixed"
    )
    made = quantise_openvino(one.path, data.samples, data.n, preset, one.into.parent)
    version = importlib.metadata.version("nncf")
    return made, f"NNCF {version}, preset {preset}, from {samples_text(one.shop)}"


PASSES: dict[str, Apply] = {
    "arithmetic": _arithmetic,
    "equalise": _equalise,
    "precision": _precision,
    "quantise-static": _static,
    "quantise-dynamic": _dynamic,
    "quantise-nncf": _nncf,
    "recover": _recover,
}


def samples_text(shop: Workshop) -> str:
    """How many samples ranges were found on, in words."""
    data = shop.calibration
    return "no sample" if data is None else f"{data.n} samples{data.remark and f' ({data.remark})'}"


def observations(shop: Workshop, graph: Path) -> dict[str, Observation]:
    """The activations' observations: one pass over the data for all recipes and dialects of one graph."""
    data = shop.calibration
    assert data is not None  # make refuses the recipe otherwise

    def produce(into: Path) -> _Observed:
        seen = observe(graph, data.samples(), shop.threads)
        save(seen, into / "observations.npz")
        return _Observed(tensors=len(seen))

    # Most dialects quantise the shop's own graph, whose hash is its name.
    name = shop.model_sha256 if graph == shop.graph else sha256_file(graph)
    folder, _, _ = step(shop.cache, "observe", [name, data.sha256, tools()], _Observed, produce)
    return load(folder / "observations.npz")


def _ir_ops(path: Path) -> dict[str, int]:
    """Operators of an OpenVINO IR by type; constants, inputs and outputs are no operators."""
    kinds = Counter(layer.get("type", "") for layer in ElementTree.parse(path).getroot().iter("layer"))
    return {k: n for k, n in sorted(kinds.items()) if k not in {"Const", "Parameter", "Result"}}
