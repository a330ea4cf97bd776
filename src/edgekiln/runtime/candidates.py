"""From a bundle and this machine to what can be run here: each artifact, at each size, by which engine.

Nothing is loaded for this: an engine counts as present where its package is installed and its accelerator
answers. Whether it takes the artifact is known when it is opened, and then a row of its own (``Unusable``).
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec

from edgekiln.bundle import EVIDENCE
from edgekiln.bundle.unpack import Opened
from edgekiln.engines import build_command
from edgekiln.engines.onnxruntime import emulates
from edgekiln.errors import EdgekilnError, NotRunnableHere
from edgekiln.model.signature import image_layout
from edgekiln.records import Artifact, Evidence, Proof, Record, Signature
from edgekiln.runtime.quality import Known, qualities
from edgekiln.runtime.vocabulary import Candidate, Rung

Size: TypeAlias = tuple[int, int]
PACKAGES = {
    "onnxruntime": (("onnxruntime", "pip install onnxruntime"),),
    "openvino": (("openvino", "pip install 'edgekiln[openvino]'"),),
    "litert": (("ai_edge_litert", "pip install 'edgekiln[litert]'"),),
    "executorch": (("executorch", "pip install 'edgekiln[executorch]'"),),
    "qnn": (("onnxruntime_qnn", "pip install 'edgekiln[qnn]'"),),
    "tensorrt": (("tensorrt", "On a Jetson, JetPack brings it"), ("cuda", "pip install cuda-python")),
    "coreml": (),
}
"""The packages that each engine needs, and where they come from. ``web`` is none of a session's: it is a page
in a browser."""
STAND_INS = {
    "coreml": "emulated: edgekiln's interpreter computes what Core ML would",
    "qnn": "emulated: QNN's simulator computes what the NPU would",
}


class Unusable(Record, frozen=True, kw_only=True):
    """An artifact that does not run on this machine, and why: at ``size``, or at none of its sizes."""

    artifact_id: str
    engine: str
    why: str
    cure: str
    size: Size | None = None


def candidates(held: Opened, threads: int, *, emulated: bool = True) -> tuple[Candidate, ...]:
    """What of the bundle runs here, in the bundle's order; see ``survey``, which has the others too."""
    return survey(held, threads, emulated=emulated)[0]


def survey(
    held: Opened, threads: int, *, emulated: bool = True
) -> tuple[tuple[Candidate, ...], tuple[Unusable, ...]]:
    """Every artifact of ``held`` at every input size: those that run here, and those that don't with the
    reason.

    An artifact has its own engine where that is here, else the one that proved it, with a note; without
    ``emulated`` what stands in for another engine or arithmetic is left out, with that reason.
    """
    found: list[tuple[Artifact, Path, str, str]] = []
    out: list[Unusable] = []
    for artifact, folder in held.artifacts:
        try:
            engine, note = engine_here(artifact, folder)
            if note and not emulated:
                raise NotRunnableHere("choosing an engine for", artifact.id, note, "Allow emulation")
            found.append((artifact, folder, engine, note))
        except EdgekilnError as error:
            row = Unusable(artifact_id=artifact.id, engine=artifact.engine, why=error.why, cure=error.cure)
            out.append(row)
    return _with_rungs(held, found, threads), tuple(out)


def ladder(found: Sequence[Candidate]) -> tuple[Rung, ...]:
    """The rungs by quality, the best first; of equals the one that is expected to be faster. What nobody
    timed comes after those that somebody did."""
    rungs = [c.rung for c in found]
    return tuple(
        sorted(rungs, key=lambda r: (-r.quality, math.inf if r.expected_ms is None else r.expected_ms))
    )


def engine_here(artifact: Artifact, folder: Path) -> tuple[str, str]:
    """The engine that runs ``artifact`` on this machine, and a note where it stands in for the device's own.

    Raises NotRunnableHere with the reasons of its own and of its proof engine.
    """
    try:
        _present(artifact, folder, artifact.engine)
        return artifact.engine, _note(artifact)
    except EdgekilnError as error:
        if artifact.proof_engine == artifact.engine:
            raise
        own = error
    try:
        _present(artifact, folder, artifact.proof_engine)
    except EdgekilnError as error:
        why = f"{artifact.engine}: {own.why}; {artifact.proof_engine}: {error.why}"
        raise NotRunnableHere("choosing an engine for", artifact.id, why, own.cure) from error
    return artifact.proof_engine, f"emulated by {artifact.proof_engine}: {own.why}"


def stand_in(failed: Candidate, why: str) -> Candidate | None:
    """The same rung by the artifact's proof engine, after its own refused it; None where that is the same or
    absent."""
    artifact = failed.artifact
    if failed.engine == artifact.proof_engine:
        return None
    try:
        _present(artifact, Path(failed.folder), artifact.proof_engine)
    except EdgekilnError:
        return None
    rung = msgspec.structs.replace(failed.rung, expected_ms=None, expected_mj=None)
    note = f"emulated by {artifact.proof_engine}: {why}"
    return msgspec.structs.replace(failed, engine=artifact.proof_engine, note=note, rung=rung)


def nothing_runs(bundle: object, rows: Sequence[Unusable]) -> NotRunnableHere:
    """The error that lists every artifact's reason."""
    listed = "; ".join(f"{r.artifact_id}: {r.why}" for r in rows) or "it holds no artifact"
    cures = list(dict.fromkeys(r.cure for r in rows))
    cure = cures[0] if len(cures) == 1 else "Build a bundle for this machine (--device host)"
    return NotRunnableHere("opening a session of", bundle, f"none of its artifacts runs here: {listed}", cure)


