"""A model in two parts: a head that runs on the device, and a tail that goes on from its features.

``split.json`` beside ``head.onnx`` and ``tail.onnx`` says what they are; ``compile.split`` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import BadInput
from edgekiln.files import inside, sha256_file
from edgekiln.records import FileEntry, Manifest, Record, Scalar, Signature, TensorSpec

SPLIT_FILE = "split.json"
_MOST_BYTES = 1 << 20
_LEAST_STEP = np.finfo(np.float32).tiny
_NUMBERS = frozenset(np.dtype(code).name for code in np.typecodes["AllInteger"] + "?efd")


class Feature(Record, frozen=True, kw_only=True):
    """A tensor at the cut: ``tensor`` in the whole graph, float32 [1, C, ...].

    The tail takes it as bytes: ``name`` uint8 of the same shape, ``name_scale`` and ``name_offset`` float32
    [C], and computes ``name * scale + offset`` per channel itself, so that any server can run it.
    """

    name: str
    tensor: str
    shape: tuple[int, ...]


class Split(Record, frozen=True, kw_only=True):
    """What ``head`` gives and ``tail`` takes. ``whole_sha256`` is the graph that was cut. ``beside`` names
    inputs that go to the tail as they are, besides the features: a question beside a picture.

    ``inputs_elements`` and ``features_elements`` count numbers before and after the head, without those that
    go beside: the second is smaller, so the head can't be undone exactly. ``parity_max_error`` is the largest
    absolute difference between the whole graph and head and tail without quantisation; ``quantised_sqnr_db``
    the signal over error of the outputs that the features' 8 bits cost; both over ``samples`` inputs.
    """

    head: FileEntry
    tail: FileEntry
    whole_sha256: str
    signature: Signature
    features: tuple[Feature, ...]
    inputs_elements: int
    features_elements: int
    parity_max_error: float
    quantised_sqnr_db: float | None
    samples: int
    provenance: dict[str, Scalar] = msgspec.field(default_factory=dict)
    beside: tuple[str, ...] = ()

    @property
    def beside_specs(self) -> tuple[TensorSpec, ...]:
        """The inputs that go beside the features, in the whole model's order."""
        return tuple(spec for spec in self.signature.inputs if spec.name in self.beside)


def read_split(folder: Path) -> Split:
    """The split that lies in ``folder``, its head verified. Raises BadInput for one that is not sound."""
    doing, cure = "opening the split model in", "Split the model again"
    path = folder / SPLIT_FILE
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise BadInput(doing, folder, f"{SPLIT_FILE} is too large", cure)
        split = msgspec.json.decode(path.read_bytes(), type=Split)
        head = inside(folder, split.head.path, doing)
        if sha256_file(head) != split.head.sha256:
            raise BadInput(doing, folder, f"{split.head.path} is not the file that was made", cure)
    except (OSError, msgspec.MsgspecError) as error:
        why = " ".join(str(error).split())[:200]
        raise BadInput(doing, folder, why, cure) from error
    if not split.features or split.features_elements >= split.inputs_elements:
        raise BadInput(doing, folder, "its features hold as much as its input", cure)
    if not set(split.beside) < {spec.name for spec in split.signature.inputs}:
        raise BadInput(doing, folder, "what goes beside its features are not some of its inputs", cure)
    if any(may_be_picture(spec) for spec in split.beside_specs):
        raise BadInput(doing, folder, "what goes beside its features may be a picture", cure)
    shapes = [*(s.shape for s in split.signature.inputs), *(f.shape for f in split.features)]
    if any(not isinstance(n, int) or n < 1 for shape in shapes for n in shape):
        raise BadInput(doing, folder, "some of its shapes are open", cure)
    if any(spec.dtype not in _NUMBERS for spec in split.signature.inputs):
        raise BadInput(doing, folder, "some of its inputs are no numbers", cure)
    return split


def may_be_picture(spec: TensorSpec) -> bool:
    """Whether an input has the four axes of a picture, of however many channels."""
    return len(spec.shape) >= 4


