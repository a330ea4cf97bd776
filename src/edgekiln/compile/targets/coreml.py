"""Core ML: an ML Program as ``model.mlpackage``, by the first route whose result computes the same.

Route 1 is onnx2coreml, route 2 PyTorch's torch.export of the graph as a PyTorch module. Each result is run
by the reference interpreter on one sample, of the data or random, against ONNX Runtime before it counts;
the checks of the artifact say which route was taken and why. iOS 17 (macOS 14) is the deployment target,
except for recipes whose operators exist from iOS 18 (macOS 15) on: a lower target reaches more devices, and
the older one has all that the others need.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln import __version__, devices, files
from edgekiln.compile.recipes import recipe as decoded
from edgekiln.compile.targets import Conversion
from edgekiln.compile.targets import coreml_check as check
from edgekiln.compile.targets.coreml_compress import beyond_palettes, needs_ios18
from edgekiln.compile.targets.coreml_io import LABEL, Interface, Ranges, interface, options, wrapped
from edgekiln.compile.targets.coreml_package import ENTRY, operators, quiet, read_spec, write
from edgekiln.compile.targets.coreml_routes import ROUTES, lower, sample, tools
from edgekiln.engines import Arrays
from edgekiln.errors import ConversionFailed, MissingExtra
from edgekiln.model.signature import signature
from edgekiln.records import (
    Artifact,
    Check,
    Model,
    Pass,
    Preprocess,
    Resolution,
    Scalar,
    Source,
    Variant,
)

COMPUTE_UNITS = {True: "ALL", False: "CPU_AND_GPU"}
"""Recommended units by whether the program computes in float16; the Neural Engine takes no float32."""


@dataclass(frozen=True)
class _Work:
    """One order, read: the graph as it came and as it is converted, and the recipe's parts."""

    order: Conversion
    path: Path
    graph: Any
    face: Interface
    half: bool
    compress: Pass | None
    ranges: Ranges

    @property
    def target(self) -> str:
        return "iOS18" if self.compress is not None and needs_ios18(self.compress) else "iOS17"

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        return self.order.sizes


def convert(order: Conversion, into: Path, ranges: Ranges = None) -> Artifact:
    """The ``model.mlpackage`` of a float ``.onnx`` variant, into ``into``.

    Recipes: fp32; fp16; weight compression of the float16 program. A picture input takes its preprocessing
    into the program; a classification model with labels becomes a Core ML classifier and keeps its scores
    under their own name. Several ``order.sizes`` become EnumeratedShapes; ``ranges`` gives a symbolic axis
    by name a (least, most) instead. Raises MissingExtra; ConversionFailed where neither route gives a
    program that computes the same, with the words of both.
    """
    _require(order)
    work = _read(order, ranges)
    inputs = _tried(work)
    pairs = [(one, check.expected(work.path, one, order.threads)) for one in inputs]
    package, route, checks = _first_that_passes(work, pairs, into)
    if work.compress is not None:
        # The route was judged in float16: what compression costs is the recipe's price, not an error.
        held = work.compress.params.get("bits") == 0
        names = [i.name for i in work.graph.graph.initializer]
        whole = beyond_palettes(into, package.name, names) if held else ()
        _write(work, route, package, work.compress, whole)
        checks = (*checks, check.compressed(read_spec(package), len(whole)))
    return _artifact(work, route, into, checks)


def _tried(work: _Work) -> list[dict[str, NDArray[Any]]]:
    """What each route's package is tried on: the order's example, or noise, one input per size."""
    if (example := work.order.example) is None:
        return [sample(work.face, size, work.ranges) for size in work.sizes or (None,)]
    with np.load(example, allow_pickle=False) as arrays:
        return [{feature.own: arrays[feature.own] for feature in work.face.inputs}]


def convert_file(
    graph: Path,
    into: Path,
    recipe: str = "fp16",
    preprocess: Preprocess | None = None,
    labels: tuple[str, ...] = (),
    sizes: tuple[tuple[int, int], ...] = (),
    ranges: Ranges = None,
) -> Artifact:
    """``convert`` for a float ONNX file that no build has taken in: the parts of a package of several
    functions, and what a job can't say, such as ranges. Raises as ``convert`` does, and BadInput for a
    recipe that nobody knows."""
    import onnx

    sha256 = files.sha256_file(graph)
    variant = Variant(
        model_sha256=sha256,
        recipe=decoded(recipe),
        dialect="float",
        path=graph.name,
        sha256=sha256,
        precisions={},
        passes=(),
    )
    model = Model(
        name=graph.stem,
        path=graph.name,
        sha256=sha256,
        signature=signature(onnx.load(graph, load_external_data=False)),
        task="classification" if labels else "tensors",
        source=Source(kind="onnx", files=()),
        preprocess=preprocess,
        labels=labels,
    )
    device = devices.load("iphone-16-pro")
    order = Conversion(
        variant=variant, folder=str(graph.parent.absolute()), device=device, model=model, sizes=sizes
    )
    return convert(order, into, ranges)


