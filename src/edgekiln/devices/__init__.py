"""Devices: what is known of each, with sources; and this machine, probed.

The folder ``catalogue`` beside this file holds the facts, ``host`` probes this machine, ``show`` and
``compare`` turn either into rows. Nothing heavy is imported here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from edgekiln.errors import BadInput, did_you_mean
from edgekiln.records import Record

Value: TypeAlias = float | int | str | bool | tuple[float | str, ...] | None

HOST = "host"
CATALOGUE = Path(__file__).with_name("catalogue")
"""A folder of TOML files, a vendor or a kind of device each; their sources are shared."""
TARGETS = ("tensorrt", "onnxruntime", "openvino", "coreml", "litert", "qnn", "executorch", "web")
"""Every target a device may ask for. A device names its true order, built yet or not."""

COMMON_FIGURES = (
    "soc",
    "cpu",
    "cores",
    "cpu_mhz",
    "isa",
    "memory_bytes",
    "bandwidth_gb_s",
    "accelerator",
    "accelerator_formats",
    "int8_dense_tops",
    "int8_sparse_tops",
    "fp16_dense_tflops",
    "fp16_sparse_tflops",
    "video_encode",
    "video_decode",
    "power_modes_watts",
    "throttle_celsius",
    "shutdown_celsius",
    "os",
    "runtimes",
    "target_order",
)
"""Figures that every device states, if only by saying why the value is not known.

