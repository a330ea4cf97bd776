"""JavaScript for browsers: ES modules around onnxruntime-web, without a build step."""

from __future__ import annotations

from edgekiln.bundle.app.content import App, facts
from edgekiln.bundle.app.formulas import rendered
from edgekiln.bundle.app.writing import fill

RUNTIME = "1.30.0"
"""onnxruntime-web where the artifact does not say with which version it was proved."""


def render(app: App) -> dict[str, str]:
    """model.mjs, selftest.html and its modules, serve.mjs, README.md; picture.mjs, png.mjs,
    exif.mjs and preprocess.mjs where the model takes pictures."""
    values = facts(app)
    spec = values["spec"]
    paths = ["model.mjs", "arrays.mjs", "selftest.mjs", "selftest.html", "serve.mjs", "README.md"]
    if spec is not None:
        paths += ["picture.mjs", "png.mjs", "exif.mjs", "preprocess.mjs"]
    values |= {
        "runtime": app.artifact.tools.get("onnxruntime-web", RUNTIME),
        "f": {} if spec is None else rendered(spec, "javascript"),
    }
    return {path: fill("javascript", f"{path}.j2", **values) for path in paths}
