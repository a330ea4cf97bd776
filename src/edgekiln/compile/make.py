"""From the optimised float graph to an artifact: one recipe in a target's dialect, then its format."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from edgekiln.cache import step
from edgekiln.compile.finetune.apart import check_training
from edgekiln.compile.finetune.order import Training
from edgekiln.compile.isolate import Converters
from edgekiln.compile.passes import KEEP_BACK, apply
from edgekiln.compile.quantise.mixed import LEAST_SAMPLES
from edgekiln.compile.quantise.static import precisions
from edgekiln.compile.recipes import LEFT_TO_TARGET, at_drop, needs_calibration, recipe, unaligned
from edgekiln.compile.step import Step
from edgekiln.compile.targets import TARGETS, Conversion, dialect
from edgekiln.compile.workshop import Workshop, tools
from edgekiln.devices import Device
from edgekiln.errors import ConversionFailed
from edgekiln.files import sha256_file, sha256_record
from edgekiln.model.cost import cost
from edgekiln.records import Artifact, Budget, Recipe, Record, Variant


class _Lent(Record, frozen=True, kw_only=True):
    samples: int


MATMUL_SHARE = 0.5
MATMUL_ONLY = frozenset({"int8-dynamic", "int8-xnnpack-dynamic"})
"""Recipes that quantise MatMul and Gemm alone."""

DROP = 0.01
"""The share of decisions that a mixed recipe may change where the budget says nothing."""
TRAINED = ("int8-static-minmax", "int8-litert-static", "int8-xnnpack-static")
"""What is tried on a fine-tuned graph where no recipe was named, of the kinds that the target takes."""
LENT_SAMPLES = 64
BF16 = {"openvino": frozenset({"avx512_bf16", "amx_bf16"}), "tensorrt": frozenset({"bf16"})}
"""By target, the features of a device with which it computes in bfloat16."""


def searched_drop(budget: Budget, labelled: bool) -> float:
    """The share that a search may lose: of the metric where it has labels, else of the float model's
    decisions.
    """
    drop, agreement = budget.accuracy_drop, budget.agreement
    if agreement is not None and (drop is None or not labelled):
        return 1 - agreement
    return DROP if drop is None else drop


def plan(
    device: Device,
    target: str,
    recipes: Iterable[str] | None,
    matmul_share: float | None = None,
    drop: float = DROP,
    samples: int | None = None,
    apart: int | None = None,
    trainer: bool = False,
) -> list[tuple[str, str]]:
    """(recipe, reason to skip it or "") for each recipe that ``target`` tries on ``device``.

    ``matmul_share`` is the share of the graph's multiply-adds in MatMul and Gemm, where it is known:
    dynamic quantisation leaves all others in float, so below a half it is not worth its cost. ``drop`` is the
    bound that mixed recipes hold where none was asked for by name, ``samples`` how many calibration samples
    there are, where it is known: of too few none can be kept back to hold a bound on. ``apart`` is how many
    validation samples the job brings, None where it brings none. With a ``trainer`` a target of static INT8
    tries it on the fine-tuned graph too.
    Of the recipes that were asked for none is left out without a reason; any steps can be asked for.
    """
    takes = TARGETS[target].recipes
    own = [at_drop(name, drop) for name in takes]
    own += _on_trained(takes) if trainer else []
    rows = []
    for name in own if recipes is None else dict.fromkeys(recipes):
        reason = (
            ""
            if unaligned(name) in own or _of_kind(unaligned(name), takes) or _in_blocks(name, target)
            else (f"{target} has no such recipe; it takes {', '.join(takes)}")
        )
        reason = reason or _unfit(name, device, target, matmul_share) or _unjudged(name, samples, apart)
        if recipes is None and not reason and f"{name}+bf16" in own and _computes_bf16(device, target):
            reason = f"{name}+bf16 is tried instead: {device.name} computes in bfloat16"
        rows.append((name, reason))
    return rows


def _on_trained(takes: Sequence[str]) -> list[str]:
    """The recipe with ``+qat`` of a target that takes ``takes``; none where it takes no static INT8."""
    kinds = {base: base.rpartition("-")[0] if base.endswith("-minmax") else base for base in TRAINED}
    return [f"{base}+qat" for base, kind in kinds.items() if any(t.startswith(kind) for t in takes)]


def _of_kind(name: str, takes: Sequence[str]) -> bool:
    """Whether ``name`` is of a kind that the target takes with any rule, bound and steps."""
    kinds = (
        *("int8-static-", "a16w8-static-", "int8-mixed-", "int8-litert-static+", "int8-xnnpack-static+"),
        "palette-mixed-",
    )
    return any(name.startswith(kind) and any(t.startswith(kind.rstrip("+")) for t in takes) for kind in kinds)


def _in_blocks(name: str, target: str) -> bool:
    """Whether ``name`` compresses the weights of matrix products for a target that has such products."""
    return name.startswith(("w4-block", "w8-block")) and target in {"onnxruntime", "openvino"}


def _unfit(name: str, device: Device, target: str, matmul_share: float | None) -> str:
    """Why a recipe is not tried on this device and graph; "" where nothing speaks against it."""
    if (name == "bf16" or name.endswith("+bf16")) and not _computes_bf16(device, target):
        return f"{device.name} is not known to compute in bfloat16 by {target}"
    if matmul_share is None:
        return ""
    said = f"MatMul and Gemm do {matmul_share:.1%} of this one's work"
    steps = name.split("+")[1:]
    for_products = name in MATMUL_ONLY or "layers" in steps or _in_blocks(name, target)
    if for_products and matmul_share < MATMUL_SHARE:
        return f"for matmul-heavy graphs; {said}"
    searched = "round" in steps or "bias" in steps or name.startswith("int8-mixed-")
    if searched and "layers" not in steps and matmul_share >= MATMUL_SHARE:
        return f"for graphs of convolutions; {said}"
    return ""


def _unjudged(name: str, samples: int | None, apart: int | None) -> str:
    """Why no bound can be held for a search; "" where one can, or none is needed."""
    if not name.startswith("int8-mixed-"):
        return ""
    if apart is not None:
        few = f"{apart} validation samples were given; a bound needs at least {LEAST_SAMPLES}"
        return few if apart < LEAST_SAMPLES else ""
    if samples is None or samples // KEEP_BACK >= LEAST_SAMPLES:
        return ""
    least = LEAST_SAMPLES * KEEP_BACK
    return (
        f"a bound is held on one calibration sample in {KEEP_BACK}: {samples} were given, {least} are needed"
    )


def _computes_bf16(device: Device, target: str) -> bool:
    return bool(BF16.get(target, frozenset()) & set(device.features))


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
    tried = _tried(shop, target)
    order = Conversion(
        variant=variant,
        folder=str(variant_folder),
        device=device,
        model=shop.model,
        calibration=str(_samples(shop, LENT_SAMPLES)) if left else None,
        example=str(_samples(shop, 1) / _SAMPLE.format(1)) if tried else None,
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
    data = shop.calibration.sha256 if (left or tried) and shop.calibration else ""
    key = [variant.sha256, which, form, target, about, traits, data, shop.sizes, tools()]
    folder, artifact, _ = step(shop.cache, "artifact", key, Artifact, produce)
    return folder, msgspec.structs.replace(artifact, id=f"{device.name}.{target}.{which.name}")


def _tried(shop: Workshop, target: str) -> bool:
    """Whether a target that tries what it made is given a sample: there is one, and nothing else says what
    the inputs look like."""
    data = shop.calibration
    given = data is not None and data.n > 0 and not data.ranges_alone
    return TARGETS[target].tries and given and shop.model.preprocess is None and not shop.sizes


def _variant(shop: Workshop, which: Recipe, form: str) -> tuple[Path, Variant]:
    data = shop.calibration
    if needs_calibration(which) and data is None:
        raise ConversionFailed(
            "calibrating",
            which.name,
            "no data was given",
            "Give --data with pictures like those of the field",
        )

    trained = any(p.name == "qat" for p in which.passes)
    if trained:
        check_training(shop, which.name)

    def produce(into: Path) -> Variant:
        path, reports = shop.graph, []
        origin = None
        for number, one in enumerate(which.passes):
            made = into / f"{number}.onnx"
            path, report = apply(Step(one, shop, form, path, made, origin))
            origin = path if one.name in {"align", "equalise", "qat"} else origin
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
            precisions=precisions(final) if final.suffix == ".onnx" else _of_ir(final),
            passes=tuple(reports),
        )

    seen = data.sha256 if data and needs_calibration(which) else ""
    searched = any(p.name == "quantise-mixed" for p in which.passes)
    held_on = shop.validation.sha256 if searched and shop.validation else ""
    key = [shop.model_sha256, which, form, seen, held_on, tools()]
    key += [shop.training.sha256, shop.threads] if trained and isinstance(shop.training, Training) else []
    folder, variant, _ = step(shop.cache, "variant", key, Variant, produce)
    return folder, variant


_SAMPLE = "sample-{:04d}.npz"


def _samples(shop: Workshop, most: int) -> Path:
    """A folder of calibration samples for one target, at most ``most``."""
    data = shop.calibration
    assert data is not None  # _variant refuses the recipe otherwise, and _tried looks

    def produce(into: Path) -> _Lent:
        count = 0
        for count, sample in enumerate(itertools.islice(data.samples(), most), start=1):
            np.savez(into / _SAMPLE.format(count), allow_pickle=False, **sample)
        return _Lent(samples=count)

    key = [shop.model_sha256, data.sha256, most]
    folder, _, _ = step(shop.cache, "samples", key, _Lent, produce)
    return folder


def _rename_all(path: Path, final: Path) -> None:
    """Rename a graph and the weights beside it (OpenVINO's .bin); earlier passes' results go."""
    for part in path.parent.glob(f"{path.stem}.*"):
        part.rename(final.with_suffix(part.suffix))
    for old in final.parent.iterdir():
        if old.stem != final.stem:
            old.unlink()


def _of_ir(path: Path) -> dict[str, int]:
    """What an OpenVINO IR holds quantised: pairs that NNCF placed, else weights in 4 or 8 bits."""
    text = path.read_text(encoding="utf-8")
    if fakes := text.count('type="FakeQuantize"'):
        return {"int8": fakes}
    # of a product's two constants, integers and zero points, the second is not counted
    found = {f"w{bits}": text.count(f'element_type="u{bits}"') // 2 for bits in (4, 8)}
    return {name: n for name, n in found.items() if n}
