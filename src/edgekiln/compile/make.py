"""From the optimised float graph to an artifact: one recipe in a target's dialect, then its format."""

from __future__ import annotations

import importlib.metadata
import itertools
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekiln.cache import step
from edgekiln.compile.graph import ops
from edgekiln.compile.isolate import Converters
from edgekiln.compile.quantise.observers import Observation, load, observe, save
from edgekiln.compile.quantise.static import DIALECTS, precisions, prepared, quantise_dynamic, quantise_static
from edgekiln.compile.recipes import LEFT_TO_TARGET, needs_calibration, recipe
from edgekiln.compile.targets import TARGETS, Conversion, dialect
from edgekiln.devices import Device
from edgekiln.errors import ConversionFailed
from edgekiln.files import sha256_file, sha256_record
from edgekiln.model.cost import cost
from edgekiln.records import Artifact, Model, Pass, PassReport, Recipe, Record, Variant

TOOLS = (
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "tensorrt-rtx",
    "numpy",
    "torch",
    "torchao",
    "coremltools",
    "onnx2coreml",
    "litert-torch",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "executorch",
    "onnxruntime-qnn",
)


@dataclass(frozen=True)
class Calibration:
    """Samples to find ranges on, as often as asked for; ``sha256`` names them in the cache.

    ``remark`` is what a reader of the ranges should know of the samples (their size, of several).
    """

    samples: Callable[[], Iterable[dict[str, NDArray[Any]]]]
    n: int
    sha256: str
    remark: str = ""


@dataclass(frozen=True)
class Workshop:
    """What every artifact of one build is made from: the float graph, the data, the cache.

    ``model_sha256`` is the hash of ``graph``: it names the graph in the cache. ``model`` is what the
    bundle will say of it: signature, preprocessing, labels. ``sizes`` are the (height, width) that a graph
    with symbolic height and width is made for.
    """

    graph: Path
    model_sha256: str
    calibration: Calibration | None
    cache: Path
    threads: int
    model: Model
    sizes: tuple[tuple[int, int], ...] = ()


class _Observed(Record, frozen=True, kw_only=True):
    tensors: int


MATMUL_SHARE = 0.5
MATMUL_ONLY = frozenset({"int8-dynamic", "int8-xnnpack-dynamic"})
"""Recipes that quantise MatMul and Gemm alone."""

LENT_SAMPLES = 64
BF16 = {"openvino": frozenset({"avx512_bf16", "amx_bf16"}), "tensorrt": frozenset({"bf16"})}
"""By target, the features of a device with which it computes in bfloat16."""


def plan(
    device: Device, target: str, recipes: Iterable[str] | None, matmul_share: float | None = None
) -> list[tuple[str, str]]:
    """(recipe, reason to skip it or "") for each recipe that ``target`` tries on ``device``.

    ``matmul_share`` is the share of the graph's multiply-adds in MatMul and Gemm, where it is known:
    dynamic quantisation leaves all others in float, so below a half it is not worth its cost.
    Of the recipes that were asked for none is left out without a reason; any percentile can be asked for.
    """
    takes = TARGETS[target].recipes
    static = any(name.startswith("int8-static") for name in takes)
    rows = []
    for name in takes if recipes is None else dict.fromkeys(recipes):
        reason = ""
        if name not in takes and not (static and name.startswith("int8-static")):
            reason = f"{target} has no such recipe; it takes {', '.join(takes)}"
        elif name == "bf16" and not BF16[target] & set(device.features):
            reason = f"{device.name} is not known to compute in bfloat16 by {target}"
        if name in MATMUL_ONLY and matmul_share is not None and matmul_share < MATMUL_SHARE:
            reason = f"for matmul-heavy graphs; MatMul and Gemm do {matmul_share:.1%} of this one's work"
        rows.append((name, reason))
    return rows


def matmul_share(graph: Path) -> float | None:
    """The share of multiply-adds in MatMul and Gemm; None where the graph could not be counted."""
    counted = cost(graph)
    if counted.unresolved_count or not counted.macs:
        return None
    return sum(o.macs for o in counted.ops if o.op in {"MatMul", "Gemm"}) / counted.macs


