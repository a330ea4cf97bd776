"""A Core ML package on disk, the same bytes for the same model in every process and on every day.

coremltools puts random identifiers into the manifest and the day into the metadata, and protobuf writes
maps in an order of its own: here identifiers are made of the paths, the day goes, and maps are sorted.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekiln import files

ENTRY = "model.mlpackage"
SPEC = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
_DATE = "com.github.apple.coremltools.conversion_date"
_SPACE = uuid.UUID("5c2d3f5e-5f0a-5b52-9d5e-0e9a6f1b7c11")
"""A fixed name space of this program for identifiers in manifests."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep coremltools' progress bars, version notes and warnings off the terminal."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    nowhere = io.StringIO()
    try:
        with (
            contextlib.redirect_stderr(nowhere),
            contextlib.redirect_stdout(nowhere),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def write(
    model: Any, into: Path, about: Mapping[str, str], user: Mapping[str, str], features: Mapping[str, str]
) -> None:
    """Write an ``MLModel`` as the folder ``into``: manifest, program, weights.

    ``about`` fills author, shortDescription, versionString and license; ``user`` more metadata by key,
    ``features`` the descriptions of inputs and outputs by name.
    """
    weights = Path(model.weights_dir) / "weight.bin"
    spec = type(model.get_spec())()
    spec.CopyFrom(model.get_spec())
    description = spec.description
    sides = [description, *description.functions]
    for feature in (f for side in sides for f in (*side.input, *side.output)):
        feature.shortDescription = features.get(feature.name, feature.shortDescription)
    for field, text in about.items():
        setattr(description.metadata, field, text)
    description.metadata.userDefined.pop(_DATE, None)
    description.metadata.userDefined.update(user)
    _drop_date(spec)
    files.write_bytes(into / SPEC, spec.SerializeToString(deterministic=True))
    files.write_bytes(into / WEIGHTS, weights.read_bytes() if weights.exists() else b"")
    files.write_bytes(into / "Manifest.json", _manifest())


def _drop_date(spec: Any) -> None:
    """The build info of the program repeats the metadata; its day goes as well."""
    attributes = spec.mlProgram.attributes
    if "buildInfo" not in attributes:
        return
    values = attributes["buildInfo"].immediateValue.dictionary.values
    kept = [v for v in values if "date" not in v.key.immediateValue.tensor.strings.values[0]]
    kept.sort(key=lambda v: v.key.immediateValue.tensor.strings.values[0])
    copies = [type(v).FromString(v.SerializeToString()) for v in kept]
    del values[:]
    values.extend(copies)


def _manifest() -> bytes:
    items = {
        "com.apple.CoreML/model.mlmodel": ("model.mlmodel", "CoreML Model Specification"),
        "com.apple.CoreML/weights": ("weights", "CoreML Model Weights"),
    }
    rows = {
        str(uuid.uuid5(_SPACE, path)): {
            "author": "com.apple.CoreML",
            "description": description,
            "name": name,
            "path": path,
        }
        for path, (name, description) in items.items()
    }
    root = str(uuid.uuid5(_SPACE, "com.apple.CoreML/model.mlmodel"))
    content = {"fileFormatVersion": "1.0.0", "itemInfoEntries": rows, "rootModelIdentifier": root}
    return json.dumps(content, indent=4, sort_keys=True).encode() + b"\n"


def read_spec(package: Path) -> Any:
    """The protobuf ``Model`` of a package."""
    from coremltools import proto

    return proto.Model_pb2.Model.FromString((package / SPEC).read_bytes())


def operators(spec: Any) -> dict[str, dict[str, int]]:
    """Operators of each function by type, inner blocks included; constants are no operators."""
    found = {}
    for name, function in sorted(spec.mlProgram.functions.items()):
        counted: Counter[str] = Counter()
        blocks = list(function.block_specializations.values())
        while blocks:
            for op in blocks.pop().operations:
                blocks.extend(op.blocks)
                if op.type != "const" and not op.type.startswith("constexpr_"):
                    counted[op.type] += 1
        found[name] = dict(sorted(counted.items()))
    return found
