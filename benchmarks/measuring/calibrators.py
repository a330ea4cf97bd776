"""The contenders of the calibration benchmark: each a function from a folder to the quantised file in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

OURS = ("edgekiln minmax", "edgekiln percentile 99.99", "edgekiln mse", "edgekiln entropy")
THEIRS = ("ONNX Runtime MinMax", "ONNX Runtime Percentile", "ONNX Runtime Entropy", "NNCF")
RECIPES = dict(
    zip(
        OURS,
        ("int8-static-minmax", "int8-static-percentile-99.99", "int8-static-mse", "int8-static-entropy"),
        strict=True,
    )
)

Quantise = Callable[[Path], Path]


def quantiser(
    name: str, graph: Path, dialect_name: str, samples: Callable[[], Iterator[Any]], count: int, threads: int
) -> tuple[Quantise, str]:
    """The function that is timed, with its packages imported, and the engine of its result.

    ``dialect_name`` is edgekiln's name of the Q/DQ dialect; ``samples`` starts the samples anew each time.
    """
    if name in OURS:
        return _ours(RECIPES[name], graph, dialect_name, samples, threads), "onnxruntime"
    if name == "NNCF":
        return _nncf(graph, samples, count), "openvino"
    return _onnxruntime(name.rsplit(" ", 1)[1], graph, dialect_name, samples), "onnxruntime"


def _ours(
    recipe_name: str, graph: Path, dialect_name: str, samples: Callable[[], Iterator[Any]], threads: int
) -> Quantise:
    import onnxruntime.quantization  # noqa: F401 (imported before the clock starts)

    from edgekiln.compile.quantise.observers import observe
    from edgekiln.compile.quantise.static import DIALECTS, quantise_static
    from edgekiln.compile.recipes import recipe

    params = recipe(recipe_name).passes[0].params

    def quantise(into: Path) -> Path:
        seen = observe(graph, samples(), threads)
        path = into / "graph.onnx"
        quantise_static(graph, seen, str(params["rule"]), params, DIALECTS[dialect_name], path)
        return path

    return quantise


def _onnxruntime(
    method: str, graph: Path, dialect_name: str, samples: Callable[[], Iterator[Any]]
) -> Quantise:
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    from edgekiln.compile.quantise.static import DIALECTS, quiet

    dialect = DIALECTS[dialect_name]
    known = set(QDQRegistry) | set(QLinearOpsRegistry)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = samples()

        def get_next(self) -> dict[str, Any] | None:
            return next(self._left, None)

    def quantise(into: Path) -> Path:
        path = into / "graph.onnx"
        present = {n.op_type for n in onnx.load(graph, load_external_data=False).graph.node}
        with quiet():
            quantization.quantize_static(
                str(graph),
                str(path),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType[dialect.activations],
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                reduce_range=dialect.reduce_range,
                calibrate_method=quantization.CalibrationMethod[method],
                op_types_to_quantize=sorted(present & known),
            )
        return path

    return quantise


def _nncf(graph: Path, samples: Callable[[], Iterator[Any]], count: int) -> Quantise:
    os.environ.setdefault("NNCF_CI", "1")  # else NNCF reports its use over the network
    import nncf
    import openvino

    class Again:
        def __iter__(self) -> Iterator[Any]:
            return samples()

    def quantise(into: Path) -> Path:
        model = openvino.Core().read_model(graph)
        quantised = nncf.quantize(model, nncf.Dataset(Again()), subset_size=count)
        openvino.save_model(quantised, into / "model.xml", compress_to_fp16=False)
        return into / "model.xml"

    return quantise
