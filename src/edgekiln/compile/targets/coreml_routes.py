"""The two ways from an ONNX graph to an ML Program: onnx2coreml, and PyTorch's torch.export.

Both end in the same call of coremltools, which casts to float16, folds and fuses.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.compile.targets.coreml_compress import pipeline
from edgekiln.compile.targets.coreml_io import (
    LABEL,
    PROBABILITIES,
    Interface,
    Ranges,
    affine,
    in_package,
    input_types,
    output_types,
    picture_shape,
    shape_of,
)
from edgekiln.compile.targets.coreml_package import quiet
from edgekiln.errors import ConversionFailed
from edgekiln.records import Pass

ROUTES = ("onnx2coreml", "torch.export")
Sizes: TypeAlias = tuple[tuple[int, int], ...]


def lower(
    route: str,
    graph: Any,
    face: Interface,
    target: str,
    half: bool,
    sizes: Sizes = (),
    ranges: Ranges = None,
    compress: Pass | None = None,
    whole: Collection[str] = (),
) -> Any:
    """An ``onnx.ModelProto`` that ``coreml_io.wrapped`` made, as a coremltools ``MLModel``.

    ``target`` is a deployment target (``iOS17``); ``half`` computes in float16; constants named
    in ``whole`` are not compressed. Raises ConversionFailed with
    the converter's own words, the operators it lacks among them.
    """
    import coremltools

    with quiet():
        try:
            program = (_program if route == ROUTES[0] else _exported)(
                graph, face, target, half, sizes, ranges
            )
            at = getattr(coremltools.target, target)
            return _convert(program, face, at, half, sizes, ranges, pipeline(compress, whole))
        except ConversionFailed:
            raise
        except Exception as error:
            # coremltools and the routes raise whatever their lowerings meet: KeyError, AssertionError ...
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConversionFailed(
                f"converting for Core ML through {route}",
                graph.graph.name or "the graph",
                why[:600],
                "Choose another target, or change the model at that operator",
            ) from error


def _convert(
    program: Any,
    face: Interface,
    target: Any,
    half: bool,
    sizes: Sizes,
    ranges: Ranges,
    passes: Any,
) -> Any:
    import coremltools

    kind = coremltools.precision.FLOAT16 if half else coremltools.precision.FLOAT32
    classifier = None
    if face.scores is not None:
        classifier = coremltools.ClassifierConfig(
            list(face.labels), predicted_feature_name=LABEL, predicted_probabilities_output=PROBABILITIES
        )
    return coremltools.convert(
        program,
        source="milinternal",
        convert_to="mlprogram",
        inputs=input_types(face, sizes, ranges),
        classifier_config=classifier,
        minimum_deployment_target=target,
        pass_pipeline=passes,
        compute_precision=kind,
        compute_units=coremltools.ComputeUnit.CPU_ONLY,
        skip_model_load=True,
    )


def _program(graph: Any, face: Interface, target: str, half: bool, sizes: Sizes, ranges: Ranges) -> Any:
    """A MIL program by onnx2coreml. Symbolic axes go past its public ``to_mil``, which takes static ones."""
    import coremltools
    from coremltools.converters.mil.mil import Builder, Program, get_new_symbol
    from onnx2coreml import _fusion, _passes
    from onnx2coreml._types import onnx_dtype_to_mil
    from onnx2coreml.converter import Converter

    precision = coremltools.precision.FLOAT16 if half else coremltools.precision.FLOAT32
    at = getattr(coremltools.target, target)
    if all(isinstance(d, int) for f in face.inputs for d in f.shape):
        return Converter().to_mil(graph, target=at, precision=precision)
    converter = Converter()
    model = _fusion.run(_passes.run(graph))
    converter._check_coverage(model.graph)
    symbols: dict[str, Any] = {}
    placeholders = {}
    for feature in face.inputs:
        takes = {shape_of(feature, face, size, ranges) for size in sizes or (None,)}
        dims: list[Any] = []
        for axis, dim in enumerate(picture_shape(feature, face)):
            found = {one[axis] for one in takes}
            if isinstance(dim, int) or (len(found) == 1 and not (ranges and dim in ranges)):
                dims.append(found.pop())
            else:
                dims.append(symbols.setdefault(dim, get_new_symbol()))
        value = next(v for v in model.graph.input if v.name == feature.name)
        dtype = onnx_dtype_to_mil(value.type.tensor_type.elem_type)
        placeholders[feature.name] = Builder.placeholder(shape=tuple(dims), dtype=dtype)
    program = Program()
    program.add_function("main", converter._build_function(model.graph, placeholders, at, fp16=half))
    return program


def _exported(graph: Any, face: Interface, target: str, half: bool, sizes: Sizes, ranges: Ranges) -> Any:
    """A MIL program by torch.export of the graph's PyTorch module; for fixed shapes only.

    In float32 and with plain tensors: float16, pictures and the classifier come with the second call, as
    coremltools (9.0) can't name the outputs of a classifier that comes from PyTorch.
    """
    import coremltools
    import onnx
    import torch

    from edgekiln.compile.torch_graph import load

    if any(isinstance(d, str) for f in face.inputs for d in f.shape):
        why, cure = "it takes fixed shapes only", "Ask for one artifact per size"
        raise ConversionFailed("converting for Core ML through torch.export", "the graph", why, cure)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "graph.onnx"
        onnx.save(graph, path)
        module = load(path).eval()
    dtypes = [getattr(torch, f.dtype) for f in face.inputs]
    zeros = tuple(torch.zeros(shape_of(f, face), dtype=d) for f, d in zip(face.inputs, dtypes, strict=True))
    with torch.no_grad():
        exported = torch.export.export(module, zeros).run_decompositions({})
    plain = [
        coremltools.TensorType(name=f.name, shape=shape_of(f, face), dtype=in_package(f.dtype))
        for f in face.inputs
    ]
    program = coremltools.convert(
        exported,
        convert_to="milinternal",
        inputs=plain,
        outputs=output_types(face),
        minimum_deployment_target=getattr(coremltools.target, target),
        compute_precision=coremltools.precision.FLOAT32,
    )
    program.functions["main"].output_types = None  # else the classifier's outputs are looked up in it
    return program


def tools(route: str) -> dict[str, str]:
    """The packages that a route uses, with their versions."""
    names = ["coremltools", "onnx2coreml"] if route == ROUTES[0] else ["coremltools", "torch"]
    return {name: importlib.metadata.version(name) for name in names}


def sample(face: Interface, size: tuple[int, int] | None, ranges: Ranges) -> dict[str, NDArray[Any]]:
    """One random input by the model's own names, shapes and dtypes; ``size`` is (height, width).

    A picture is random pixels after the model's own preprocessing; floats are normal; integers are 0 or 1,
    because nothing says how many words a model knows.
    """
    rng = np.random.default_rng(0)
    found: dict[str, NDArray[Any]] = {}
    for feature in face.inputs:
        dims = shape_of(feature, face, size, ranges)
        if feature.name == face.image and (how := face.preprocess) is not None:
            a, b = affine(how)
            value = rng.integers(0, 256, dims).astype(np.float32) * a + b
            found[feature.own] = value.transpose(0, 2, 3, 1) if how.layout == "NHWC" else value
        elif np.dtype(feature.dtype).kind == "f":
            found[feature.own] = rng.standard_normal(dims).astype(feature.dtype)
        else:
            found[feature.own] = rng.integers(0, 2, dims).astype(feature.dtype)
    return found
