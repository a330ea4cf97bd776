"""App code for a bundle: the preprocessing, the call and the labels in the language of the platform.

One module per language with ``render(app)``; its templates lie below ``templates/<language>/``. Every
language computes what ``model.preprocess.apply`` computes, to one 8-bit step of a pixel, and comes with a
self-test: ``selftest/`` holds a picture with the tensor that the reference makes of it.
"""

from __future__ import annotations

import importlib

from edgekiln.bundle.app.content import App, selftest_files
from edgekiln.devices import Device

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
    "accelerator": ("python", "cpp"),
    "pc": ("python", "cpp"),
    "host": ("python", "cpp"),
    "browser": ("javascript",),
}
_ENGINES = {
    "python": {"onnxruntime", "openvino", "litert", "tensorrt"},
    "cpp": {"onnxruntime", "openvino", "tensorrt"},
}
"""Engines that a language's templates call; a language that is not named here takes them all."""

_NONE = """# No app code
This bundle's model is for the engine {engine}, and edgekiln has no app code that calls it on {device}.
`edgekiln run` runs the bundle from Python.
"""


def languages(device: Device, engine: str) -> tuple[str, ...]:
    """The languages of the device's own ecosystem (Swift where Core ML is among its targets) that call
    ``engine``."""
    wanted = ("swift",) if "coreml" in device.targets else _BY_KIND[device.kind]
    return tuple(w for w in wanted if w not in _ENGINES or engine in _ENGINES[w])


def files(app: App) -> dict[str, bytes]:
    """Paths below the bundle's ``app/`` folder to their content, the same bytes for the same input."""
    made: dict[str, bytes] = {}
    for language in languages(app.device, app.artifact.engine):
        rendered: dict[str, str] = importlib.import_module(LANGUAGES[language]).render(app)
        made |= {f"{language}/{path}": text.encode() for path, text in rendered.items()}
    if not made:
        page = _NONE.format(engine=app.artifact.engine, device=app.device.title)
        return {"README.md": page.encode()}
    return made | selftest_files(app)


__all__ = ["LANGUAGES", "App", "files", "languages"]
