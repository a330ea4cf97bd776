"""C++17 for boards, PCs and Jetsons: header-only preprocessing, and the call of the artifact's engine."""

from __future__ import annotations

from edgekiln.bundle.app.content import App, facts, proved_with
from edgekiln.bundle.app.formulas import rendered
from edgekiln.bundle.app.writing import fill
from edgekiln.records import Preprocess

_ENGINES = {
    "onnxruntime": ("ONNX Runtime", " -DONNXRUNTIME_ROOT=/path/to/onnxruntime"),
    "openvino": ("OpenVINO", " -DOpenVINO_DIR=/path/to/openvino/cmake"),
    "tensorrt": ("TensorRT", ""),
}
"""By engine: its title, and what CMake has to be told."""

_ELEMENTS = {"float32": "float", "float16": "std::uint16_t", "uint8": "std::uint8_t"}


def render(app: App) -> dict[str, str]:
    """model.hpp, tensors.hpp, half.hpp, npz.hpp, selftest.cpp, CMakeLists.txt, README.md; preprocess.hpp and
    classify.cpp where the model takes pictures."""
    values, engine = facts(app), app.artifact.engine
    title, option = _ENGINES[engine]
    golden = app.golden
    values |= {
        "engine": engine,
        "engine_title": title,
        "cmake_option": option,
        "version_note": proved_with(app.artifact, engine),
        "precision": app.artifact.options.get("INFERENCE_PRECISION_HINT", "f32"),
        "allowed": [repr(golden.atol.get(o.name, 0.0)) for o in app.model.signature.outputs]
        if golden
        else [],
    }
    files = {
        "model.hpp": f"model_{engine}.hpp.j2",
        **{f: f"{f}.j2" for f in ("tensors.hpp", "half.hpp", "npz.hpp", "selftest.cpp", "README.md")},
        "CMakeLists.txt": "CMakeLists.txt.j2",
    }
    spec = values["spec"]
    if isinstance(spec, Preprocess):
        values |= {"f": rendered(spec, "cpp"), "element": _ELEMENTS[spec.dtype], **_numbers(spec)}
        files |= {f: f"{f}.j2" for f in ("preprocess.hpp", "classify.cpp")}
    return {path: fill("cpp", template, **values) for path, template in files.items()}


def _numbers(spec: Preprocess) -> dict[str, object]:
    """The normalisation as float literals. A single mean or std of a grey record may stand three times."""
    channels = 1 if spec.colour == "GRAY" else 3
    return {
        "scale": _literal(spec.scale),
        "mean": [_literal(m) for m in spec.mean[:channels]],
        "std": [_literal(s) for s in spec.std[:channels]],
    }


def _literal(value: float) -> str:
    return f"{float(value)!r}f"
