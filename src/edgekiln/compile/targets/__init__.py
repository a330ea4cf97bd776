"""How an artifact is made: the table of targets, one file per target.

A target file gives ``convert`` and nothing else that the table needs; a new target is one file and one
row here. Vendor packages are imported inside ``convert``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from edgekiln.devices import Device
from edgekiln.records import Artifact, Variant

Convert: TypeAlias = Callable[[Variant, Path, Device, Path], Artifact]
"""``convert(variant, variant_folder, device, into)`` writes the artifact's files into ``into``."""


@dataclass(frozen=True)
class Target:
    """``recipes`` are tried in order; ``dialects`` maps a device's architecture to a Q/DQ dialect."""

    name: str
    module: str
    engine: str
    proof_engine: str
    extra: str | None
    recipes: tuple[str, ...]

    @property
    def convert(self) -> Convert:
        function: Convert = importlib.import_module(self.module).convert
        return function