def make(
    shop: Workshop, device: Device, target: str, recipe_name: str, converters: Converters | None = None
) -> tuple[Path, Artifact]:
    """The artifact's folder and record, from the cache where it is there.

    With ``converters`` the conversion runs in a process of its own, else in this one.

    Raises ConversionFailed, MissingExtra, BadInput: rows of the report, other artifacts go on.
    """
    which = recipe(recipe_name)
    form = dialect(target, recipe_name, device)
    variant_folder, variant = _variant(shop, which, form)

    left = needs_calibration(which) and any(p.name in LEFT_TO_TARGET for p in which.passes)
    order = Conversion(
        variant=variant,
        folder=str(variant_folder),
        device=device,
        model=shop.model,
        calibration=str(_samples(shop)) if left else None,
        sizes=shop.sizes,
        threads=shop.threads,
        cache=str(shop.cache),
    )

    def produce(into: Path) -> Artifact:
        if converters is None:
            return TARGETS[target].convert(order, into)
        return converters.convert(target, order, into)

    about = [shop.model.signature, shop.model.preprocess, shop.model.labels, shop.model.task]
    traits = [getattr(device, field) for field in TARGETS[target].per]
    data = shop.calibration.sha256 if left and shop.calibration else ""
    key = [variant.sha256, which, form, target, about, traits, data, shop.sizes, _tools()]
    folder, artifact, _ = step(shop.cache, "artifact", key, Artifact, produce)
    return folder, msgspec.structs.replace(artifact, id=f"{device.name}.{target}.{which.name}")


def _variant(shop: Workshop, which: Recipe, form: str) -> tuple[Path, Variant]:
    data = shop.calibration
    if needs_calibration(which) and data is None:
        raise ConversionFailed(
            "calibrating",
            which.name,
            "no data was given",
            "Give --data with pictures like those of the field",
        )

    def produce(into: Path) -> Variant:
        path, reports = shop.graph, []
        for number, one in enumerate(which.passes):
            made = into / f"{number}.onnx"
            path, report = _apply(one, shop, form, path, made)
            reports.append(report)
        final = into / f"graph{path.suffix}"
        if path == shop.graph:
            final.write_bytes(path.read_bytes())
        else:
            _rename_all(path, final)
        return Variant(
            model_sha256=shop.model_sha256,
            recipe=which,
            dialect=form,
            path=final.name,
            sha256=sha256_record([sha256_file(p) for p in sorted(into.iterdir())]),
            precisions=precisions(final) if final.suffix == ".onnx" else {"int8": _fake_quantised(final)},
            passes=tuple(reports),
        )

    key = [shop.model_sha256, which, form, data.sha256 if data and needs_calibration(which) else "", _tools()]
    folder, variant, _ = step(shop.cache, "variant", key, Variant, produce)
    return folder, variant


def _samples(shop: Workshop) -> Path:
    """A folder of calibration samples for the quantisers of one target, at most ``LENT_SAMPLES``."""
    data = shop.calibration
    assert data is not None  # _variant refuses the recipe otherwise

    def produce(into: Path) -> _Observed:
        count = 0
        for count, sample in enumerate(itertools.islice(data.samples(), LENT_SAMPLES), start=1):
            np.savez(into / f"sample-{count:04d}.npz", allow_pickle=False, **sample)
        return _Observed(tensors=count)

    key = [shop.model_sha256, data.sha256, LENT_SAMPLES]
    folder, _, _ = step(shop.cache, "samples", key, _Observed, produce)
    return folder


