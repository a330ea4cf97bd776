"""Packing a bundle: stored, sorted, without clocks or owners, so equal content is equal bytes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from edgekiln.bundle import (
    ALTERNATES_FOLDER,
    APP_FOLDER,
    EVIDENCE,
    GOLDEN_FOLDER,
    LABELS,
    MANIFEST,
    MODEL_FOLDER,
    SCHEMA,
)
from edgekiln.errors import MachineFault
from edgekiln.files import sha256_bytes, write_bytes
from edgekiln.records import Alternate, Artifact, Choice, FileEntry, Golden, Manifest, Model, Proof, Scalar

_EPOCH = (1980, 1, 1, 0, 0, 0)


def pack(
    path: Path,
    *,
    version: str,
    model: Model,
    proof: Proof,
    choice: Choice,
    artifact_folder: Path,
    golden: Golden | None,
    golden_folder: Path | None,
    provenance: Mapping[str, Scalar],
    app: Mapping[str, bytes] | None = None,
    alternates: Sequence[tuple[Proof, Path]] = (),
) -> Manifest:
    """Write the bundle of one chosen artifact to ``path``, whole or not at all.

    ``app`` maps paths below the bundle's ``app/`` folder to their content (``bundle.app.files``).
    ``alternates`` take over from the chosen artifact in their order, each with the folder of its files.
    Raises MachineFault where an artifact's file no longer has the hash that was proved.
    """
    members = _read(proof.artifact, artifact_folder, MODEL_FOLDER)
    others = []
    for at, (other, folder) in enumerate(alternates, 1):
        others.append(Alternate(artifact=other.artifact, folder=f"{at}", evidence=other.evidence))
        members |= _read(other.artifact, folder, f"{ALTERNATES_FOLDER}/{at}")
    if model.labels:
        members[LABELS] = ("\n".join(model.labels) + "\n").encode()
    if golden is not None and golden_folder is not None:
        for name in (golden.inputs, golden.outputs):
            members[f"{GOLDEN_FOLDER}/{name}"] = (golden_folder / name).read_bytes()
    members |= {f"{APP_FOLDER}/{name}": data for name, data in (app or {}).items()}
    members[EVIDENCE] = msgspec.json.format(msgspec.json.encode(proof, order="deterministic"), indent=1)
    manifest = Manifest(
        schema=SCHEMA,
        edgekiln=version,
        device=proof.device,
        model=model.name,
        task=model.task,
        signature=model.signature,
        preprocess=model.preprocess,
        labels=LABELS if model.labels else None,
        artifact=proof.artifact,
        golden=golden,
        choice=choice,
        provenance=dict(provenance),
        files=tuple(
            FileEntry(path=n, sha256=sha256_bytes(d), size_bytes=len(d)) for n, d in sorted(members.items())
        ),
        alternates=tuple(others),
        evidence=proof.evidence,
    )
    members[MANIFEST] = msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1)
    write_bytes(path, _zip(members))
    return manifest


def _read(artifact: Artifact, folder: Path, into: str) -> dict[str, bytes]:
    members = {}
    for file in artifact.files:
        data = (folder / file.path).read_bytes()
        if sha256_bytes(data) != file.sha256:
            raise MachineFault(
                "packing",
                file.path,
                "the file changed after it was proved",
                "Build again; if it happens twice, check the disk",
            )
        members[f"{into}/{file.path}"] = data
    return members


def _zip(members: Mapping[str, bytes]) -> bytes:
    """The manifest first, so that a reader of a stream sees it before the payload; stored, because
    weights hardly compress and another zlib would give other bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in [MANIFEST, *sorted(n for n in members if n != MANIFEST)]:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o644 << 16
            info.create_system = 3
            archive.writestr(info, members[name])
    return out.getvalue()
