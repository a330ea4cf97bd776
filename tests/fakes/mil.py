"""ML Programs written op by op and saved as real packages by coremltools."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

logging.getLogger("coremltools").setLevel(logging.ERROR)

ENTRY = "model.mlpackage"


def save(
    folder: Path,
    body: Callable[..., Any],
    inputs: list[Any],
    target: str = "iOS18",
    half: bool = False,
    **convert: Any,
) -> Path:
    """Save the program whose body is ``body(builder, *inputs)`` as ``folder/model.mlpackage``.

    ``inputs`` are ``mb.TensorSpec`` or ``mb.StateTensorSpec``; no optimisation is applied, so that the ops
    stay as they were written.
    """
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

    opset = getattr(ct.target, target)

    # coremltools names the inputs after the parameters, so each count needs a function of its own.
    written: dict[int, Callable[..., Any]] = {
        1: lambda x0: body(mb, x0),
        2: lambda x0, x1: body(mb, x0, x1),
    }
    program = mb.program(input_specs=inputs, opset_version=opset)(written[len(inputs)])
    made = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=opset,
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.DEFAULT if half else ct.PassPipeline.EMPTY,
        **convert,
    )
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / ENTRY))
    return folder


def spec(*shape: int, dtype: str = "fp32") -> Any:
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
    from coremltools.converters.mil.mil import types

    return mb.TensorSpec(shape=shape, dtype=getattr(types, dtype))


def state(*shape: int) -> Any:
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
    from coremltools.converters.mil.mil import types

    return mb.StateTensorSpec(shape=shape, dtype=types.fp16)
