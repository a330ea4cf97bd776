"""``.tflite`` files for tests: conversions kept per recipe, readers that share no code with our writer."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.compile.targets.litert import convert
from edgekiln.compile.targets.litert_metadata import encode
from edgekiln.records import Artifact, Model, Signature
from fakes.variants import PC, model_of, order

SCHEMA = """
table AssociatedFile { name:string; description:string; type:byte; locale:string; }
table FeatureProperties { }
table ImageSize { width:uint; height:uint; }
table ImageProperties { color_space:byte; default_size:ImageSize; }
table BoundingBoxProperties { index:[uint]; }
union ContentProperties { FeatureProperties, ImageProperties, BoundingBoxProperties }
table ValueRange { min:int; max:int; }
table Content { content_properties:ContentProperties; range:ValueRange; }
table NormalizationOptions { mean:[float]; std:[float]; }
table ScoreCalibrationOptions { score_transformation:byte; default_score:float; }
union ProcessUnitOptions { NormalizationOptions, ScoreCalibrationOptions }
table ProcessUnit { options:ProcessUnitOptions; }
table Stats { max:[float]; min:[float]; }
table TensorMetadata { name:string; description:string; dimension_names:[string]; content:Content;
  process_units:[ProcessUnit]; stats:Stats; associated_files:[AssociatedFile]; }
table SubGraphMetadata { name:string; description:string; input_tensor_metadata:[TensorMetadata];
  output_tensor_metadata:[TensorMetadata]; associated_files:[AssociatedFile];
  input_process_units:[ProcessUnit]; output_process_units:[ProcessUnit]; }
table ModelMetadata { name:string; description:string; version:string;
  subgraph_metadata:[SubGraphMetadata]; author:string; license:string;
  associated_files:[AssociatedFile]; min_parser_version:string; }
file_identifier "M001";
root_type ModelMetadata;
"""
"""The tables of TFLite Metadata 1.1.0 that flatc needs to read what we write."""


@dataclass
class Shop:
    """Conversions of one graph, each recipe once; they share a cache as the recipes of a build do."""

    graph: Path
    folder: Path
    model: Model
    calibration: Path | None = None
    done: dict[str, Artifact] = field(default_factory=dict)

    def made(self, recipe: str) -> tuple[Artifact, Path]:
        if recipe not in self.done:
            given = str(self.calibration) if "static" in recipe and self.calibration else None
            asked = order(
                self.folder / recipe / "variant",
                self.graph,
                recipe,
                PC,
                model=self.model,
                calibration=given,
                cache=str(self.folder / "cache"),
            )
            self.done[recipe] = convert(asked, self.folder / recipe / "out")
        return self.done[recipe], self.folder / recipe / "out"


def shop(graph: Path, folder: Path, samples: list[dict[str, Any]], model: Model | None = None) -> Shop:
    """A shop whose calibration samples are ``samples``."""
    calibration = folder / "calibration"
    calibration.mkdir(parents=True)
    for number, sample in enumerate(samples):
        np.savez(calibration / f"{number:03}.npz", **sample)
    return Shop(graph, folder, model or model_of(graph), calibration)


def raw(path: Path) -> Any:
    """The file opened as an application would: LiteRT's own interpreter, the signature by its key."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    return interpreter.get_signature_runner("serving_default")


def metadata(path: Path, scratch: Path) -> Any:
    """The file's TFLite metadata, read through the model's own flatbuffer."""
    from ai_edge_litert import schema_py_generated as schema

    tree = schema.Model.GetRootAs(path.read_bytes(), 0)
    entries = [tree.Metadata(i) for i in range(tree.MetadataLength())]
    entry = next(e for e in entries if e.Name() == b"TFLITE_METADATA")
    return decoded(tree.Buffers(entry.Buffer()).DataAsNumpy().tobytes(), scratch)


def read_metadata(model: Model, signature: Signature, pictures: list[str], scratch: Path) -> Any:
    """What flatc reads of the metadata that our writer makes for ``model``."""
    return decoded(encode(model, signature, pictures), scratch)


def decoded(content: bytes, scratch: Path) -> Any:
    """A metadata flatbuffer as JSON, by flatc (it comes with executorch)."""
    (scratch / "found.bin").write_bytes(content)
    (scratch / "schema.fbs").write_text(SCHEMA)
    flatc = Path(sys.executable).parent / "flatc"
    files = [scratch / "schema.fbs", "--", scratch / "found.bin"]
    command = [flatc, "--json", "--strict-json", "-o", scratch, *files]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads((scratch / "found.json").read_text())


def labels(path: Path) -> list[str]:
    """The lines of the file's ``labels.txt``, which any zip reader finds."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return archive.read("labels.txt").decode().splitlines()


def without_kernel(content: bytes) -> bytes:
    """The file with one of its operators turned into one that LiteRT's interpreter has no kernel for."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    tree = flatbuffer_utils.read_model_from_bytearray(content)
    code = tree.operatorCodes[tree.subgraphs[0].operators[-1].opcodeIndex]
    code.builtinCode, code.deprecatedBuiltinCode = schema.BuiltinOperator.STABLEHLO_SORT, 127
    return bytes(flatbuffer_utils.convert_object_to_bytearray(tree))
