"""LiteRT's own quantiser (ai-edge-quantizer) on a float ``.tflite``.

Which recipe is best depends on the architecture: integer weights with activations quantised at run time make
a transformer faster and a convolutional net slower. So all are made, and each is measured.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.engines import litert as engine
from edgekiln.errors import ConversionFailed
from edgekiln.records import Artifact, Pass

_DOING = "quantising for LiteRT with"


def quantise(content: bytes, one: Pass, calibration: str | None, artifact: Artifact) -> bytes:
    """``content`` after the pass ``quantise-litert``, or ``precision`` fp16 (weights in 16 bits, no more).

    Static recipes leave inputs and outputs float: a QUANTIZE and a DEQUANTIZE inside the file do what the
    application would otherwise have to do with scales and zero points. ``calibration`` is a folder of
    ``*.npz`` samples in the model's own form; ``artifact`` says how the file's form differs.
    Raises ConversionFailed with the quantiser's message, without samples where the recipe needs them, and
    for bfloat16, which LiteRT has no kernels for.
    """
    from ai_edge_quantizer import quantizer

    kind = str(one.params.get("recipe", one.params.get("type")))
    try:
        with _quiet():
            made = quantizer.Quantizer(bytearray(content))
            _load(made, kind)
            ranges = _ranges(content, made, kind, calibration, artifact) if made.need_calibration else None
            done = made.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    except (ValueError, RuntimeError, KeyError, TypeError, IndexError, NotImplementedError) as error:
        said = str(error).strip().splitlines()
        why = f"{type(error).__name__}: {said[0] if said else 'no message'}"
        raise ConversionFailed(_DOING, kind, why, "Use another recipe for this target") from error
    return bytes(done.quantized_model)


def _load(quantiser: Any, kind: str) -> None:
    """Give the quantiser its recipe ``kind``: a function of its module ``recipe``, or fp16."""
    from ai_edge_quantizer import qtyping, recipe

    everything = qtyping.TFLOperationName.ALL_SUPPORTED
    if kind == "fp16":
        half = qtyping.OpQuantizationConfig(
            weight_tensor_config=qtyping.TensorQuantizationConfig(
                num_bits=16, dtype=qtyping.TensorDataType.FLOAT
            ),
            compute_precision=qtyping.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        )
        quantiser.update_quantization_recipe(".*", everything, half, "float_casting")
        return
    if kind == "bf16":
        why, cure = "LiteRT has no bfloat16 kernels", "Use the recipe fp16 or fp32"
        raise ConversionFailed(_DOING, kind, why, cure)
    quantiser.load_quantization_recipe(getattr(recipe, kind)())
    if kind.startswith("static_"):
        for operation in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
            quantiser.update_quantization_recipe(".*", operation, algorithm_key="no_quantize")


def _ranges(content: bytes, quantiser: Any, kind: str, folder: str | None, artifact: Artifact) -> Any:
    """Ranges of all tensors: the least and the greatest value in any sample.

    The quantiser's own default is a moving average of each sample's extremes, which cuts off what the other
    samples go beyond it. One sample is held at a time.
    """
    from ai_edge_quantizer import calibrator, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    paths = sorted(Path(folder).glob("*.npz")) if folder is not None else []
    if not paths:
        cure = "Give --data with pictures like those of the field"
        raise ConversionFailed(_DOING, kind, "no calibration samples were given", cure)
    runner = engine.interpreter(content, 1, artifact.entry).get_signature_runner(engine.SIGNATURE)
    details = runner.get_input_details()
    rules = recipe_manager.RecipeManager()
    rules.load_quantization_recipe(quantiser.get_quantization_recipe())
    watching = calibrator.Calibrator(content, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    for path in paths:
        with np.load(path, allow_pickle=False) as sample:
            own = {n: engine.file_form(sample[n], d, n, artifact) for n, d in details.items()}
        watching.calibrate({engine.SIGNATURE: [own]}, rules)
    return watching.get_model_qsvs()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser's progress bars and warnings of its interpreter, away."""
    sink = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        yield
