"""The same bytes for the same model in ONNX Runtime's mobile format.

A ``.ort`` file (a FlatBuffer, schema ort.fbs of ONNX Runtime) ends with the model, which is written the same
in every run; before it stands a table of operator types, written from a hash map and in another order each
time. ``canonical`` writes that table and the root anew, sorted, in front of the model's own bytes.
"""

from __future__ import annotations

from typing import Any, TypeAlias

Argument: TypeAlias = tuple[int, int]
TypeString: TypeAlias = tuple[bytes, tuple[Argument, ...]]
Operator: TypeAlias = tuple[bytes, tuple[TypeString, ...]]
"""An operator's id, and for each of its type strings the arguments (kind, index) that bear that type."""

_ALIGNMENT = 16
_IDENTIFIER = b"ORTM"


def canonical(data: bytes) -> bytes:
    """``data`` with its operator types sorted. Raises ValueError where it is no such file."""
    import flatbuffers
    import onnxruntime.tools.ort_format_model  # noqa: F401  (it makes the next import possible)
    from ort_flatbuffers_py.fbs import InferenceSession as root

    if data[4:8] != _IDENTIFIER:
        raise ValueError("this is no file in ONNX Runtime's mobile format")
    session = root.InferenceSession.GetRootAs(data, 0)
    model = session.Model()._tab
    start = min(model.Pos, model.Pos - _soffset(data, model.Pos))
    if len(data) % _ALIGNMENT:
        raise ValueError("the file's length is not a multiple of its alignment")
    builder = flatbuffers.Builder(1 << 20)
    # A FlatBuffer is built from its end: taking over the model's bytes resumes the build behind it.
    tail = data[start:]
    builder.Bytes = bytearray(max(1 << 20, 2 * len(tail)))
    builder.Bytes[-len(tail) :] = tail
    builder.head = len(builder.Bytes) - len(tail)
    builder.minalign = _ALIGNMENT
    table = _write(builder, operators(session.KernelTypeStrResolver()))
    version = builder.CreateString(session.OrtVersion())
    root.Start(builder)
    root.AddOrtVersion(builder, version)
    root.AddModel(builder, len(data) - model.Pos)
    root.AddKernelTypeStrResolver(builder, table)
    builder.Finish(root.End(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def operators(table: Any) -> tuple[Operator, ...]:
    """What a KernelTypeStrResolver holds, sorted."""
    found = []
    for i in range(table.OpKernelTypeStrArgsLength()):
        entry = table.OpKernelTypeStrArgs(i)
        strings = []
        for j in range(entry.KernelTypeStrArgsLength()):
            one = entry.KernelTypeStrArgs(j)
            arguments = (one.Args(k) for k in range(one.ArgsLength()))
            strings.append((one.KernelTypeStr(), tuple(sorted((a.ArgType(), a.Index()) for a in arguments))))
        found.append((entry.OpId(), tuple(sorted(strings))))
    return tuple(sorted(found))


def _write(builder: Any, table: tuple[Operator, ...]) -> int:
    from ort_flatbuffers_py.fbs import ArgTypeAndIndex as argument
    from ort_flatbuffers_py.fbs import KernelTypeStrArgsEntry as string
    from ort_flatbuffers_py.fbs import KernelTypeStrResolver as resolver
    from ort_flatbuffers_py.fbs import OpIdKernelTypeStrArgsEntry as operator

    written = []
    for op_id, strings in table:
        entries = []
        for name, arguments in strings:
            places = []
            for kind, index in arguments:
                argument.Start(builder)
                argument.AddArgType(builder, kind)
                argument.AddIndex(builder, index)
                places.append(argument.End(builder))
            held, label = _vector(builder, places), builder.CreateString(name)
            string.Start(builder)
            string.AddKernelTypeStr(builder, label)
            string.AddArgs(builder, held)
            entries.append(string.End(builder))
        held, label = _vector(builder, entries), builder.CreateString(op_id)
        operator.Start(builder)
        operator.AddOpId(builder, label)
        operator.AddKernelTypeStrArgs(builder, held)
        written.append(operator.End(builder))
    held = _vector(builder, written)
    resolver.Start(builder)
    resolver.AddOpKernelTypeStrArgs(builder, held)
    return int(resolver.End(builder))


def _vector(builder: Any, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _soffset(data: bytes, position: int) -> int:
    """How far before a table its vtable lies (negative: behind it)."""
    return int.from_bytes(data[position : position + 4], "little", signed=True)
