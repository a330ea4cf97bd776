"""``edgekiln inspect``: what a model is, what it costs, and what each target would say to it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgekiln.compile.isolate import Converters, Limits
from edgekiln.compile.recipes import needs_calibration, recipe
from edgekiln.compile.targets import TARGETS
from edgekiln.devices import load
from edgekiln.errors import BadInput, EdgekilnError, MachineFault, did_you_mean
from edgekiln.files import sha256_file
from edgekiln.job import Job
from edgekiln.model import signature
from edgekiln.model.cost import Cost, cost
from edgekiln.model.importers import import_model
from edgekiln.records import Model, Record

# A device of each target's kind, for questions that need one.
_TYPICAL = {
    "onnxruntime": "host",
    "openvino": "host",
    "tensorrt": "jetson-orin-nano-8gb",
    "coreml": "iphone-16-pro",
    "litert": "pixel-9",
    "executorch": "pixel-9",
    "qnn": "galaxy-s24",
    "web": "browser",
}
SECONDS = 300.0
"""What one target may take for its word."""


class Word(Record, frozen=True, kw_only=True):
    """What one target says to the float graph: ``accepts`` is None where it was not asked."""

    target: str
    accepts: bool | None
    says: str


class Inspection(Record, frozen=True, kw_only=True):
    """``cost`` is at ``cost.shapes``; None with the reason in ``cost_reason`` where axes are open."""

    model: Model
    opset: int
    cost: Cost | None
    cost_reason: str
    words: tuple[Word, ...]


def inspect(job: Job, shapes: dict[str, tuple[int, ...]], targets: Sequence[str] | None = None) -> Inspection:
    """Import ``job.model``, look at it, and ask ``targets`` (None: all, which takes a minute or more).

    Raises BadInput for a model that can't be read, or a target that does not exist.
    """
    import onnx

    for name in targets or ():
        if name not in TARGETS:
            raise BadInput("asking the target", name, "no target has this name", did_you_mean(name, TARGETS))
    located = job.path(job.model.source)
    source = str(located) if located.exists() or ":" not in job.model.source else job.model.source
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as scratch:
        folder = Path(scratch)
        model = import_model(
            source,
            folder,
            weights=None if job.model.weights is None else str(job.path(job.model.weights)),
            input_shapes=shapes,
            preprocess=job.preprocess,
            search_path=(Path(job.base).resolve(), Path.cwd()),
        )
        graph = folder / model.path
        proto = onnx.load(graph)
        opset = next((o.version for o in proto.opset_import if o.domain in {"", "ai.onnx"}), 0)
        counted, reason = None, ""
        try:
            counted = cost(graph, shapes)
        except EdgekilnError as error:
            reason = f"{error.why}. {error.cure}"
        words = _words(graph, model, counted, folder, TARGETS if targets is None else targets)
    return Inspection(model=model, opset=opset, cost=counted, cost_reason=reason, words=words)


def _words(
    graph: Path, model: Model, counted: Cost | None, scratch: Path, targets: Iterable[str]
) -> tuple[Word, ...]:
    """Each target's word on the float graph, optimised at static shapes as a build would."""
    if counted is None:
        says = "not asked: its input shapes are open, give --input-shape"
        return tuple(Word(target=t, accepts=None, says=says) for t in targets)
    static = scratch / "static" / "graph.onnx"
    try:
        _optimised(graph, model, counted, static)
    except EdgekilnError as error:
        says = f"not asked: {error.why}. {error.cure}"
        return tuple(Word(target=t, accepts=None, says=says) for t in targets)
    with Converters(Limits(seconds=SECONDS)) as converters:
        return tuple(_ask(t, model, static, scratch / "cache", converters) for t in targets)


def _ask(target: str, model: Model, static: Path, cache: Path, converters: Converters) -> Word:
    """Convert ``static`` by the first recipe of ``target`` that needs no data, for a typical device; what a
    converter raises is its word."""
    from edgekiln.compile.make import make
    from edgekiln.compile.workshop import Workshop

    which = next(name for name in TARGETS[target].recipes if not needs_calibration(recipe(name)))
    try:
        shop = Workshop(static, sha256_file(static), None, cache, 2, model)
        _, artifact = make(shop, load(_TYPICAL[target]), target, which, converters)
    except MachineFault:
        raise
    except EdgekilnError as error:
        return Word(target=target, accepts=False, says=f"{error.why}. {error.cure}")
    except Exception as error:
        return Word(target=target, accepts=False, says=f"{type(error).__name__}: {error}"[:500])
    checks = "; ".join(c.detail for c in artifact.checks)
    return Word(target=target, accepts=True, says=checks or f"converted, {artifact.size_bytes:,} bytes")


def _optimised(graph: Path, model: Model, counted: Cost, into: Path) -> None:
    from edgekiln.compile.graph import optimise
    from edgekiln.intake import random_inputs

    fixed = signature.fix_shapes(model.signature, counted.shapes)
    optimise(graph, counted.shapes, random_inputs(fixed), into)
