"""What app code is written from: the facts of one bundle that templates use, and the self-test's files."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekiln.devices import Device
from edgekiln.model.preprocess import apply
from edgekiln.model.signature import image_layout
from edgekiln.records import Artifact, Golden, Model, Preprocess, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

PICTURE_WIDTH, PICTURE_HEIGHT = 401, 299


@dataclass(frozen=True)
class App:
    """What app code is written from. ``golden`` names the files in the bundle's golden folder."""

    device: Device
    model: Model
    artifact: Artifact
    golden: Golden | None


def picture_spec(app: App) -> Preprocess | None:
    """The preprocessing, where the model's one input is a picture."""
    inputs = app.model.signature.inputs
    takes = len(inputs) == 1 and image_layout(inputs[0]) is not None
    return app.model.preprocess if takes else None


def labelled(app: App) -> bool:
    """Whether the answer to a picture is a list of classes with names."""
    return app.model.task == "classification" and bool(app.model.labels) and picture_spec(app) is not None


def step(spec: Preprocess) -> float:
    """One 8-bit step of a pixel in the tensor: what another decoder or rounding may differ by."""
    return max(abs(spec.scale / s) for s in spec.std)


def _static(tensor: TensorSpec) -> TensorSpec:
    """A named axis counts as 1: what a warm-up needs."""
    shape = tuple(n if isinstance(n, int) else 1 for n in tensor.shape)
    return TensorSpec(name=tensor.name, dtype=tensor.dtype, shape=shape)


def proved_with(artifact: Artifact, tool: str) -> str:
    """The half sentence of a page that says what proved the artifact; another engine is named as such."""
    if artifact.engine != artifact.proof_engine:
        return f" (proved off the device, by {artifact.proof_engine})"
    version = artifact.tools.get(tool)
    return f", proved with version {version}" if version else ""


def facts(app: App) -> dict[str, Any]:
    """The names that every template knows. ``spec`` is None where the model takes no single picture."""
    spec = picture_spec(app)
    shape: tuple[int, ...] = ()
    if spec is not None:
        channels = 1 if spec.colour == "GRAY" else 3
        size = (spec.height, spec.width)
        shape = (1, channels, *size) if spec.layout == "NCHW" else (1, *size, channels)
    inputs = [_static(t) for t in app.model.signature.inputs]
    if spec is not None:
        inputs = [TensorSpec(name=inputs[0].name, dtype=inputs[0].dtype, shape=shape)]
    return {
        "model": app.model,
        "device": app.device,
        "artifact": app.artifact,
        "options": app.artifact.options,
        "entry": app.artifact.entry,
        "golden": app.golden,
        "threads": app.device.threads,
        "inputs": inputs,
        "outputs": [_static(t) for t in app.model.signature.outputs],
        "spec": spec,
        "shape": shape,
        "channels": shape[1 if spec.layout == "NCHW" else 3] if spec is not None else 0,
        "step": 0.0 if spec is None else step(spec),
        "labelled": labelled(app),
    }


def picture() -> NDArray[np.uint8]:
    """The self-test's picture, shape (299, 401, 3): slopes, a hard edge and noise, the same everywhere.

    Larger than most frames and of odd sides, so that shrinking and rounding are in the comparison.
    """
    y, x = np.mgrid[:PICTURE_HEIGHT, :PICTURE_WIDTH].astype(np.int64)
    noise = ((x * 7919 + y * 104729 + x * y * 31) * 2654435761 >> 7) % 64
    checks = 96 * ((x // 23 + y // 17) % 2)
    planes = (x * 191 // PICTURE_WIDTH + noise, y * 159 // PICTURE_HEIGHT + checks, noise * 2 + checks)
    return np.stack(planes, axis=-1).astype(np.uint8)


def selftest_files(app: App) -> dict[str, bytes]:
    """``selftest/picture.npy`` and the reference's tensor of it, where the model takes pictures."""
    spec = picture_spec(app)
    if spec is None:
        return {}
    from PIL import Image

    pixels = picture()
    tensor = apply(spec, Image.fromarray(pixels))
    return {"selftest/picture.npy": _npy(pixels), "selftest/tensor.npy": _npy(tensor)}


def _npy(array: NDArray[Any]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version=(1, 0), allow_pickle=False)
    return out.getvalue()
