"""Python for boards, PCs and Jetsons: numpy, Pillow and the engine's own package."""

from __future__ import annotations

from edgekiln.bundle.app.content import App, facts, proved_with
from edgekiln.bundle.app.writing import fill

ENGINES = {
    "onnxruntime": ("ONNX Runtime", 'numpy "pillow>=10.1" onnxruntime', "onnxruntime"),
    "openvino": ("OpenVINO", 'numpy "pillow>=10.1" openvino', "openvino"),
    "litert": ("LiteRT", 'numpy "pillow>=10.1" ai-edge-litert', "ai-edge-litert"),
    "tensorrt": ("TensorRT", 'numpy "pillow>=10.1"', "tensorrt"),
}
"""By engine: its title, what pip installs (JetPack brings TensorRT), its name among an artifact's tools."""

_NOTES = {
    "tensorrt": "JetPack brings TensorRT and CUDA. The first start builds this GPU's engine, which takes\n"
    "minutes, and keeps it in `model/`; later starts load it.",
}


def render(app: App) -> dict[str, str]:
    """model.py, predict.py, selftest.py, README.md; preprocess.py where the model takes pictures."""
    values = facts(app)
    title, packages, tool = ENGINES[app.artifact.engine]
    files = {
        "model.py": f"model_{app.artifact.engine}.py.j2",
        "predict.py": "predict.py.j2",
        "selftest.py": "selftest.py.j2",
        "README.md": "README.md.j2",
    }
    if values["spec"] is not None:
        files["preprocess.py"] = "preprocess.py.j2"
    values |= {
        "engine_title": title,
        "packages": packages,
        "version_note": proved_with(app.artifact, tool),
        "note": _NOTES.get(app.artifact.engine, ""),
        "nhwc": sorted(
            name.removeprefix("layout.")
            for name, value in app.artifact.options.items()
            if name.startswith("layout.") and value == "NHWC"
        ),
    }
    return {path: fill("python", template, **values) for path, template in files.items()}
