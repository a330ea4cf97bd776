"""The graphs that plans are made of, by name: a new one is a function and a row in ``GRAPHS``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from edgekiln import files
from edgekiln.arrcoc import exporting
from edgekiln.arrcoc.compact import TEXTURE
from edgekiln.arrcoc.plans.records import Part
from edgekiln.arrcoc.quadtree import COMPACT
from edgekiln.arrcoc.reader import Reader
from edgekiln.arrcoc.scorers import Scorer
from edgekiln.arrcoc.texture_onnx import OUTPUT, texture_model

PIXELS = "pixels"


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds."""

    scorer: Scorer
    reader: Reader


Graph: TypeAlias = Callable[[Trained, Part, Path], None]
"""``graph(trained, part, path)`` writes the part's ONNX file."""


def _texture(trained: Trained, part: Part, path: Path) -> None:
    """The texture array (1, 13, 224, 224) of the canvas, ``pixels`` (1, 3, 448, 448)."""
    model = texture_model((TEXTURE, TEXTURE), picture=COMPACT.canvas, dtype=part.pictures)
    _rename_input(model)
    files.write_bytes(path, model.SerializeToString(deterministic=True))


def _texture_bytes(trained: Trained, part: Part, path: Path) -> None:
    """The texture array in 8 bits, each channel over its fixed range: uint8 (1, 13, 224, 224)."""
    from onnx import TensorProto, helper, numpy_helper

    model = texture_model((TEXTURE, TEXTURE), picture=COMPACT.canvas, dtype=part.pictures)
    _rename_input(model)
    graph, at = model.graph, f"{OUTPUT}_float"
    for node in graph.node:
        for number, name in enumerate(node.output):
            node.output[number] = at if name == OUTPUT else name
    low, step = exporting.byte_ranges()
    half = np.float32(0.5) - low / step
    for name, value in (("bytes_scale", 1 / step), ("bytes_offset", half), ("none", 0.0), ("all", 255.0)):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    for op, more in (
        ("Mul", ["bytes_scale"]),
        ("Add", ["bytes_offset"]),
        ("Floor", []),
        ("Clip", ["none", "all"]),
    ):
        graph.node.append(helper.make_node(op, [at, *more], [f"bytes_{op}"], name=f"bytes_{op}"))
        at = f"bytes_{op}"
    graph.node.append(helper.make_node("Cast", [at], [OUTPUT], name="bytes_Cast", to=TensorProto.UINT8))
    graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    files.write_bytes(path, model.SerializeToString(deterministic=True))


def _scorer(trained: Trained, part: Part, path: Path) -> None:
    """The graph of ``exporting.export_scorer`` that bears the part's graph's name."""
    exporting.export_scorer(trained.scorer, part.graph, path)


def _relevance(trained: Trained, part: Part, path: Path) -> None:
    """The whole way from the canvas and the question to the relevance: texture array, scorers, balance."""
    import onnx
    from onnx.compose import add_prefix, merge_models

    front = texture_model((TEXTURE, TEXTURE), picture=COMPACT.canvas, dtype=part.pictures)
    _rename_input(front)
    with tempfile.TemporaryDirectory() as scratch:
        exporting.export_scorer(trained.scorer, "unified", Path(scratch) / "unified.onnx")
        back = onnx.load(Path(scratch) / "unified.onnx")
    front = add_prefix(front, "texture/", rename_inputs=False, rename_outputs=False)
    front.ir_version = back.ir_version
    model = merge_models(front, back, io_map=[(OUTPUT, "texture")], name="arrcoc-relevance")
    del model.opset_import[1:]  # both had the same, and a quantiser takes two for none
    onnx.checker.check_model(model)
    files.write_bytes(path, model.SerializeToString(deterministic=True))


def _look(trained: Trained, part: Part, path: Path) -> None:
    """The reader at the part's tokens."""
    assert part.tokens is not None
    exporting.export_look(trained.reader, part.tokens, path, getattr(torch, part.pictures))


def _rename_input(model: Any) -> None:
    """``pixels`` in place of the texture graph's ``picture``: that one is of any size in a plan."""
    graph = model.graph
    old = graph.input[0].name
    graph.input[0].name = PIXELS
    for node in graph.node:
        for at, name in enumerate(node.input):
            if name == old:
                node.input[at] = PIXELS


GRAPHS: dict[str, Graph] = {
    "texture": _texture,
    "texture-bytes": _texture_bytes,
    "propositional": _scorer,
    "perspectival": _scorer,
    "participatory": _scorer,
    "balance": _scorer,
    "unified-bytes": _scorer,
    "relevance": _relevance,
    "look": _look,
}
