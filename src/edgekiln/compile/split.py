"""Cut a graph in two at named tensors: a head for the device, a tail for a server.

What leaves the device between the two is features, not the picture. The cut is refused where they could be
turned back exactly: where they hold as many numbers as the input, or come from it without a layer that has
weights. Features near the input still show what was in the picture to a network that is trained to invert
them (Dosovitskiy and Brox, 2016); cut as deep as the device can pay for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import ConversionFailed
from edgekiln.files import entry, folder_aside, sha256_file, write_bytes, write_json
from edgekiln.model.parts import SPLIT_FILE, Feature, Split, coded_inputs, may_be_picture
from edgekiln.model.signature import signature
from edgekiln.records import Scalar, Signature

WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "ConvInteger", "MatMulInteger", "QLinearConv"}
_LEAST_CLOSE = 1e-3


def split_model(
    graph: Path,
    tensors: Sequence[str],
    samples: Sequence[Mapping[str, NDArray[Any]]],
    into: Path,
    provenance: Mapping[str, Scalar] | None = None,
    beside: Sequence[str] = (),
) -> Split:
    """Write ``head.onnx``, ``tail.onnx`` and ``split.json`` into the new folder ``into``.

    ``graph`` has static shapes; ``tensors`` are float32 [1, C, ...] and together separate its inputs from
    its outputs. The tail takes them as bytes (``model.parts.Feature``). Head and tail are run on ``samples``
    (inputs by name, at least one) against the whole graph, without quantisation (which has to agree) and with
    it (which is told). ``provenance`` is noted as it is. Inputs named ``beside`` reach the tail as they are:
    a question that belongs to the picture, and nothing that may be a picture itself. Raises ConversionFailed
    where the cut can't be made or can be turned back.
    """
    import onnx
    from onnx.utils import Extractor

    model = onnx.shape_inference.infer_shapes(onnx.load(graph), data_prop=True)
    whole = signature(model)
    inputs = [spec.name for spec in whole.inputs]
    _check_beside(graph, whole, beside)
    told = [name for name in inputs if name in set(beside)]
    try:
        parts = Extractor(model)
        head = parts.extract_model(inputs, list(tensors))
        tail = parts.extract_model([*tensors, *told], [spec.name for spec in whole.outputs])
        features = _features(signature(head).outputs, tensors)
        for part in (head, tail):
            onnx.checker.check_model(part)
    except ConversionFailed:
        raise
    except Exception as error:  # onnx raises nearly anything for a cut that is none
        why = f"there is no cut at {', '.join(tensors)} ({' '.join(str(error).split())[:200]})"
        raise _refused(graph, why) from error
    before = sum(math.prod(map(int, spec.shape)) for spec in whole.inputs if spec.name not in told)
    after = sum(math.prod(feature.shape) for feature in features)
    if after >= before:
        raise _refused(graph, f"the features hold {after} numbers, the input {before}: nothing is hidden")
    if bare := [t for t in tensors if not _has_weights(parts, inputs, t)]:
        raise _refused(graph, f"no layer with weights lies between the input and '{bare[0]}'")
    served = _with_bytes(tail, features)
    gap, sqnr_db = _compared(graph, head, tail, served, features, samples, told)
    with folder_aside(into) as folder:
        write_bytes(folder / "head.onnx", head.SerializeToString(deterministic=True))
        write_bytes(folder / "tail.onnx", served.SerializeToString(deterministic=True))
        made = Split(
            head=entry(folder, folder / "head.onnx"),
            tail=entry(folder, folder / "tail.onnx"),
            whole_sha256=sha256_file(graph),
            signature=whole,
            features=features,
            inputs_elements=before,
            features_elements=after,
            parity_max_error=gap,
            quantised_sqnr_db=sqnr_db,
            samples=len(samples),
            provenance=dict(provenance or {}),
            beside=tuple(told),
        )
        write_json(folder / SPLIT_FILE, made)
    return made


def _check_beside(graph: Path, whole: Signature, beside: Sequence[str]) -> None:
    specs = {spec.name: spec for spec in whole.inputs}
    for name in beside:
        if name not in specs:
            raise _refused(graph, f"'{name}' is none of its inputs {', '.join(specs)}")
        if may_be_picture(specs[name]):
            shape = "x".join(map(str, specs[name].shape))
            raise _refused(graph, f"'{name}' ({shape}) may be a picture, and goes nowhere as it is")


def _features(specs: Sequence[Any], tensors: Sequence[str]) -> tuple[Feature, ...]:
    found = {spec.name: spec for spec in specs}
    made = []
    for number, tensor in enumerate(tensors):
        spec = found[tensor]
        static = all(isinstance(n, int) for n in spec.shape)
        if spec.dtype != "float32" or not static or len(spec.shape) < 2 or spec.shape[0] != 1:
            shape = "x".join(map(str, spec.shape))
            raise _refused(tensor, f"it is {spec.dtype} {shape}, not float32 1xCx…")
        made.append(Feature(name=f"feature{number}", tensor=tensor, shape=tuple(map(int, spec.shape))))
    return tuple(made)


def _has_weights(parts: Any, inputs: list[str], tensor: str) -> bool:
    return any(node.op_type in WEIGHTED for node in parts.extract_model(inputs, [tensor]).graph.node)


def _with_bytes(tail: Any, features: Sequence[Feature]) -> Any:
    """The tail with each feature input replaced by bytes, scale and offset, and what joins them."""
    import onnx
    from onnx import TensorProto, helper

    made = onnx.ModelProto()
    made.CopyFrom(tail)
    kept = [v for v in made.graph.input if v.name not in {f.tensor for f in features}]
    front, inputs = [], []
    for feature in features:
        name, channels = feature.name, feature.shape[1]
        row = [1, channels, *[1] * (len(feature.shape) - 2)]
        shape = f"{name}_row"
        made.graph.initializer.append(helper.make_tensor(shape, TensorProto.INT64, [len(row)], row))
        inputs += [
            helper.make_tensor_value_info(name, TensorProto.UINT8, feature.shape),
            helper.make_tensor_value_info(f"{name}_scale", TensorProto.FLOAT, [channels]),
            helper.make_tensor_value_info(f"{name}_offset", TensorProto.FLOAT, [channels]),
        ]
        front += [
            helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", [f"{name}_scale", shape], [f"{name}_s"]),
            helper.make_node("Reshape", [f"{name}_offset", shape], [f"{name}_o"]),
            helper.make_node("Mul", [f"{name}_float", f"{name}_s"], [f"{name}_scaled"]),
            helper.make_node("Add", [f"{name}_scaled", f"{name}_o"], [feature.tensor]),
        ]
    nodes = [*front, *tail.graph.node]
    del made.graph.input[:], made.graph.node[:]
    made.graph.input.extend([*inputs, *kept])
    made.graph.node.extend(nodes)
    onnx.checker.check_model(made)
    return made


def _compared(
    graph: Path,
    head: Any,
    tail: Any,
    served: Any,
    features: Sequence[Feature],
    samples: Sequence[Mapping[str, NDArray[Any]]],
    beside: Sequence[str],
) -> tuple[float, float | None]:
    """Largest absolute error of head and tail in float, and the SQNR in dB of the quantised way."""
    if not samples:
        raise _refused(graph, "there is no sample to compare head and tail with the whole on")
    whole, first, second, coded = (_session(m) for m in (str(graph), head, tail, served))
    worst, signal, noise = 0.0, 0.0, 0.0
    for sample in samples:
        wanted = whole(sample)
        middle = first(sample)
        told = {name: sample[name] for name in beside}
        got = second({**middle, **told})
        quantised = coded({**coded_inputs(middle, features), **told})
        for name, value in wanted.items():
            reach = float(np.abs(value).max())
            error = float(np.abs(value - got[name]).max())
            worst = max(worst, error)
            if not error <= _LEAST_CLOSE * max(reach, 1.0):
                raise _refused(graph, f"head and tail differ from the whole by {error:.3g} in '{name}'")
            signal += float(np.square(value, dtype=np.float64).sum())
            noise += float(np.square(value - quantised[name], dtype=np.float64).sum())
    return worst, 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


def _session(model: Any) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    given = model if isinstance(model, str) else model.SerializeToString()
    session = ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return lambda sample: dict(zip(names, session.run(names, dict(sample)), strict=True))


def _refused(what: object, why: str) -> ConversionFailed:
    cure = "Name tensors that separate the inputs from the outputs, deeper in the graph"
    return ConversionFailed("splitting", what, why, cure)