``video_encode`` and ``video_decode`` are codecs in hardware, none being an empty list. ``throttle_celsius``
is where the device slows down, ``shutdown_celsius`` where it turns itself off. ``runtimes`` are the versions
that a document names for the device.
"""

_LIMIT_BYTES = 4 << 20
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


class Figure(Record, frozen=True, kw_only=True):
    """One fact about a device. Unknown is ``value=None`` with a ``reason``; known needs a ``source``."""

    value: Value = None
    unit: str = ""
    source: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        if self.value is None and not self.reason:
            raise ValueError("a figure without a value needs a reason")
        if self.value is not None and not self.source:
            raise ValueError("a figure needs a source")
        if self.value is not None and self.reason:
            raise ValueError("a figure has either a value or a reason for its absence")


class Device(Record, frozen=True, kw_only=True):
    """A row of the catalogue. ``targets`` are in order of preference; ``threads`` is what a run uses.

    ``features`` names what decides a recipe: ``avx2``, ``avx512_vnni``, ``avx_vnni``, ``avx512_bf16``,
    ``amx_int8``, ``amx_bf16``, ``asimddp`` (Arm int8 dot product), ``asimdhp`` (Arm fp16), ``i8mm``,
    ``bf16``, and ``fp16``/``bf16``/``int8``/``fp8``/``fp4`` of an accelerator (no recipe uses the last two
    yet). Each one stands in the figure ``isa`` or ``accelerator_formats`` too, with its source. A format of
    an accelerator that no artifact is made for is no feature.
    """

    name: str
    title: str
    kind: Literal["host", "jetson", "board", "accelerator", "phone", "laptop", "pc", "browser"]
    arch: Literal["x86_64", "arm64", "wasm32"]
    targets: tuple[str, ...]
    threads: int
    features: tuple[str, ...]
    figures: dict[str, Figure]


class _Row(Record, frozen=True, kw_only=True):
    """A device as the file has it: its name is the key."""

    title: str
    kind: Literal["jetson", "board", "accelerator", "phone", "laptop", "pc", "browser"]
    arch: Literal["x86_64", "arm64", "wasm32"]
    targets: tuple[str, ...]
    threads: int
    features: tuple[str, ...]
    figures: dict[str, Figure]


class _File(Record, frozen=True, kw_only=True):
    schema: Literal[1]
    sources: dict[str, str]
    devices: dict[str, _Row] = msgspec.field(default_factory=dict)


def names() -> tuple[str, ...]:
    """``host`` first, then the catalogue in its own order."""
    return (HOST, *_shipped())


def load(name: str) -> Device:
    """The device of that name; ``host`` is probed anew. Raises BadInput for an unknown name."""
    if name == HOST:
        from edgekiln.devices.host import probe

        return probe()
    found = _shipped().get(name)
    if found is None:
        raise BadInput("loading device", name, "no such device", did_you_mean(name, names()))
    return found


def load_catalogue(path: Path = CATALOGUE) -> dict[str, Device]:
    """Every device of a catalogue, by name: of a file in its order, of a folder's files in theirs.

    Raises BadInput for what cannot be read, an unknown key, a wrong type, a target nobody knows, a name, a
    source, a target or a feature that stands twice, a feature or a figure without a source.
    """
    files = sorted(path.glob("*.toml")) if path.is_dir() else [path]
    if not files:
        raise _refused(path, "it holds no .toml file", "Give a device catalogue")
    sources: dict[str, str] = {}
    rows: dict[str, tuple[Path, _Row]] = {}
    for file, held in [(file, _parsed(file)) for file in files]:
        for key, text in held.sources.items():
            if key in sources:
                raise _refused(file, f"source '{key}' stands in another file too", "Name it once")
            sources[key] = text
        for name, row in held.devices.items():
            if name in rows:
                raise _refused(file, f"device '{name}' stands in {rows[name][0].name} too", "Remove one")
            rows[name] = (file, row)
    return {name: _device(file, name, row, sources) for name, (file, row) in rows.items()}


def _parsed(path: Path) -> _File:
    import tomllib  # here, so that importing this package stays light

    try:
        if path.stat().st_size > _LIMIT_BYTES:
            raise _refused(path, f"the file is larger than {_LIMIT_BYTES} bytes", "Give a device catalogue")
        # tomllib refuses a key that stands twice, so no two devices of a file share a name.
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _File)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise _refused(path, str(error), "Correct the file; docs/devices.md gives its form") from error


@functools.cache
def _shipped() -> Mapping[str, Device]:
    return load_catalogue()


def _refused(to: object, why: str, cure: str) -> BadInput:
    return BadInput("reading the device catalogue", to, why, cure)


def _device(path: Path, name: str, row: _Row, sources: Mapping[str, str]) -> Device:
    where = f"{path.name}, device '{name}'"
    if name == HOST:
        raise _refused(where, f"'{HOST}' is this machine and is probed", "Give it another name")
    _check_lists(where, row)
    missing = [f for f in COMMON_FIGURES if f not in row.figures]
    if missing:
        raise _refused(where, f"no figure {', '.join(missing)}", "Give a value and source, or a reason")
    figures = {key: _cited(f"{where}, figure '{key}'", fig, sources) for key, fig in row.figures.items()}
    return Device(
        name=name,
        title=row.title,
        kind=row.kind,
        arch=row.arch,
        targets=row.targets,
        threads=row.threads,
        features=row.features,
        figures=figures,
    )


def _check_lists(where: str, row: _Row) -> None:
    for target in row.targets:
        if target not in TARGETS:
            raise _refused(where, f"unknown target '{target}'", did_you_mean(target, TARGETS))
    for what, given in (("target", row.targets), ("feature", row.features)):
        twice = sorted({g for g in given if given.count(g) > 1})
        if twice:
            raise _refused(where, f"{what} {', '.join(twice)} stands twice", "Remove one")
    if not row.targets:
        raise _refused(where, "it has no target", f"Give at least one of {', '.join(TARGETS)}")
    if row.threads < 1:
        raise _refused(where, f"threads is {row.threads}", "Give 1 or more")
    sourced: set[object] = set()
    for key in ("isa", "accelerator_formats"):
        value = row.figures[key].value if key in row.figures else None
        sourced |= set(value) if isinstance(value, tuple) else set()
    unsourced = [f for f in row.features if f not in sourced]
    if unsourced:
        cure = "List it in the figure isa or accelerator_formats, with the source"
        raise _refused(where, f"feature {', '.join(unsourced)} has no source", cure)


def _cited(where: str, figure: Figure, sources: Mapping[str, str]) -> Figure:
    """The figure with each ``{key}`` of its source written out."""

    def written_out(match: re.Match[str]) -> str:
        key = match.group(1)
        if key not in sources:
            raise _refused(where, f"unknown source '{key}'", did_you_mean(key, sources))
        return sources[key]

    return msgspec.structs.replace(figure, source=_PLACEHOLDER.sub(written_out, figure.source))


__all__ = [
    "CATALOGUE",
    "COMMON_FIGURES",
    "HOST",
    "TARGETS",
    "Device",
    "Figure",
    "Value",
    "load",
    "load_catalogue",
    "names",
]
