"""A TensorFlow.js graph model as ONNX, for the operators that NanoDet's needs.

Tensors keep the graph's own layout. What TensorFlow computes in NHWC stands between two transpositions
here, which cancel against the graph's own when ``simplified`` folds them. Weights are stored as float16 or
int32, as the manifest says (https://github.com/tensorflow/tfjs, ``weightsManifest``).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekiln.errors import ConversionFailed

OPSET = 17
MOST_BYTES = 64 << 20
TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


class _Graph:
    """The nodes and constants made so far, and what each of the source's tensors is called now."""

    def __init__(self, nodes: Sequence[Mapping[str, Any]], constants: dict[str, NDArray[Any]]) -> None:
        self.constants, self.nodes = constants, [n for n in nodes if n["op"] != "Const"]
        self.users: dict[str, list[Mapping[str, Any]]] = {}
        for node in self.nodes:
            for name in node.get("input", ()):
                self.users.setdefault(_tensor(name), []).append(node)
        self.made: list[onnx.NodeProto] = []
        self.held: dict[str, onnx.TensorProto] = {}
        self.taken: set[str] = set()

    def known(self, name: str) -> NDArray[Any]:
        """The value of a constant input."""
        if _tensor(name) not in self.constants:
            raise _refused(name, "it has to be a constant here")
        return self.constants[_tensor(name)]

    def operand(self, name: str) -> str:
        """The ONNX name of an input; a constant becomes an initializer."""
        tensor = _tensor(name)
        if tensor in self.constants:
            return self.hold(tensor, self.constants[tensor])
        return tensor

    def hold(self, name: str, value: NDArray[Any]) -> str:
        self.held[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.made.append(helper.make_node(op, list(inputs), [output], output, **attributes))
        return output

    def transposed(self, name: str, order: Sequence[int], output: str) -> str:
        return self.add("Transpose", [name], output, perm=list(order))


def convert(source: Path) -> onnx.ModelProto:
    """The graph model at ``source`` (its .json, the weights beside it). Raises ConversionFailed naming the
    operator that is not known."""
    model = json.loads(source.read_text(encoding="utf-8"))
    nodes = model["modelTopology"]["node"]
    graph = _Graph(nodes, weights(source.parent, model["weightsManifest"]))
    for node in graph.nodes:
        if node["name"] in graph.taken or node["op"] == "Placeholder":
            continue
        if _folded(graph, node):
            continue
        make = _MAKE.get(node["op"])
        if make is None:
            raise _refused(node["name"], f"operator {node['op']} is not known here")
        make(graph, node)
    inputs, outputs = (model["signature"][kind].values() for kind in ("inputs", "outputs"))
    made = helper.make_graph(
        graph.made,
        source.stem,
        [_described(one) for one in inputs],
        [_described(one) for one in outputs],
        list(graph.held.values()),
    )
    opsets = [helper.make_opsetid("", OPSET)]
    converted: onnx.ModelProto = helper.make_model(made, opset_imports=opsets, ir_version=10)
    return converted


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with transpositions cancelled and constants folded, checked against itself by onnxsim."""
    import onnxsim

    small, same = onnxsim.simplify(model, check_n=1)
    if not same:
        raise _refused(model.graph.name, "its simplified form computes something else")
    onnx.checker.check_model(small)
    checked: onnx.ModelProto = small
    return checked


def weights(folder: Path, manifest: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
    """All constants by name: float16 weights as float32, int32 as int64 (ONNX's own for shapes)."""
    found: dict[str, NDArray[Any]] = {}
    for group in manifest:
        files = [folder / Path(name).name for name in group["paths"]]
        if sum(file.stat().st_size for file in files) > MOST_BYTES:
            raise _refused(folder, f"its weights are larger than {MOST_BYTES >> 20} MiB")
        data, at = b"".join(file.read_bytes() for file in files), 0
        for weight in group["weights"]:
            stored = np.dtype(weight.get("quantization", {}).get("dtype", weight["dtype"]))
            count = int(np.prod(weight["shape"], dtype=np.int64))
            values = np.frombuffer(data, stored.newbyteorder("<"), count, at).reshape(weight["shape"])
            at += count * stored.itemsize
            found[weight["name"]] = values.astype(np.int64 if stored.kind == "i" else np.float32)
    return found


# ---------------------------------------------------------------- operators


def _folded(graph: _Graph, node: Mapping[str, Any]) -> bool:
    """Work out what rests on constants alone: the shapes that the graph puts together."""
    names = node.get("input", ())
    if not names or any(_tensor(name) not in graph.constants for name in names):
        return False
    values = [graph.known(name) for name in names]
    if node["op"] == "SparseToDense":
        _, shape, sparse, default = values
        if sparse.size:
            raise _refused(node["name"], "a sparse constant holds values")
        graph.constants[node["name"]] = np.full(tuple(int(n) for n in shape), default)
    elif node["op"] in {"Add", "AddV2"}:
        graph.constants[node["name"]] = values[0] + values[1]
    else:
        return False
    return True


def _conv(graph: _Graph, node: Mapping[str, Any]) -> None:
    """NHWC with weights HWIO; the addition of a constant that alone follows becomes the bias."""
    name, (data, kernel) = node["name"], node["input"]
    strides = [int(n) for n in node["attr"]["strides"]["list"]["i"]][1:3]
    inputs = [graph.transposed(graph.operand(data), TO_NCHW, f"{name}/nchw")]
    inputs.append(graph.hold(f"{name}/weight", graph.known(kernel).transpose(3, 2, 0, 1)))
    end = name
    follower = graph.users[name][0] if len(graph.users.get(name, ())) == 1 else None
    if follower is not None and follower["op"] in {"Add", "AddV2", "BiasAdd"}:
        added = next(n for n in follower["input"] if _tensor(n) != name)
        if _tensor(added) in graph.constants:
            bias = graph.known(added).reshape(-1)
            inputs.append(graph.hold(f"{name}/bias", bias))
            end = follower["name"]
            graph.taken.add(end)
    shape = graph.known(kernel).shape[:2]
    made = graph.add(
        "Conv", inputs, f"{name}/conv", strides=strides, kernel_shape=list(shape), **_padding(node, shape)
    )
    graph.transposed(made, TO_NHWC, end)


def _padding(node: Mapping[str, Any], kernel: Sequence[int]) -> dict[str, Any]:
    kind = base64.b64decode(node["attr"]["padding"]["s"]).decode()
    if kind == "VALID":
        return {}
    if kind == "SAME" and set(kernel) == {1}:
        return {}
    return {"auto_pad": "SAME_UPPER"}


def _max_pool(graph: _Graph, node: Mapping[str, Any]) -> None:
    name = node["name"]
    size, strides = ([int(n) for n in node["attr"][k]["list"]["i"]][1:3] for k in ("ksize", "strides"))
    data = graph.transposed(graph.operand(node["input"][0]), TO_NCHW, f"{name}/nchw")
    made = graph.add(
        "MaxPool", [data], f"{name}/pool", kernel_shape=size, strides=strides, **_padding(node, size)
    )
    graph.transposed(made, TO_NHWC, name)


def _resize(graph: _Graph, node: Mapping[str, Any]) -> None:
    name = node["name"]
    if not node["attr"]["half_pixel_centers"]["b"] or node["attr"]["align_corners"]["b"]:
        raise _refused(name, "only half-pixel centres are known here")
    # The scale is what simplifiers and quantisers know best, and it must be whole for that.
    height, width = (int(n) for n in graph.known(node["input"][1]))
    data = graph.transposed(graph.operand(node["input"][0]), TO_NCHW, f"{name}/nchw")
    shape = graph.add("Shape", [data], f"{name}/shape", start=0, end=2)
    size = graph.hold(f"{name}/size", np.array([height, width], np.int64))
    sizes = graph.add("Concat", [shape, size], f"{name}/sizes", axis=0)
    made = graph.add(
        "Resize",
        [data, "", "", sizes],
        f"{name}/resized",
        mode="linear",
        coordinate_transformation_mode="half_pixel",
    )
    graph.transposed(made, TO_NHWC, name)


def _pad(graph: _Graph, node: Mapping[str, Any]) -> None:
    pairs = graph.known(node["input"][1]).T.reshape(-1)  # TensorFlow pairs by axis, ONNX all befores first
    inputs = [graph.operand(node["input"][0]), graph.hold(f"{node['name']}/pads", pairs)]
    if len(node["input"]) > 2:
        inputs.append(graph.operand(node["input"][2]))
    graph.add("Pad", inputs, node["name"])


def _transpose(graph: _Graph, node: Mapping[str, Any]) -> None:
    order = [int(n) for n in graph.known(node["input"][1])]
    graph.transposed(graph.operand(node["input"][0]), order, node["name"])


def _concat(graph: _Graph, node: Mapping[str, Any]) -> None:
    axis = int(graph.known(node["input"][-1]).reshape(()))
    graph.add("Concat", [graph.operand(n) for n in node["input"][:-1]], node["name"], axis=axis)


def _split(graph: _Graph, node: Mapping[str, Any]) -> None:
    name, count = node["name"], int(node["attr"]["num_split"]["i"])
    axis = int(graph.known(node["input"][2]).reshape(()))
    inputs = [
        graph.operand(node["input"][0]),
        graph.hold(f"{name}/parts", graph.known(node["input"][1]).reshape(-1)),
    ]
    outputs = [name if number == 0 else f"{name}:{number}" for number in range(count)]
    graph.made.append(helper.make_node("Split", inputs, outputs, name, axis=axis))


def _leaky(graph: _Graph, node: Mapping[str, Any]) -> None:
    alpha = float(node["attr"]["alpha"]["f"])
    graph.add("LeakyRelu", [graph.operand(node["input"][0])], node["name"], alpha=alpha)


def _plain(op: str) -> Callable[[_Graph, Mapping[str, Any]], None]:
    def make(graph: _Graph, node: Mapping[str, Any]) -> None:
        graph.add(op, [graph.operand(name) for name in node["input"]], node["name"])

    return make


_MAKE: dict[str, Callable[[_Graph, Mapping[str, Any]], None]] = {
    "Add": _plain("Add"),
    "AddV2": _plain("Add"),
    "ConcatV2": _concat,
    "Conv2D": _conv,
    "Identity": _plain("Identity"),
    "LeakyRelu": _leaky,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "PadV2": _pad,
    "Reshape": _plain("Reshape"),
    "ResizeBilinear": _resize,
    "Sigmoid": _plain("Sigmoid"),
    "SplitV": _split,
    "Transpose": _transpose,
}


def _tensor(name: str) -> str:
    """A tensor's own name: no control mark, and the first output without its number."""
    return name.lstrip("^").removesuffix(":0")


def _described(one: Mapping[str, Any]) -> onnx.ValueInfoProto:
    shape = [int(d["size"]) for d in one["tensorShape"]["dim"]]
    return helper.make_tensor_value_info(_tensor(one["name"]), TensorProto.FLOAT, shape)


def _refused(what: object, why: str) -> ConversionFailed:
    return ConversionFailed("converting the TensorFlow.js graph at", what, why, "Use another model")