def _apply(one: Pass, shop: Workshop, form: str, path: Path, into: Path) -> tuple[Path, PassReport]:
    """Run one pass of a recipe; the path of its result and what it did."""
    import onnx

    started = time.perf_counter()
    before = ops(onnx.load(path, load_external_data=False))
    note = ""
    if one.name == "precision" and form == "openvino":
        into.write_bytes(path.read_bytes())
        note = "left to OpenVINO: weights in 16 bits when it converts, arithmetic by its precision hint"
    elif one.name in LEFT_TO_TARGET or (one.name == "precision" and form == "float"):
        into.write_bytes(path.read_bytes())
        note = "left to the target, which applies it in its own format"
    elif one.name == "precision":
        into, note = _precision(str(one.params["type"]), path, into)
    elif one.name == "quantise-static":
        rule = str(one.params["rule"])
        ready = prepared(path, DIALECTS[form], into.with_name("prepared.onnx"))
        held = quantise_static(ready, _observations(shop, ready), rule, one.params, DIALECTS[form], into)
        note = f"dialect {form}: {len(held)} ranges by {rule} from {_samples_text(shop)}"
    elif one.name == "quantise-dynamic":
        quantise_dynamic(path, into)
    elif one.name == "quantise-nncf":
        into = _nncf(str(one.params["preset"]), shop, path, into.parent)
        version, preset = importlib.metadata.version("nncf"), one.params["preset"]
        note = f"NNCF {version}, preset {preset}, from {_samples_text(shop)}"
    else:
        raise ConversionFailed("applying", one.name, "no pass has this name", "Check the recipe")
    after = ops(onnx.load(into, load_external_data=False)) if into.suffix == ".onnx" else _ir_ops(into)
    return into, PassReport(
        name=one.name,
        outcome="kept",
        seconds=time.perf_counter() - started,
        nodes_before=sum(before.values()),
        nodes_after=sum(after.values()),
        ops_before=before,
        ops_after=after,
        note=note,
    )


def _samples_text(shop: Workshop) -> str:
    data = shop.calibration
    return "no sample" if data is None else f"{data.n} samples{data.remark and f' ({data.remark})'}"


def _precision(kind: str, path: Path, into: Path) -> tuple[Path, str]:
    import onnx

    from edgekiln.compile.precision import to_bf16, to_fp16, weight_loss

    model = onnx.load(path)
    loss = weight_loss(model, kind)
    # float32 at input and output: what the application hands over does not change with the recipe.
    onnx.save(to_fp16(model) if kind == "fp16" else to_bf16(model), into)
    return into, loss.sentence()


def _nncf(preset: str, shop: Workshop, path: Path, into: Path) -> Path:
    from edgekiln.compile.quantise.nncf import quantise_openvino

    assert shop.calibration is not None  # _variant refuses the recipe otherwise
    named: Literal["performance", "mixed"] = "performance" if preset == "performance" else "mixed"
    return quantise_openvino(path, shop.calibration.samples, shop.calibration.n, named, into)


def _observations(shop: Workshop, graph: Path) -> dict[str, Observation]:
    """The activations' observations: one pass over the data for all recipes and dialects of one graph."""
    data = shop.calibration
    assert data is not None  # _variant refuses the recipe otherwise

    def produce(into: Path) -> _Observed:
        seen = observe(graph, data.samples(), shop.threads)
        save(seen, into / "observations.npz")
        return _Observed(tensors=len(seen))

    # Most dialects quantise the shop's own graph, whose hash is its name.
    name = shop.model_sha256 if graph == shop.graph else sha256_file(graph)
    folder, _, _ = step(shop.cache, "observe", [name, data.sha256, _tools()], _Observed, produce)
    return load(folder / "observations.npz")


def _rename_all(path: Path, final: Path) -> None:
    """Rename a graph and the weights beside it (OpenVINO's .bin); earlier passes' results go."""
    for part in path.parent.glob(f"{path.stem}.*"):
        part.rename(final.with_suffix(part.suffix))
    for old in final.parent.iterdir():
        if old.stem != final.stem:
            old.unlink()


def _ir_ops(path: Path) -> dict[str, int]:
    """Operators of an OpenVINO IR by type; constants, inputs and outputs are no operators."""
    kinds = Counter(layer.get("type", "") for layer in ElementTree.parse(path).getroot().iter("layer"))
    return {k: n for k, n in sorted(kinds.items()) if k not in {"Const", "Parameter", "Result"}}


def _fake_quantised(path: Path) -> int:
    return path.read_text(encoding="utf-8").count('type="FakeQuantize"')


def _tools() -> dict[str, str]:
    found = {}
    for tool in TOOLS:
        try:
            found[tool] = importlib.metadata.version(tool)
        except importlib.metadata.PackageNotFoundError:
            found[tool] = "absent"
    return found
