"""Weights in blocks, written for a target: ONNX Runtime's MatMulNBits, OpenVINO's decompression.

MatMulNBits (ONNX Runtime, contrib operators): B is (N, blocks, bytes) with the first of two 4-bit values in
the low half of a byte, zero points likewise along the blocks. OpenVINO's plugins fuse Constant (u4 or u8),
Convert, Subtract, Multiply and Reshape in front of a MatMul into a product with compressed weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.compile.quantise.weight_only import Decided
from edgekiln.errors import ConversionFailed

DOMAIN = "com.microsoft"
FAST = 4
"""MatMulNBits' accuracy_level with activations rounded to 8 bits per block: the fast CPU kernels."""
EXACT = 1
"""The accuracy_level of float products."""


def packed(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Values along the last axis in bytes, the first of two in the low half; an odd end is filled with 0."""
    if bits == 8:
        return values
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], 1), np.uint8)], axis=-1)
    return np.asarray(values[..., 0::2] | (values[..., 1::2] << 4), np.uint8)


def write_onnx(graph: Path, decided: Sequence[Decided], into: Path, accuracy_level: int = FAST) -> None:
    """The ONNX file ``graph`` with the decided products as MatMulNBits."""
    import onnx
    from onnx import helper

    made = onnx.load(graph)
    by_node = {d.layer.node: d for d in decided}
    dropped = {d.layer.weight for d in decided}
    kept = [i for i in made.graph.initializer if i.name not in dropped]
    levelled: dict[str, str] = {}
    nodes: list[Any] = []
    for node in made.graph.node:
        one = by_node.get(node.name)
        if one is None:
            nodes.append(node)
            continue
        source = _levelled(one, levelled, nodes, kept)
        nodes += _product(node, one, source, kept, accuracy_level)
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    weights = [onnx.TensorProto.FromString(i.SerializeToString()) for i in kept]
    del made.graph.node[:], made.graph.initializer[:]
    made.graph.node.extend(copies)
    made.graph.initializer.extend(weights)
    if not any(o.domain == DOMAIN for o in made.opset_import):
        made.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    onnx.save(made, into)


def _levelled(one: Decided, known: dict[str, str], nodes: list[Any], held: list[Any]) -> str:
    """The product's input, divided by its levels: one Mul for all products that read it so."""
    from onnx import helper, numpy_helper

    if not one.levels.size:
        return one.layer.input
    if one.layer.input not in known:
        name = f"{one.layer.input}_levelled"
        held.append(numpy_helper.from_array((1 / one.levels).astype(np.float32), f"{name}_by"))
        nodes.append(helper.make_node("Mul", [one.layer.input, f"{name}_by"], [name], name))
        known[one.layer.input] = name
    return known[one.layer.input]


def _product(node: Any, one: Decided, source: str, held: list[Any], accuracy_level: int) -> list[Any]:
    from onnx import helper, numpy_helper

    grid, weight = one.grid, one.layer.weight
    rows, depth = one.integers.shape
    blocks = grid.scales.shape[1]
    filled = np.repeat(grid.zeros, grid.block, axis=1)  # what the last block lacks is 0
    filled[:, :depth] = one.integers
    data = packed(filled.reshape(rows, blocks, grid.block), grid.bits)
    held.append(numpy_helper.from_array(data, f"{weight}_q"))
    held.append(numpy_helper.from_array(grid.scales.astype(np.float32).reshape(-1), f"{weight}_scales"))
    held.append(numpy_helper.from_array(packed(grid.zeros, grid.bits).reshape(-1), f"{weight}_zeros"))
    biased = node.op_type == "Gemm" and len(node.input) > 2 and bool(node.input[2])
    out = f"{node.output[0]}_unbiased" if biased else node.output[0]
    product = helper.make_node(
        "MatMulNBits",
        [source, f"{weight}_q", f"{weight}_scales", f"{weight}_zeros"],
        [out],
        node.name,
        domain=DOMAIN,
        K=depth,
        N=rows,
        bits=grid.bits,
        block_size=grid.block,
        accuracy_level=accuracy_level,
    )
    if not biased:
        return [product]
    return [product, helper.make_node("Add", [out, node.input[2]], [node.output[0]], f"{node.name}_bias")]


# ---------------------------------------------------------------- OpenVINO


def write_openvino(graph: Path, decided: Sequence[Decided], into: Path) -> Path:
    """OpenVINO's IR of the ONNX file ``graph`` with compressed weights; the ``.xml`` in ``into``.

    Raises ConversionFailed where a product can't be found in what OpenVINO reads.
    """
    from edgekiln.compile.targets.openvino import read_quantised, serialise
    from edgekiln.files import write_bytes

    model = read_quantised(graph)  # unfolded: what is not recognised would be left behind
    constants = {op.get_friendly_name(): op for op in model.get_ops() if op.get_type_name() == "Constant"}
    lost = [d.layer.node for d in decided if not _swapped(constants.get(d.layer.weight), d)]
    if lost:
        why = f"OpenVINO reads {len(lost)} of {len(decided)} products in another form, {lost[0]} first"
        raise ConversionFailed("compressing the weights of", graph.name, why, "Use NNCF's recipe or fp16")
    model.validate_nodes_and_infer_types()
    xml, weights = serialise(model, compress_to_fp16=False)
    write_bytes(into / "compressed.xml", xml)
    write_bytes(into / "compressed.bin", weights)
    return into / "compressed.xml"


def _swapped(constant: Any, one: Decided) -> bool:
    """Put the decompression in front of the one product that reads ``constant``; whether that could be."""
    import openvino.opset13 as ops

    readers = [] if constant is None else list(constant.output(0).get_target_inputs())
    if len(readers) != 1:
        return False
    product = readers[0].get_node()
    if product.get_type_name() != "MatMul" or readers[0].get_index() != 1:
        return False
    attributes = product.get_attributes()
    if attributes["transpose_a"]:
        return False
    source = product.input_value(0)
    if one.levels.size:
        by = ops.constant((1 / one.levels).astype(np.float32))
        source = ops.multiply(source, by).output(0)
    made = ops.matmul(source, _decompressed(one), False, True)
    made.set_friendly_name(product.get_friendly_name())
    names = product.output(0).get_names()
    product.output(0).replace(made.output(0))
    made.output(0).set_names(names)
    return True


def _decompressed(one: Decided) -> Any:
    """(rows, depth) in float32 from integers, zero points and scales."""
    import openvino.opset13 as ops

    grid, rows, depth = one.grid, *one.integers.shape
    blocks = grid.scales.shape[1]
    if depth % grid.block:  # one block for what can't be cut evenly is the caller's to see to
        raise ConversionFailed(
            "compressing the weights of",
            one.layer.node,
            f"its {depth} inputs can't be cut into blocks of {grid.block}",
            "Choose blocks that divide it, such as 32",
        )
    data = _constant(one.integers.reshape(rows, blocks, grid.block), grid.bits)
    zeros = _constant(grid.zeros[..., None], grid.bits)
    moved = ops.subtract(ops.convert(data, "f32"), ops.convert(zeros, "f32"))
    scaled = ops.multiply(moved, ops.constant(grid.scales[..., None].astype(np.float32)))
    return ops.reshape(scaled, ops.constant(np.array([rows, depth], np.int64)), False)


def _constant(values: NDArray[np.uint8], bits: int) -> Any:
    import openvino as ov
    import openvino.opset13 as ops

    return ops.constant(values, dtype=ov.Type.u4 if bits == 4 else ov.Type.u8)


__all__ = ["packed", "write_onnx", "write_openvino"]
