"""The texture array as an ONNX graph with static shapes, so that it is a model like any other.

Standard operators of opset 17 only. What ``channels`` defines in whole numbers stays whole in float32 and so
is exact; an engine in float16 or INT8 is not, which is for the build to measure and report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekiln.arrcoc import channels as c
from edgekiln.arrcoc.texture import cached_positions, check_size
from edgekiln.errors import BadInput

if TYPE_CHECKING:
    import onnx

Layout = Literal["NCHW", "NHWC"]
OPSET = 17
INPUT, OUTPUT = "picture", "texture"


def texture_model(
    size: tuple[int, int],
    *,
    picture: tuple[int, int] | None = None,
    layout: Layout = "NCHW",
    dtype: Literal["uint8", "float32"] = "uint8",
) -> onnx.ModelProto:
    """From ``picture``, uint8 (1, 3, H, W) or (1, H, W, 3) RGB, to ``texture``, float32 (1, 13, h, w).

    ``size`` is (h, w); the input is of that size too, or of ``picture`` (H, W) and reduced by area as
    ``texture.reduction`` does it. ``dtype`` float32 is for engines that take no bytes, Core ML for one: whole
    numbers of 0 to 255 all the same. Raises BadInput for another size or layout.
    """
    from onnx import TensorProto, helper

    inner = picture or size
    check_size(size)
    check_size(inner)
    if layout not in ("NCHW", "NHWC"):
        raise BadInput("building", "the texture graph", f"{layout!r} is no layout", "Give NCHW or NHWC.")
    graph = _Graph()
    planes = INPUT
    if layout == "NHWC":
        planes = graph.add("Transpose", [planes], perm=[0, 3, 1, 2])
    if dtype == "uint8":
        planes = graph.add("Cast", [planes], to=TensorProto.FLOAT)
    else:  # what a converter probes with is anything, and a logarithm of less than 0 is no number
        planes = graph.add("Clip", [planes, graph.constant(0), graph.constant(255)])
    if tuple(inner) != tuple(size):
        planes = _reduction(graph, planes, inner, size)
    rgb = graph.add("Mul", [planes, graph.constant(1 / 255)])
    slopes, magnitude, deviation = _neighbourhoods(graph, planes)
    positions = graph.constant(cached_positions(*size)[None])
    parts = [rgb, _lab(graph, rgb), slopes, magnitude, positions, deviation]
    graph.add("Concat", parts, output=OUTPUT, axis=1)
    given = TensorProto.UINT8 if dtype == "uint8" else TensorProto.FLOAT
    shape = [1, 3, *inner] if layout == "NCHW" else [1, *inner, 3]
    built = helper.make_graph(
        graph.nodes,
        "arrcoc-texture",
        [helper.make_tensor_value_info(INPUT, given, shape)],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [1, c.COUNT, *size])],
        graph.constants,
    )
    return helper.make_model(
        built, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="edgekiln"
    )


class _Graph:
    """Nodes and constants as they come; a value's name is that of its operator and a number."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, op: str, inputs: list[str], *, output: str = "", **attributes: Any) -> str:
        from onnx import helper

        name = output or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def mixed(self, planes: str, weights: NDArray[np.float64], bias: Any = None) -> str:
        """A 1x1 convolution by ``weights`` (outputs, inputs)."""
        inputs = [planes, self.constant(weights[:, :, None, None])]
        return self.add("Conv", [*inputs, *([self.constant(bias)] if bias is not None else [])])


