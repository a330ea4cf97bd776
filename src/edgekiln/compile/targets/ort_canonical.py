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

_ALIGNMENT = 64
"""Alignment counts from the end of a FlatBuffer; a length that is a multiple of this keeps any it had."""

_IDENTIFIER = b"ORTM"


def canonical(data: bytes) -> bytes:
    """``data`` with its operator types sorted. Raises ValueError where it is no such file."""
    import flatbuffers
    import onnxruntime.tools.ort_format_model  # noqa: F401  (it makes the next import possible)
    from ort_flatbuffers_py.fbs import InferenceSession

    if data[4:8] != _IDENTIFIER:
        raise ValueError("this is no file in ONNX Runtime's mobile format")
    session = InferenceSession.InferenceSession.GetRootAs(data, 0)
    model = session.Model()._tab
    start = min(model.Pos, model.Pos - _soffset(data, model.Pos))
    builder = flatbuffers.Builder(1 << 20)
    # A FlatBuffer is built from its end: taking over the model's bytes resumes the build behind it.
    tail = data[start:]
    builder.Bytes = bytearray(max(1 << 20, 2 * len(tail)))
    builder.Bytes[-len(tail) :] = tail
    builder.head = len(builder.Bytes) - len(tail)
    builder.minalign = _ALIGNMENT
    table = _write(builder, operators(session.KernelTypeStrResolver()))
    version = builder.CreateString(session.OrtVersion())
    InferenceSession.Start(builder)
    InferenceSession.AddOrtVersion(builder, version)
    InferenceSession.AddModel(builder, len(data) - model.Pos)
    InferenceSession.AddKernelTypeStrResolver(builder, table)
    builder.Finish(InferenceSession.End(builder), file_identifier=_IDENTIFIER)
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
    from ort_flatbuffers_py.fbs import (
        ArgTypeAndIndex,
        KernelTypeStrArgsEntry,
        KernelTypeStrResolver,
        OpIdKernelTypeStrArgsEntry,
    )

    written = []
    for op_id, strings in table:
        entries = []
        for name, arguments in strings:
            places = []
            for kind, index in arguments:
                ArgTypeAndIndex.Start(builder)
                ArgTypeAndIndex.AddArgType(builder, kind)
                ArgTypeAndIndex.AddIndex(builder, index)
                places.append(ArgTypeAndIndex.End(builder))
            held, label = _vector(builder, places), builder.CreateString(name)
            KernelTypeStrArgsEntry.Start(builder)
            KernelTypeStrArgsEntry.AddKernelTypeStr(builder, label)
            KernelTypeStrArgsEntry.AddArgs(builder, held)
            entries.append(KernelTypeStrArgsEntry.End(builder))
        held, label = _vector(builder, entries), builder.CreateString(op_id)
        OpIdKernelTypeStrArgsEntry.Start(builder)
        OpIdKernelTypeStrArgsEntry.AddOpId(builder, label)
        OpIdKernelTypeStrArgsEntry.AddKernelTypeStrArgs(builder, held)
        written.append(OpIdKernelTypeStrArgsEntry.End(builder))
    held = _vector(builder, written)
    KernelTypeStrResolver.Start(builder)
    KernelTypeStrResolver.AddOpKernelTypeStrArgs(builder, held)
    return int(KernelTypeStrResolver.End(builder))


def _vector(builder: Any, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _soffset(data: bytes, position: int) -> int:
    """How far before a table its vtable lies (negative: behind it)."""
    return int.from_bytes(data[position : position + 4], "little", signed=True)
