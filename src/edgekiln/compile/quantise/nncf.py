"""OpenVINO's own post-training quantiser, NNCF: symmetric or mixed INT8 with bias correction.

Method: NNCF's ``quantize`` (MinMax statistics, then fast bias correction, Nagel et al. 2019, "Data-free
quantization", section 4.2). NNCF asks for the samples several times, one at a time, and keeps of each only
per-channel minima, maxima and means; a picture is let go before the next is made. So memory grows by a few
numbers per channel and sample, not by the samples themselves.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln import files
from edgekiln.compile.targets.openvino import ENTRY, read, serialise
from edgekiln.errors import BadInput, ConversionFailed, MissingExtra

Samples: TypeAlias = Callable[[], Iterable[dict[str, NDArray[Any]]]]


class _Again:
    """An iterable that starts the samples anew each time and stops after ``n``; it holds none."""

    def __init__(self, samples: Samples, n: int) -> None:
        self._samples, self._n = samples, n

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        for _, sample in zip(range(self._n), self._samples(), strict=False):
            yield sample


def quantise_openvino(
    model_path: Path,
    samples: Samples,
    n: int,
    preset: Literal["performance", "mixed"],
    into: Path,
    seed: int = 0,
    ignored: tuple[str, ...] = (),
) -> Path:
    """Quantise ``model_path`` (.onnx) with the first ``n`` samples; returns ``into/model.xml``.

    A sample maps input names to arrays of the model's shapes. ``preset`` performance quantises weights and
    activations symmetrically, mixed gives activations a zero point. ``ignored`` names ONNX nodes that stay
    float. The same input gives the same bytes on the same machine. Raises MissingExtra, BadInput when
    there are no samples, ConversionFailed with NNCF's message.
    """
    doing = "quantising with NNCF"
    # NNCF reports its use over the network unless this is set before its first import.
    os.environ.setdefault("NNCF_CI", "1")
    try:
        import nncf
    except ImportError as error:
        raise MissingExtra(doing, model_path.name, "openvino") from error
    if n < 1 or next(iter(_Again(samples, 1)), None) is None:
        raise BadInput(doing, model_path.name, "there are no calibration samples", "Give some with --data")
    with _quiet(), _seeded(seed):
        try:
            model = read(model_path)
            model = nncf.quantize(
                model,
                nncf.Dataset(_Again(samples, n)),
                preset=nncf.QuantizationPreset(preset),
                subset_size=n,
                ignored_scope=nncf.IgnoredScope(names=_openvino_names(model, ignored)) if ignored else None,
            )
            xml, weights = serialise(model, compress_to_fp16=False)
        except (RuntimeError, ValueError, nncf.ValidationError, nncf.InternalError) as error:
            why, cure = str(error).strip(), "Choose another recipe or target"
            raise ConversionFailed(doing, model_path.name, why, cure) from error
    files.write_bytes((into / ENTRY).with_suffix(".bin"), weights)
    files.write_bytes(into / ENTRY, xml)
    return into / ENTRY


def _openvino_names(model: Any, onnx_names: tuple[str, ...]) -> list[str]:
    """OpenVINO's names of ONNX nodes: Conv with bias is ``NAME/WithoutBiases`` and an Add ``NAME``."""
    known = {op.get_friendly_name() for op in model.get_ops()}
    return [n for name in onnx_names for n in (name, f"{name}/WithoutBiases") if n in known]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back NNCF's log below errors, and its progress bars, which it draws on rich's global console."""
    import nncf
    import rich

    logger, console = logging.getLogger("nncf"), rich.get_console()
    places: list[logging.Logger | logging.Handler] = [logger, *logger.handlers]
    levels, quiet = [(place, place.level) for place in places], console.quiet
    nncf.set_log_level(logging.ERROR)
    console.quiet = True
    try:
        yield
    finally:
        console.quiet = quiet
        for place, level in levels:
            place.setLevel(level)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's and numpy's global generators seeded, and afterwards as they were."""
    ours, numpys = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)
