"""The build plan that a TensorRT artifact carries: ``plan.json``, read by ``build_engine.py``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgekiln.devices import Device
from edgekiln.engines.build_engine import CACHE, MODEL
from edgekiln.errors import ConversionFailed
from edgekiln.records import Record

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

BATCH_RANGE = (1, 1, 8)
"""Least, optimal and greatest size of a dynamic first axis; batches larger than 8 are no edge latency."""
AXIS_KEY = "edgekiln.range."
"""``metadata_props`` key, with the axis name behind it, of a dynamic axis' "min opt max"."""
OPTIMISATION_LEVEL = 3
"""TensorRT's own default; 4 and 5 search longer, on the device."""
_MIB = 1 << 20


class Range(Record, frozen=True, kw_only=True):
    """The shapes an engine accepts for one input, and the one it is tuned for."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class Plan(Record, frozen=True, kw_only=True):
    """How the device builds its engine. ``profiles`` is empty where every input is static; several are of
    several input sizes, the base first.

    ``workspace_bytes`` is the most scratch memory a layer may use; None leaves TensorRT's default, the
    whole memory. ``tf32`` False keeps float32 layers in float32 (TensorRT's default would round them).
    The TensorRT versions from ``tensorrt_min`` (inclusive) to ``tensorrt_below`` (major, exclusive) read it.
    """

    schema: int = 1
    device: str
    recipe: str
    strongly_typed: bool = True
    opset: int
    tensorrt_min: tuple[int, int]
    tensorrt_below: int = 12
    profiles: tuple[dict[str, Range], ...]
    workspace_bytes: int | None
    workspace_basis: str
    tf32: bool = False
    builder_optimization_level: int = OPTIMISATION_LEVEL
    trtexec: tuple[str, ...]
    trtexec_line: str


def tensorrt_for(opset: int) -> tuple[int, int] | None:
    """The first TensorRT whose ONNX parser documents this opset; None where no known one does.

    onnx-tensorrt docs/operators.md: 10.0 reads opset 9 to 20, 10.15 up to 24; the ONNX Opset Guide of
    TensorRT 11 says up to 25.
    """
    for last, version in ((8, None), (20, (10, 0)), (24, (10, 15)), (25, (11, 0))):
        if opset <= last:
            return version
    return None


def opset_of(model: ModelProto) -> int:
    return next(int(o.version) for o in model.opset_import if o.domain in {"", "ai.onnx"})


def make_plan(
    model: ModelProto, device: Device, recipe: str, sizes: Sequence[Mapping[str, Mapping[int, int]]] = ()
) -> Plan:
    """The plan for ``model`` on ``device``. Raises ConversionFailed for a dynamic axis without a range.

    ``sizes`` fix axes (by input name and position), each in a profile of its own: TensorRT then tunes its
    kernels for every size, where one profile over all of them would be tuned for one.
    """
    profiles = _profiles(model, sizes)
    workspace, basis = _workspace(device)
    opset = opset_of(model)
    line = _trtexec(profiles, workspace)
    return Plan(
        device=device.name,
        recipe=recipe,
        opset=opset,
        tensorrt_min=tensorrt_for(opset) or (11, 0),
        profiles=profiles,
        workspace_bytes=workspace,
        workspace_basis=basis,
        trtexec=line,
        trtexec_line=shlex.join(line),
    )


def _workspace(device: Device) -> tuple[int | None, str]:
    """A quarter of the memory that GPU and CPU share, in whole MiB: the rest holds weights and the system."""
    figure = device.figures.get("memory_bytes")
    if figure is None or not isinstance(figure.value, int | float):
        reason = "not in the catalogue" if figure is None else figure.reason
        return None, f"TensorRT's default: the memory of {device.title} is unknown ({reason})"
    size = int(figure.value) // 4 // _MIB * _MIB
    return size, f"a quarter of the {int(figure.value) // _MIB} MiB of {device.title}"


def _profiles(
    model: ModelProto, sizes: Sequence[Mapping[str, Mapping[int, int]]]
) -> tuple[dict[str, Range], ...]:
    """One profile per size over all inputs; of one size none where every input is static."""
    constants = {i.name for i in model.graph.initializer}
    ranges = {
        p.key.removeprefix(AXIS_KEY): p.value for p in model.metadata_props if p.key.startswith(AXIS_KEY)
    }
    inputs = [i for i in model.graph.input if i.name not in constants]
    if sizes:
        return tuple({i.name: _range(i, ranges, fixed.get(i.name, {})) for i in inputs} for fixed in sizes)
    shapes = {i.name: _range(i, ranges, {}) for i in inputs}
    return (shapes,) if any(s.min != s.max for s in shapes.values()) else ()


def _range(info: ValueInfoProto, ranges: dict[str, str], fixed: Mapping[int, int]) -> Range:
    axes = []
    for index, dim in enumerate(info.type.tensor_type.shape.dim):
        if index in fixed:
            axes.append((fixed[index],) * 3)
        elif dim.dim_value > 0:
            axes.append((dim.dim_value,) * 3)
        elif dim.dim_param in ranges:
            axes.append(_read_range(dim.dim_param, ranges[dim.dim_param]))
        elif index == 0:
            axes.append(BATCH_RANGE)
        else:
            name = dim.dim_param or f"axis {index}"
            why = f"{name} of input '{info.name}' is dynamic and nothing says how large it gets"
            cure = f"Give the model a static shape, or its metadata '{AXIS_KEY}{name}' = 'min opt max'"
            raise ConversionFailed("planning the TensorRT engine of", info.name, why, cure)
    least, best, most = zip(*axes, strict=True) if axes else ((), (), ())
    return Range(min=least, opt=best, max=most)


def _read_range(name: str, text: str) -> tuple[int, int, int]:
    parts = text.split()
    if len(parts) == 3 and all(p.isascii() and p.isdigit() for p in parts):
        least, best, most = (int(p) for p in parts)
        if 1 <= least <= best <= most:
            return least, best, most
    why = f"the range '{text}' is not three rising positive numbers"
    raise ConversionFailed("planning the TensorRT engine for axis", name, why, "Write it as 'min opt max'")


def _trtexec(profiles: tuple[dict[str, Range], ...], workspace: int | None) -> tuple[str, ...]:
    """The command that does what ``build_engine.py`` does, for people who know ``trtexec``."""
    line = [
        "trtexec",
        f"--onnx={MODEL}",
        "--saveEngine=model.engine",
        "--stronglyTyped",
        "--noTF32",
        f"--timingCacheFile={CACHE}",
        f"--builderOptimizationLevel={OPTIMISATION_LEVEL}",
        "--skipInference",
    ]
    if workspace is not None:
        line.append(f"--memPoolSize=workspace:{workspace // _MIB}M")
    for number, shapes in enumerate(profiles):
        if len(profiles) > 1:
            line.append(f"--profile={number}")
        for flag, field in (("--minShapes", "min"), ("--optShapes", "opt"), ("--maxShapes", "max")):
            parts = [f"{_quoted(n)}:{'x'.join(map(str, getattr(s, field)))}" for n, s in shapes.items()]
            line.append(f"{flag}={','.join(parts)}")
    return tuple(line)


def _quoted(name: str) -> str:
    """trtexec splits at the last colon it can read; a name with one of its own stands in quotes."""
    return f"'{name}'" if ":" in name else name
