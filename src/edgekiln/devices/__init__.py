"""Devices: what is known of each, with sources; and this machine, probed."""

from __future__ import annotations

from typing import Literal, TypeAlias

from edgekiln.records import Record

Value: TypeAlias = float | int | str | bool | tuple[float | str, ...] | None


class Figure(Record, frozen=True, kw_only=True):
    """One fact about a device. Unknown is ``value=None`` with a ``reason``; known needs a ``source``."""

    value: Value
    unit: str = ""
    source: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        if self.value is None and not self.reason:
            raise ValueError("a figure without a value needs a reason")
        if self.value is not None and not self.source:
            raise ValueError("a figure needs a source")


class Device(Record, frozen=True, kw_only=True):
    """A row of the catalogue. ``targets`` are in order of preference; ``threads`` is what a run uses.

    ``features`` names what decides a recipe: ``avx512_vnni``, ``avx_vnni``, ``avx512_bf16``, ``amx_int8``,
    ``asimddp`` (Arm int8 dot product), ``asimdhp`` (Arm fp16), ``fp16``/``bf16``/``int8`` (accelerator).
    """

    name: str
    title: str
    kind: Literal["host", "jetson", "board", "phone", "laptop", "pc", "browser"]
    arch: Literal["x86_64", "arm64", "wasm32"]
    targets: tuple[str, ...]
    threads: int
    features: tuple[str, ...]
    figures: dict[str, Figure]