def _require(order: Conversion) -> None:
    try:
        with quiet():
            import coremltools
            import onnx2coreml
    except ImportError as error:
        raise MissingExtra("converting for Core ML", order.variant.path, "coreml") from error
    del coremltools, onnx2coreml


def _read(order: Conversion, ranges: Ranges) -> _Work:
    import onnx

    path = order.graph("converting for Core ML")
    graph = onnx.load(path)
    model = order.model
    face = interface(graph, model.preprocess, model.labels, model.task == "classification")
    passes = order.variant.recipe.passes
    compress = next((p for p in passes if p.name == "compress-weights"), None)
    half = compress is not None or any(p.params.get("type") == "fp16" for p in passes)
    return _Work(order, path, wrapped(graph, face), face, half, compress, ranges)


def _first_that_passes(
    work: _Work, pairs: Sequence[tuple[Arrays, Arrays]], into: Path
) -> tuple[Path, str, tuple[Check, ...]]:
    """The package of the first route whose result agrees; else of the first that could not be judged."""
    package, rows, unjudged = into / ENTRY, [], None
    for route in ROUTES:
        with tempfile.TemporaryDirectory() as scratch:
            tried = Path(scratch) / ENTRY
            try:
                _write(work, route, tried, None)
            except (ConversionFailed, MissingExtra) as error:
                rows.append(
                    Check(name=f"route {route}", passed=False, detail=f"refused {error.to}: {error.why}")
                )
                continue
            provisional = _artifact(work, route, tried.parent, ())
            tried_on = "random input" if work.order.example is None else "a sample of the data"
            found = check.agreement(provisional, tried.parent, pairs, work.order.threads, tried_on)
            rows.append(Check(name=f"route {route}", passed=found.passed, detail=found.detail))
            if found.passed:
                shutil.copytree(tried, package, dirs_exist_ok=True)
                return package, route, tuple(rows)
            unjudged = unjudged or (route if found.passed is None else None)
    if unjudged is not None:
        _write(work, unjudged, package, None)
        return package, unjudged, tuple(rows)
    why = "; ".join(f"{row.name} {row.detail}" for row in rows)
    cure = "Choose another target, or change the model at the operator that is named"
    raise ConversionFailed("converting for Core ML", work.order.variant.path, why, cure)


def _write(
    work: _Work, route: str, package: Path, compress: Pass | None, whole: Collection[str] = ()
) -> None:
    around = (work.face, work.target, work.half, work.sizes, work.ranges)
    made = lower(route, work.graph, *around, compress, whole)
    model = work.order.model
    about = {
        "author": f"converted by edgekiln {__version__}",
        "shortDescription": f"{model.name}, recipe {work.order.variant.recipe.name}",
        "versionString": model.sha256[:16],
    }
    source = {"edgekiln.route": route, "edgekiln.recipe": work.order.variant.recipe.name}
    write(made, package, about, source, _descriptions(work.face))


def _descriptions(face: Interface) -> dict[str, str]:
    """One line per input and output, as Xcode shows them."""
    texts = {f.name: f"{f.dtype} {list(f.shape)}" for f in (*face.inputs, *face.outputs)}
    if face.image is not None and (how := face.preprocess) is not None:
        texts[face.image] = f"{how.colour} picture, {how.fit} to size; the program normalises it"
    texts[LABEL] = "label of the highest score"
    texts[f"{LABEL}_probs"] = "probability by label"
    return texts


def _artifact(work: _Work, route: str, into: Path, checks: tuple[Check, ...]) -> Artifact:
    order, spec = work.order, read_spec(into / ENTRY)
    recipe = order.variant.recipe.name
    settings: dict[str, Scalar] = {
        "minimum_deployment_target": work.target,
        "compute_units": COMPUTE_UNITS[work.half],
        "compute_precision": "fp16" if work.half else "fp32",
        **options(work.face),
    }
    if work.half:
        checks = (*checks, check.half_range(work.graph))
    total = sum(sum(kinds.values()) for kinds in operators(spec).values())
    return Artifact(
        id=f"{order.device.name}.coreml.{recipe}",
        target="coreml",
        recipe=recipe,
        engine="coreml",
        proof_engine="coreml",
        entry=ENTRY,
        files=files.entries(into),
        options=settings,
        tools=tools(route),
        precisions={"float16" if work.half else "float32": total},
        passes=order.variant.passes,
        checks=(*checks, *work.face.checks),
        placement=check.placement(spec, work.half, bool(work.ranges)),
        resolutions=tuple(Resolution(height=h, width=w, entry=ENTRY) for h, w in work.sizes),
    )
