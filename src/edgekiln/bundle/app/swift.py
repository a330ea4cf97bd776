"""Swift for iPhones and Macs: Core ML or ONNX Runtime on an actor's own queue; plain arithmetic before it.

Vision scales pictures in its own way, which is not the reference's; so the pixels are made here, and Core ML
gets them as a pixel buffer (where the package normalises) or as an array.
"""

from __future__ import annotations

import json

from edgekiln.bundle.app.content import App, facts
from edgekiln.bundle.app.formulas import rendered
from edgekiln.bundle.app.writing import fill
from edgekiln.records import Preprocess

_PACKAGES = {
    "coreml": ("Core ML", "part of the system"),
    "onnxruntime": ("ONNX Runtime", "github.com/microsoft/onnxruntime-swift-package-manager"),
    "executorch": ("ExecuTorch", "github.com/pytorch/executorch, a Swift package"),
    "litert": ("LiteRT", "the pod TensorFlowLiteSwift"),
    "openvino": ("OpenVINO", "its C++ library; it has no Swift interface"),
}
"""By engine: its title, and where its own interface for Swift is."""

_COMPUTE_UNITS = {
    "ALL": "all",
    "CPU_AND_NE": "cpuAndNeuralEngine",
    "CPU_AND_GPU": "cpuAndGPU",
    "CPU_ONLY": "cpuOnly",
}
_TYPES = {"float32": ("float32", "Float"), "float16": ("float16", "Float16"), "uint8": ("float32", "Float")}
_ORT_TYPES = {"float32": ("float", "Float"), "uint8": ("uInt8", "UInt8")}
_KINDS = {"float32": "<f4", "uint8": "|u1", "int32": "<i4", "int64": "<i8"}


def render(app: App) -> dict[str, str]:
    """Preprocess.swift and Decode.swift where the model takes pictures; Model.swift, SelfTest.swift and
    Npz.swift where it is for Core ML or ONNX Runtime; README.md."""
    values, engine, options = facts(app), app.artifact.engine, app.artifact.options
    title, package = _PACKAGES.get(engine, (engine, "see its documentation"))
    version = app.artifact.tools.get("coremltools")
    values |= {
        "engine": engine,
        "engine_title": title,
        "engine_package": package,
        "version_note": f", converted by coremltools {version}" if version else "",
        "compute_units": _COMPUTE_UNITS.get(str(options.get("compute_units", "ALL")), "all"),
        "called": _called(app, values["spec"]),
        "npy_kinds": [_KINDS.get(t.dtype, "<f4") for t in app.model.signature.outputs],
        "image_input": bool(options.get("image_input", False)) and values["spec"] is not None,
        "input_pairs": _pairs([t.name for t in app.model.signature.inputs], options.get("input_names")),
        "output_pairs": _pairs([t.name for t in app.model.signature.outputs], options.get("output_names")),
    }
    values["package_inputs"] = [name for _, name in values["input_pairs"]]
    files = {"README.md": "README.md.j2"}
    spec = values["spec"]
    if isinstance(spec, Preprocess):
        files |= {f: f"{f}.j2" for f in ("Preprocess.swift", "Decode.swift")}
        expressions = {
            name: text.replace("out_w", "outWidth").replace("out_h", "outHeight")
            for name, text in rendered(spec, "swift").items()
        }
        values |= {"f": expressions, **_numbers(spec)}
        if engine == "onnxruntime" and values["called"]:
            values["ort_type"], values["swift_type"] = _ORT_TYPES[spec.dtype]
    if values["called"]:
        files |= {f: f"{f}.j2" for f in ("SelfTest.swift", "Npz.swift")}
        files["Model.swift"] = f"Model_{engine}.swift.j2"
    return {path: fill("swift", template, **values) for path, template in files.items()}


def _called(app: App, spec: Preprocess | None) -> bool:
    """Whether Model.swift is written: for Core ML always, for ONNX Runtime where its interface for Swift has
    the types (it knows no half precision) and a picture comes in."""
    known = all(t.dtype in _KINDS for t in app.model.signature.outputs)
    ort = spec is not None and spec.dtype in _ORT_TYPES and known
    return app.artifact.engine == "coreml" or (app.artifact.engine == "onnxruntime" and ort)


def _pairs(own: list[str], renamed: object) -> list[tuple[str, str]]:
    """The model's own names with the package's; ``renamed`` is JSON, from the package's name to its own."""
    other = {mine: name for name, mine in json.loads(str(renamed)).items()} if renamed else {}
    return [(name, other.get(name, name)) for name in own]


def _numbers(spec: Preprocess) -> dict[str, object]:
    """The normalisation as literals, and the types of the input's buffer."""
    channels = 1 if spec.colour == "GRAY" else 3
    grey = spec.colour == "GRAY"
    data_type, swift_type = _TYPES[spec.dtype]
    return {
        "scale": repr(float(spec.scale)),
        "mean": [repr(float(m)) for m in spec.mean[:channels]],
        "std": [repr(float(s)) for s in spec.std[:channels]],
        "pixel_format": "kCVPixelFormatType_OneComponent8" if grey else "kCVPixelFormatType_32BGRA",
        "data_type": data_type,
        "swift_type": swift_type,
    }