def tail_signature(split: Split) -> Signature:
    """What ``split.tail`` takes, bytes with scales and offsets and what goes beside them, and gives."""
    inputs: list[TensorSpec] = []
    for feature in split.features:
        channels = (feature.shape[1],)
        inputs.append(TensorSpec(name=feature.name, dtype="uint8", shape=feature.shape))
        inputs += [
            TensorSpec(name=f"{feature.name}_{part}", dtype="float32", shape=channels)
            for part in ("scale", "offset")
        ]
    return Signature(inputs=(*inputs, *split.beside_specs), outputs=split.signature.outputs)


def check_belongs(split: Split, manifest: Manifest, folder: Path) -> None:
    """Raise BadInput where the split model in ``folder`` is not of the model of a bundle's ``manifest``.

    Their inputs and outputs are compared, and what both say of their origin: the imported graph's hash, or
    those of the source's files. A bundle that says nothing of its origin is held to the signature alone.
    """
    doing = "using the split model in"
    cure = "Split the model that the bundle was built from: edgekiln split MODEL"
    for side in ("inputs", "outputs"):
        ours, theirs = (_told(getattr(of.signature, side)) for of in (split, manifest))
        if not _fit(getattr(split.signature, side), getattr(manifest.signature, side)):
            raise BadInput(doing, folder, f"its {side} are {ours}, the bundle's {theirs}", cure)
    known = manifest.provenance.get("model_sha256")
    own = {split.whole_sha256, split.provenance.get("model_sha256")}
    theirs_files = _source_hashes(manifest.provenance)
    files = _source_hashes(split.provenance) or [split.whole_sha256]
    if known is not None and known not in own and files != theirs_files:
        its = str(split.provenance.get("model_sha256", split.whole_sha256))
        why = f"it was cut from another model: {its[:12]}… by its hash, the bundle's is {str(known)[:12]}…"
        raise BadInput(doing, folder, why, cure)


def _source_hashes(provenance: Mapping[str, Scalar]) -> list[str]:
    return sorted(str(v) for name, v in provenance.items() if name.startswith("source_sha256:"))


def _told(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{s.name} {s.dtype} {'x'.join(map(str, s.shape))}" for s in specs)


def _fit(ours: Sequence[TensorSpec], theirs: Sequence[TensorSpec]) -> bool:
    """Whether names, types and shapes agree; an axis that either leaves open fits any."""
    return len(ours) == len(theirs) and all(
        (a.name, a.dtype, len(a.shape)) == (b.name, b.dtype, len(b.shape))
        and all(
            m == n or isinstance(m, str) or isinstance(n, str) for m, n in zip(a.shape, b.shape, strict=True)
        )
        for a, b in zip(ours, theirs, strict=True)
    )


def quantise_channels(
    values: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Features [1, C, ...] as bytes of the same shape, with scale [C] and offset [C] of these very values.

    ``bytes * scale + offset`` is off by at most half a scale, which is the channel's extent over 255; of an
    extent below 3e-36 only its start is kept. NaN and infinity can't be coded: raises BadInput.
    """
    flat = values.astype(np.float32, copy=False).reshape(values.shape[1], -1)
    low, high = flat.min(axis=1), flat.max(axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        step = ((high - low) / np.float32(255)).astype(np.float32)
    if not np.isfinite(step).all():
        why = "they hold NaN, infinity, or more than float32 can span"
        raise BadInput("coding features of shape", values.shape, why, "Check the input and the head")
    scale = np.where(step >= _LEAST_STEP, step, np.float32(1))  # below, float32 can't hold a step: one value
    coded = np.rint((flat - low[:, None]) / scale[:, None]).clip(0, 255).astype(np.uint8)
    return coded.reshape(values.shape), scale, low


def coded_inputs(features: Mapping[str, NDArray[Any]], known: Sequence[Feature]) -> dict[str, NDArray[Any]]:
    """What the tail takes for ``features`` (by tensor name): three arrays each."""
    found: dict[str, NDArray[Any]] = {}
    for feature in known:
        coded, scale, offset = quantise_channels(features[feature.tensor])
        found |= {feature.name: coded, f"{feature.name}_scale": scale, f"{feature.name}_offset": offset}
    return found
