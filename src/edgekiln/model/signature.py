"""Names, types and shapes of a graph's inputs and outputs, and what they say about its task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import msgspec

from edgekiln.errors import BadInput, did_you_mean
from edgekiln.records import Signature, Task, TensorSpec

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

Shape = tuple[int, ...]
FLOATS = frozenset({"float16", "float32", "float64", "bfloat16"})
MAX_DIM = 2**31 - 1


def dtype_name(elem_type: int) -> str:
    """The NumPy name of an ONNX element type: ``float32``, ``int64``, ``bfloat16``, ``string``."""
    import onnx

    if elem_type == onnx.TensorProto.STRING:
        return "string"
    return str(onnx.helper.tensor_dtype_to_np_dtype(elem_type).name)


def _spec(value: ValueInfoProto) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type" or not value.type.tensor_type.elem_type:
        raise BadInput(
            "reading the signature of",
            value.name,
            f"it is a {(kind or 'value without a type').removesuffix('_type')}, not a tensor",
            "Export the model with plain tensors as inputs and outputs",
        )
    tensor = value.type.tensor_type
    dims: list[int | str] = []
    for axis, dim in enumerate(tensor.shape.dim):
        fixed = dim.dim_value if dim.HasField("dim_value") else -1
        # Old exporters write a dynamic axis as 0 or -1, or leave it without a name.
        dims.append(fixed if fixed > 0 else _axis_name(dim.dim_param, value.name, axis))
    return TensorSpec(name=value.name, dtype=dtype_name(tensor.elem_type), shape=tuple(dims))


def _axis_name(given: str, tensor: str, axis: int) -> str:
    # "?" stands for "unknown" and is repeated; two unknowns need not be equal.
    return given if given and given != "?" else f"{tensor}_{axis}"


def signature(proto: ModelProto) -> Signature:
    """Inputs and outputs of ``proto``; initialisers that are also listed as inputs are left out.

    A dynamic axis is a string: its own name, or ``<tensor>_<axis>`` where it has none. Raises BadInput
    for an input or output that is no tensor.
    """
    held = {i.name for i in proto.graph.initializer} | {i.values.name for i in proto.graph.sparse_initializer}
    return Signature(
        inputs=tuple(_spec(v) for v in proto.graph.input if v.name not in held),
        outputs=tuple(_spec(v) for v in proto.graph.output),
    )


def image_layout(spec: TensorSpec) -> Literal["NCHW", "NHWC"] | None:
    """Where the channels of a 4-D input lie, or None if it does not look like a picture (1 or 3 channels)."""
    if len(spec.shape) != 4 or spec.dtype == "string":
        return None
    if spec.shape[1] in (1, 3):
        return "NCHW"
    return "NHWC" if spec.shape[3] in (1, 3) else None


def guess_task(sig: Signature, labels: tuple[str, ...] = ()) -> Task:
    """``classification`` for one picture in and one float row of two or more scores out, else ``tensors``.

    Scores are [N, C] or [N, C, 1, 1]. Where ``labels`` are given, their number must be C.
    """
    if len(sig.inputs) != 1 or len(sig.outputs) != 1 or image_layout(sig.inputs[0]) is None:
        return "tensors"
    out = sig.outputs[0]
    flat = len(out.shape) == 2 or (len(out.shape) == 4 and out.shape[2:] == (1, 1))
    if not flat or out.dtype not in FLOATS:
        return "tensors"
    classes = out.shape[1]
    if isinstance(classes, str) or classes < 2 or (labels and len(labels) != classes):
        return "tensors"
    return "classification"


def _by_name(sig: Signature, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """``shapes`` with the key "" replaced by the name of the only input."""
    names = [i.name for i in sig.inputs]
    found: dict[str, Shape] = {}
    for key, shape in shapes.items():
        if key == "" and len(names) != 1:
            cure = f"Name the input: {', '.join(names)}"
            raise BadInput(
                "fixing the shape of", "the input", f"the model has {len(names)} inputs", f"{cure}."
            )
        name = names[0] if key == "" else key
        if name not in names:
            raise BadInput("fixing the shape of", name, "no input has this name", did_you_mean(name, names))
        found[name] = tuple(shape)
    return found


def _fit(spec: TensorSpec, shape: Shape, bound: dict[str, int]) -> None:
    """Bind the named axes of ``spec`` to ``shape`` in ``bound``; BadInput where the two disagree."""
    doing = "fixing the shape of"
    given = "x".join(map(str, shape))
    wanted = "x".join(map(str, spec.shape))
    if len(shape) != len(spec.shape):
        raise BadInput(doing, spec.name, f"{given} has {len(shape)} axes", f"The model takes {wanted}.")
    for have, want in zip(spec.shape, shape, strict=True):
        if not 0 < want <= MAX_DIM:
            raise BadInput(doing, spec.name, f"{given} holds {want}", "Give every axis a size of 1 or more.")
        if isinstance(have, int):
            if have != want:
                raise BadInput(doing, spec.name, f"{given} does not fit", f"The model takes {wanted}.")
        elif bound.setdefault(have, want) != want:
            why = f"axis '{have}' would be both {bound[have]} and {want}"
            raise BadInput(doing, spec.name, why, "Give equal sizes to axes of one name.")


def fix_shapes(sig: Signature, shapes: Mapping[str, Shape]) -> Signature:
    """``sig`` with the named axes of its inputs bound to ``shapes`` (key "" is the only input).

    An axis name that also occurs in an output, or in an input that ``shapes`` leaves out, is bound
    there too. Raises BadInput for an unknown input, a wrong rank, a fixed axis of another size, or one
    name bound to two sizes.
    """
    bound: dict[str, int] = {}
    specs = {i.name: i for i in sig.inputs}
    for name, shape in _by_name(sig, shapes).items():
        _fit(specs[name], shape, bound)

    def put(spec: TensorSpec) -> TensorSpec:
        dims = tuple(bound.get(d, d) if isinstance(d, str) else d for d in spec.shape)
        return msgspec.structs.replace(spec, shape=dims)

    return Signature(inputs=tuple(map(put, sig.inputs)), outputs=tuple(map(put, sig.outputs)))


def dynamic_axes(sig: Signature) -> tuple[str, ...]:
    """Names of the dynamic axes of the inputs, in order, each once."""
    return tuple(dict.fromkeys(d for i in sig.inputs for d in i.shape if isinstance(d, str)))


def set_input_shapes(proto: ModelProto, sig: Signature) -> None:
    """Write the input shapes of ``sig`` (from ``fix_shapes``) into ``proto``, in place.

    Recorded shapes of inner values and outputs may hold old axis names, so they are dropped: infer anew.
    """
    specs = {i.name: i for i in sig.inputs}
    for value in proto.graph.input:
        if value.name in specs:
            _write_dims(value, specs[value.name].shape)
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")


def _write_dims(value: ValueInfoProto, shape: tuple[int | str, ...]) -> None:
    tensor = value.type.tensor_type
    tensor.ClearField("shape")
    tensor.shape.SetInParent()  # a scalar has a shape without axes, which is not the same as no shape
    for want in shape:
        dim = tensor.shape.dim.add()
        if isinstance(want, int):
            dim.dim_value = want
        else:
            dim.dim_param = want