# ---------------------------------------------------------------- engines


def _present(artifact: Artifact, folder: Path, engine: str) -> None:
    """Raises NotRunnableHere where a package or the accelerator of ``engine`` is absent."""
    if engine not in PACKAGES:
        why = "it runs in a browser" if engine == "web" else f"nobody knows the engine '{engine}'"
        raise NotRunnableHere("opening", artifact.id, why, "Use the artifact of another target")
    for package, cure in PACKAGES[engine]:
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            why = f"the Python package {package} is not installed"
            raise NotRunnableHere("opening", artifact.id, why, cure)
    if engine == "tensorrt":
        build_command(engine, artifact, folder)  # asks the driver for a GPU, and the plan for the version


def arithmetic_emulated(artifact: Artifact) -> bool:
    """Whether the artifact's own engine has to emulate its arithmetic on this machine."""
    return artifact.engine == "onnxruntime" and emulates(artifact)


def _note(artifact: Artifact) -> str:
    if arithmetic_emulated(artifact):
        return f"emulated: no {artifact.options.get('arithmetic')} arithmetic in onnxruntime here"
    return STAND_INS.get(artifact.engine, "")


# ---------------------------------------------------------------- rungs


def _with_rungs(
    held: Opened, found: Sequence[tuple[Artifact, Path, str, str]], threads: int
) -> tuple[Candidate, ...]:
    evidence = _evidence(held)
    own = _own_size(held)
    places, known = [], []
    for artifact, folder, engine, note in found:
        sizes: tuple[Size | None, ...] = tuple((r.height, r.width) for r in artifact.resolutions) or (own,)
        for number, size in enumerate(sizes):
            suffix = "" if number == 0 or size is None else f"@{size[0]}x{size[1]}"
            figures = _of_size(evidence.get(artifact.id, ()), suffix)
            share = None if size is None or own is None else size[0] * size[1] / (own[0] * own[1])
            places.append((artifact, folder, engine, note, size, len(sizes) > 1))
            known.append(Known(figures=figures, suffix=_told(figures, suffix), pixels_share=share))
    made = []
    for place, known_one, quality in zip(places, known, qualities(known), strict=True):
        artifact, folder, engine, note, size, several = place
        rung = Rung(
            id=f"{artifact.id}@{size[0]}x{size[1]}" if several and size else artifact.id,
            artifact_id=artifact.id,
            quality=round(quality.share, 6),  # equal figures of two engines differ in the last digit
            quality_of=quality.of,
            size=size,
        )
        if not note:  # what the bundle states is of its device: nothing of it holds for a stand-in
            rung = _with_costs(rung, known_one.figures)
        made.append(
            Candidate(
                rung=rung, artifact=artifact, folder=str(folder), engine=engine, threads=threads, note=note
            )
        )
    return tuple(made)


def _own_size(held: Opened) -> Size | None:
    """The size of the model's own signature, else the first that its chosen artifact was made for."""
    first = next(((r.height, r.width) for r in held.manifest.artifact.resolutions), None)
    return image_size(held.manifest.signature) or first


def image_size(signature: Signature) -> Size | None:
    """(height, width) of the only picture that the model takes, None where it is open or there is none."""
    pictures = [(s, layout) for s in signature.inputs if (layout := image_layout(s)) is not None]
    if len(pictures) != 1:
        return None
    spec, layout = pictures[0]
    height, width = spec.shape[2:4] if layout == "NCHW" else spec.shape[1:3]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _evidence(held: Opened) -> dict[str, Sequence[Evidence]]:
    """Figures by artifact. A bundle of schema 1 has those of its only one in a file beside the manifest."""
    manifest = held.manifest
    known: dict[str, Sequence[Evidence]] = {a.artifact.id: a.evidence for a in manifest.alternates}
    own = manifest.evidence
    if not own and (held.folder / EVIDENCE).is_file():
        try:
            own = msgspec.json.decode((held.folder / EVIDENCE).read_bytes(), type=Proof).evidence
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            own = ()
    known[manifest.artifact.id] = own
    return known


def _of_size(evidence: Sequence[Evidence], suffix: str) -> dict[str, Evidence]:
    """The figures of one size by plain names. What is held against the float model at its own size stands in
    from the first size where this one has none; accuracy on labels and costs don't."""
    own = {e.what.removesuffix(suffix): e for e in evidence if suffix and e.what.endswith(suffix)}
    base = {e.what: e for e in evidence if "@" not in e.what}
    if not suffix:
        return base
    lent = {n: e for n, e in base.items() if n in {"agreement", "agreement_expected", "sqnr_db"}}
    return own if any(n in own for n in lent) else lent | own


def _told(figures: Mapping[str, Evidence], suffix: str) -> str:
    """``suffix`` where the figures are of that size and not lent by another."""
    return suffix if any(e.what.endswith(suffix) for e in figures.values()) else ""


def _with_costs(rung: Rung, figures: Mapping[str, Evidence]) -> Rung:
    """``rung`` with the latency, energy and memory of its device. An emulated figure says nothing of them."""

    def of(*names: str) -> float | None:
        known = (figures[n] for n in names if n in figures)
        return next((e.value for e in known if e.value is not None and e.how != "emulated"), None)

    memory = of("engine_memory_bytes", "peak_memory_bytes")
    return msgspec.structs.replace(
        rung,
        expected_ms=of("latency_p50_ms"),
        expected_mj=of("energy_mj"),
        memory_bytes=None if memory is None else int(memory),
    )
