"""``edgekiln explain``: which layers a quantised artifact loses most in, and what its recipe did about
each.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgekiln.bundle.unpack import read_manifest
from edgekiln.errors import BadInput
from edgekiln.records import Artifact, Build, Evidence, LayerLoss, Record

MAX_EVIDENCE_BYTES = 256 << 20
EVIDENCE = "evidence.json"
QUALITY = ("agreement", "agreement_sure", "sqnr_db", "top1", "accuracy_drop")


class Explained(Record, frozen=True, kw_only=True):
    """One artifact: ``notes`` is what each pass of its recipe says, ``layers`` what 8 bits cost each layer.

    ``reason`` says why there are no layers. ``quality`` are the figures of its outputs where they are known.
    """

    device: str
    artifact: str
    chosen: bool
    notes: tuple[str, ...]
    layers: tuple[LayerLoss, ...]
    quality: tuple[Evidence, ...] = ()
    reason: str = ""


def explain(path: Path) -> tuple[Explained, ...]:
    """A bundle's artifact, or all artifacts of a build's output folder (the chosen ones first).

    Raises BadInput for what is neither.
    """
    if path.is_dir() or path.suffix == ".json":
        return _of_build(path / EVIDENCE if path.is_dir() else path)
    manifest = read_manifest(path)
    return (_explained(manifest.device, manifest.artifact, True, ()),)


def _of_build(path: Path) -> tuple[Explained, ...]:
    doing = "explaining"
    try:
        if path.stat().st_size > MAX_EVIDENCE_BYTES:
            raise BadInput(doing, path, "it is larger than 256 MiB", "Give the folder that a build wrote")
        build = msgspec.json.decode(path.read_bytes(), type=Build)
    except OSError as error:
        why = "there is no evidence.json" if isinstance(error, FileNotFoundError) else str(error.strerror)
        raise BadInput(doing, path, why, "Give a bundle, or the folder that a build wrote") from error
    except msgspec.MsgspecError as error:
        why, cure = f"it is no evidence of a build ({error})", "Build again with this version"
        raise BadInput(doing, path, why, cure) from error
    chosen = {(c.device, c.artifact_id) for c in build.decision.choices}
    found = [
        _explained(
            p.device,
            p.artifact,
            (p.device, p.artifact.id) in chosen,
            tuple(e for e in p.evidence if e.what in QUALITY and e.value is not None),
        )
        for p in build.proofs
    ]
    return tuple(sorted(found, key=lambda e: not e.chosen))


def _explained(device: str, artifact: Artifact, chosen: bool, quality: tuple[Evidence, ...]) -> Explained:
    layers = next((p.layers for p in reversed(artifact.passes) if p.layers), ())
    reason = ""
    if not layers:
        whole = not any("int8" in kind or "w8" in kind or "w4" in kind for kind in artifact.precisions)
        reason = "nothing in it is quantised" if whole else "its quantiser does not say what each layer loses"
    return Explained(
        device=device,
        artifact=artifact.id,
        chosen=chosen,
        notes=tuple(f"{p.name}: {p.note}" for p in artifact.passes if p.note),
        layers=layers,
        quality=quality,
        reason=reason,
    )
