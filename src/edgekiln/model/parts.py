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
from edgekiln.records import FileEntry, Record, Signature

SPLIT_FILE = "split.json"
_MOST_BYTES = 1 << 20


class Feature(Record, frozen=True, kw_only=True):
    """A tensor at the cut: ``tensor`` in the whole graph, float32 [1, C, ...].

    The tail takes it as bytes: ``name`` uint8 of the same shape, ``name_scale`` and ``name_offset`` float32
    [C], and computes ``name * scale + offset`` per channel itself, so that any server can run it.
    """

    name: str
    tensor: str
    shape: tuple[int, ...]


class Split(Record, frozen=True, kw_only=True):
    """What ``head`` gives and ``tail`` takes. ``whole_sha256`` is the graph that was cut.

    ``inputs_elements`` and ``features_elements`` count numbers before and after the head: the second is
    smaller, so the head can't be undone exactly. ``parity_max_error`` is the largest absolute difference
    between the whole graph and head and tail without quantisation; ``quantised_sqnr_db`` the signal over
    error of the outputs that the features' 8 bits cost; both over ``samples`` inputs.
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
    return split


def quantise_channels(
    values: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Features [1, C, ...] as bytes of the same shape, with scale [C] and offset [C] of these very values.

    ``bytes * scale + offset`` is off by at most half a scale, which is the channel's extent over 255. NaN
    and infinity can't be coded: raises BadInput.
    """
    flat = values.astype(np.float32, copy=False).reshape(values.shape[1], -1)
    low, high = flat.min(axis=1), flat.max(axis=1)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        why = "they hold NaN or infinity"
        raise BadInput("coding features of shape", values.shape, why, "Check the input and the head")
    scale = np.where(high > low, (high - low) / np.float32(255), np.float32(1)).astype(np.float32)
    coded = np.rint((flat - low[:, None]) / scale[:, None]).clip(0, 255).astype(np.uint8)
    return coded.reshape(values.shape), scale, low


def coded_inputs(features: Mapping[str, NDArray[Any]], known: Sequence[Feature]) -> dict[str, NDArray[Any]]:
    """What the tail takes for ``features`` (by tensor name): three arrays each."""
    found: dict[str, NDArray[Any]] = {}
    for feature in known:
        coded, scale, offset = quantise_channels(features[feature.tensor])
        found |= {feature.name: coded, f"{feature.name}_scale": scale, f"{feature.name}_offset": offset}
    return found
