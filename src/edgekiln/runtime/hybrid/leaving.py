"""From a stream's frame to what leaves the machine, a form for each privacy rule.

The form decides what the model on the server has to be: the bundle's own under ``raw``, one that takes coded
pictures under ``reduced``, the tail of the split model under ``features-only``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from edgekiln.errors import BadInput
from edgekiln.model.parts import check_belongs, tail_signature
from edgekiln.model.signature import image_layout
from edgekiln.records import Manifest, Signature, TensorSpec
from edgekiln.runtime.answering import as_tensors
from edgekiln.runtime.hybrid.privacy import (
    PICTURE,
    FeatureHead,
    Features,
    Privacy,
    Sendable,
    open_head,
    reduce_picture,
)
from edgekiln.runtime.hybrid.remote import SERVE
from edgekiln.runtime.pictures import fill
from edgekiln.runtime.slots import Slot
from edgekiln.runtime.streams.frames import Frame


@dataclass(frozen=True, slots=True)
class Leaving:
    """``made`` makes what leaves under ``privacy`` of a frame, for the slot that a session gives.

    ``takes`` says what the model on the server has to take and give for a bundle, and raises BadInput for
    one that this form is not made for; ``serve`` is the cure where the server's model is another.
    """

    privacy: Privacy
    made: Callable[[Frame, Slot], Sendable]
    takes: Callable[[Manifest], Signature]
    serve: str


def raw() -> Leaving:
    """The input tensor leaves as it is, for the bundle's own model."""
    return Leaving(Privacy(rule="raw"), as_tensors, lambda manifest: manifest.signature, SERVE)


def reduced(most_pixels: int) -> Leaving:
    """A JPEG of at most ``most_pixels`` leaves, for a model that takes a coded picture (BYTES [1]) and gives
    what the bundle's model gives."""
    from PIL import Image

    def made(frame: Frame, slot: Slot) -> Sendable:
        return reduce_picture(Image.fromarray(frame.pixels), most_pixels)

    def takes(manifest: Manifest) -> Signature:
        picture = TensorSpec(name=PICTURE, dtype="object", shape=(1,))
        return Signature(inputs=(picture,), outputs=manifest.signature.outputs)

    serve = f"Serve one that decodes '{PICTURE}', BYTES [1], before the bundle's model, and name it"
    return Leaving(Privacy(rule="reduced", most_pixels=most_pixels), made, takes, serve)


@contextlib.contextmanager
def features(folder: Path, threads: int = 1) -> Iterator[Leaving]:
    """What the head of the split model in ``folder`` computes leaves, for that split model's tail.

    The head is open in ONNX Runtime for as long as the context lasts. Raises BadInput where the folder holds
    no sound split model.
    """
    with contextlib.closing(open_head(folder, threads)) as head:
        split = head.split
        zeros = {s.name: np.zeros(_fixed(s), np.dtype(s.dtype)) for s in split.signature.inputs}
        head.float_features(zeros)  # the first call of an engine is slow, and no frame's deadline pays for it

        def takes(manifest: Manifest) -> Signature:
            check_belongs(split, manifest, folder)
            return tail_signature(split)

        yield Leaving(
            privacy=Privacy(rule="features-only", head_sha256=split.head.sha256),
            made=lambda frame, slot: _computed(head, frame, slot),
            takes=takes,
            serve=f"Serve {split.tail.path} of the split model, and name it",
        )


def _computed(head: FeatureHead, frame: Frame, slot: Slot) -> Features:
    """The frame's features, prepared as for the slot but at the size that the head takes."""
    (port, *others), spec = head.split.signature.inputs, slot.preprocess
    layout = image_layout(port)
    if others or spec is None or layout is None:
        why = "its head takes no single picture"
        raise BadInput("computing features by", head.split.head.path, why, "Split a model of one picture")
    shape = _fixed(port)
    height, width = shape[2:] if layout == "NCHW" else shape[1:3]
    array = np.empty(shape, np.dtype(port.dtype))
    fill(msgspec.structs.replace(spec, height=height, width=width), frame.pixels, array[0])
    return head({port.name: array})


def _fixed(spec: TensorSpec) -> tuple[int, ...]:
    """A split model's shapes are static: it is cut so."""
    return tuple(int(n) for n in spec.shape)
