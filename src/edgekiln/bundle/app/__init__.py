"""App code for a bundle: the preprocessing, the call and the labels in the language of the platform.

One module per language with ``render(app)``; its templates lie below ``templates/<language>/``. Every
language computes what ``model.preprocess.apply`` computes, to 1/255 of the tensor's range.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from edgekiln.devices import Device
from edgekiln.records import Artifact, Golden, Model

LANGUAGES = {
    "swift": "edgekiln.bundle.app.swift",
    "kotlin": "edgekiln.bundle.app.kotlin",
    "cpp": "edgekiln.bundle.app.cpp",
    "python": "edgekiln.bundle.app.python",
    "javascript": "edgekiln.bundle.app.javascript",
}

_BY_KIND = {
    "phone": ("kotlin",),
    "laptop": ("swift",),
    "jetson": ("python", "cpp"),
    "board": ("python", "cpp"),
    "pc": ("python", "cpp"),
    "host": ("python", "cpp"),
    "browser": ("javascript",),
}


@dataclass(frozen=True)
class App:
    """What app code is written from. ``golden`` names the files in the bundle's golden folder."""

    device: Device
    model: Model
    artifact: Artifact
    golden: Golden | None


def languages(device: Device) -> tuple[str, ...]:
    """The languages of a device's own ecosystem: Swift where Core ML is among its targets."""
    return ("swift",) if "coreml" in device.targets else _BY_KIND[device.kind]


def files(app: App) -> dict[str, bytes]:
    """Paths below the bundle's ``app/`` folder to their content, the same bytes for the same input."""
    made: dict[str, bytes] = {}
    for language in languages(app.device):
        rendered: dict[str, str] = importlib.import_module(LANGUAGES[language]).render(app)
        made |= {f"{language}/{path}": text.encode() for path, text in rendered.items()}
    return made