def _reduction(graph: _Graph, planes: str, inner: tuple[int, int], size: tuple[int, int]) -> str:
    if not (inner[0] % size[0] or inner[1] % size[1]):
        step = [inner[0] // size[0], inner[1] // size[1]]
        mean = graph.add("AveragePool", [planes], kernel_shape=step, strides=step)
    else:
        rows, columns = c.coverage(inner[0], size[0]), c.coverage(inner[1], size[1])
        high = graph.add("MatMul", [graph.constant(rows), planes])
        mean = graph.add("MatMul", [high, graph.constant(columns.T)])
    half_up = graph.add("Floor", [graph.add("Add", [mean, graph.constant(0.5)])])
    return graph.add("Clip", [half_up, graph.constant(0), graph.constant(255)])


def _lab(graph: _Graph, rgb: str) -> str:
    """Powers as exp(log(x) * p): engines compute these two faster than a general power."""

    def power(base: str, exponent: float) -> str:
        return graph.add("Exp", [graph.add("Mul", [graph.add("Log", [base]), graph.constant(exponent)])])

    raised = graph.mixed(rgb, np.eye(3) / 1.055, np.full(3, 0.055 / 1.055))
    toe = graph.add("Mul", [rgb, graph.constant(1 / 12.92)])
    dark = graph.add("LessOrEqual", [rgb, graph.constant(0.04045)])
    light = graph.add("Where", [dark, toe, power(raised, 2.4)])
    xyz = graph.mixed(light, c.XYZ_OF_RGB)
    above = graph.add("Max", [xyz, graph.constant(c.LINEAR_BELOW)])  # no logarithm of 0
    slope = graph.add("Add", [graph.add("Mul", [xyz, graph.constant(c.SLOPE)]), graph.constant(c.OFFSET)])
    linear = graph.add("LessOrEqual", [xyz, graph.constant(c.LINEAR_BELOW)])
    f = graph.add("Where", [linear, slope, power(above, 1 / 3)])
    lab = graph.mixed(f, c.LAB_OF_F, c.LAB_BIAS)
    return graph.add("Clip", [lab, graph.constant(0), graph.constant(1)])


def _neighbourhoods(graph: _Graph, planes: str) -> tuple[str, str, str]:
    """Slopes (2 planes), their magnitude and the deviation, by one 5x5 convolution of luma and its square.

    Luma as (luma - 128) / 128: a power of two, so that float32 is as exact as with whole numbers, and small,
    so that the sums of squares don't overflow where an engine computes in float16.
    """
    luma = graph.add("Floor", [graph.mixed(planes, np.array([c.LUMA]) / c.LUMA_SCALE, [0.5])])
    small = graph.add("Mul", [luma, graph.constant(1 / 128)])
    centred = graph.add("Sub", [small, graph.constant(1)])
    pads = graph.constant([0, 0, 2, 2, 0, 0, 2, 2], np.int64)
    padded = graph.add("Pad", [centred, pads], mode="edge")
    both = graph.add("Concat", [padded, graph.add("Mul", [padded, padded])], axis=1)
    kernels = np.zeros((4, 2, c.WINDOW, c.WINDOW))
    sobel = np.outer([1, 2, 1], [-1, 0, 1])
    kernels[0, 0, 1:4, 1:4], kernels[1, 0, 1:4, 1:4] = sobel, sobel.T
    kernels[2, 0], kernels[3, 1] = 1, 1
    found = graph.add("Conv", [both, graph.constant(kernels)])
    parts = [f"part_{i}" for i in range(3)]
    _split(graph, found, parts, [2, 1, 1])
    slopes = graph.add("Mul", [parts[0], graph.constant(128 / c.SOBEL_FULL)])
    magnitude = graph.add("ReduceL2", [slopes], axes=[1], keepdims=1)
    n = c.WINDOW**2
    spread = graph.add("Mul", [parts[2], graph.constant(n)])
    spread = graph.add("Sub", [spread, graph.add("Mul", [parts[1], parts[1]])])
    # Never negative in float32; in a coarser arithmetic it may be, and then has no root.
    root = graph.add("Sqrt", [graph.add("Relu", [spread])])
    return slopes, magnitude, graph.add("Mul", [root, graph.constant(128 / (n * 255))])


def _split(graph: _Graph, value: str, outputs: list[str], sizes: list[int]) -> None:
    from onnx import helper

    inputs = [value, graph.constant(sizes, np.int64)]
    graph.nodes.append(helper.make_node("Split", inputs, outputs, name="split", axis=1))
