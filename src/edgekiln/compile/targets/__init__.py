"""How an artifact is made: the table of targets, one file per target.

A target file gives ``convert`` and nothing else that the table needs; a new target is one file and one
row here. Vendor packages are imported inside ``convert``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from edgekiln import files
from edgekiln.devices import Device
from edgekiln.errors import ConversionFailed
from edgekiln.model.signature import image_layout
from edgekiln.records import Artifact, Model, Record, Variant


class Conversion(Record, frozen=True, kw_only=True):
    """All that a target may draw on. ``folder`` (the variant's) and ``calibration`` are absolute: a
    conversion is an order to a worker process and is never kept.

    ``model`` brings signature, preprocessing, labels and task; its ``path`` is not read. ``calibration``
    is a folder of ``*.npz`` samples, one array per input, where the recipe needs data. ``example`` is the
    path of one such sample for a target that tries what it made (``Target.tries``), where no preprocessing
    says what the model's inputs look like: noise may mean nothing to it. ``sizes`` are the (height, width)
    asked for where they are more than one; then the graph's own height and width are symbolic if the target
    is flexible (``Target.flexible``). ``cache`` is where a target may keep a step that its recipes share
    (``edgekiln.cache.step``); without one it works each out anew.
    """

    variant: Variant
    folder: str
    device: Device
    model: Model
    calibration: str | None = None
    example: str | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    threads: int = 2
    cache: str | None = None

    def graph(self, doing: str) -> Path:
        """The variant's file, refused where it lies outside its folder."""
        return files.inside(Path(self.folder), self.variant.path, doing)

    def spatial(self) -> tuple[str, int]:
        """The picture input's name and the axis of its height; the width is the next axis.

        Raises ConversionFailed for a model without such an input: it can't have several sizes.
        """
        for spec in self.model.signature.inputs:
            layout = image_layout(spec)
            if layout is not None:
                return spec.name, 2 if layout == "NCHW" else 1
        why = "several sizes were asked for, and no input looks like a picture"
        raise ConversionFailed("finding the picture input of", self.model.name, why, "Leave the sizes out")


Convert: TypeAlias = Callable[[Conversion, Path], Artifact]
"""``convert(order, into)`` writes the artifact's files into ``into``."""


@dataclass(frozen=True)
class Target:
    """``recipes`` are tried in order. ``per`` names the device's fields that change the artifact (its id
    aside): what agrees in them shares one conversion. ``flexible``: one artifact takes several input
    sizes, else each size becomes a file of its own. ``tries``: its conversion runs what it made on one input
    and refuses it where that differs from the graph. ``proof_samples`` bounds the samples that the proof
    engine is given where it is too slow for all (a simulator)."""

    name: str
    module: str
    engine: str
    proof_engine: str
    extra: str | None
    recipes: tuple[str, ...]
    per: tuple[str, ...] = ()
    flexible: bool = False
    tries: bool = False
    proof_samples: int | None = None

    @property
    def convert(self) -> Convert:
        function: Convert = importlib.import_module(self.module).convert
        return function


_STATIC = ("int8-static-minmax", "int8-static-mse", "int8-static-mse+round+bias")
_LAYERS = "int8-static-minmax+round+bias+layers"
"""For graphs of matrix products, whose other operators 8 bits would harm and not speed up."""

_BLOCKS = ("w8-block64", "w8-block128")
"""Weights of matrix products alone: large blocks are faster, and not every product can be cut into them."""


def _row(name: str, recipes: tuple[str, ...], **more: Any) -> Target:
    """A target whose module, engine and proof engine bear its own name, unless ``more`` says otherwise."""
    given = {
        "module": f"edgekiln.compile.targets.{name}",
        "engine": name,
        "proof_engine": name,
        "extra": name,
    }
    return Target(name=name, recipes=recipes, **{**given, **more})


TARGETS = {
    t.name: t
    for t in (
        _row(
            "onnxruntime",
            ("fp32", "fp16", *_STATIC, "int8-mixed-0.01", _LAYERS, "int8-dynamic", *_BLOCKS),
            extra=None,
            per=("kind", "arch", "features", "figures", "threads"),
            flexible=True,
        ),
        _row(
            "openvino",
            (
                "fp32",
                "fp16",
                "bf16",
                "int8-static-mse+round+bias",
                "int8-mixed-0.01",
                "int8-mixed-0.01+bf16",
                _LAYERS,
                f"{_LAYERS}+bf16",
                "int8-mixed-0.01+layers+bf16",
                *_BLOCKS,
                "int8-nncf-performance",
                "int8-nncf-mixed",
            ),
            per=("arch", "features"),
            flexible=True,
        ),
        _row(
            "tensorrt",
            ("fp32", "fp16", "bf16", *_STATIC),
            proof_engine="onnxruntime",
            extra=None,
            per=("name", "title", "figures", "features"),
            flexible=True,
        ),
        _row(
            "coreml",
            ("fp16", "fp32", "w8-channel", "palette6", "palette-mixed-6", "w4-block32"),
            flexible=True,
            tries=True,
        ),
        _row(
            "litert",
            (
                "fp32",
                "fp16",
                "int8-litert-dynamic",
                "int8-litert-weight",
                "int8-litert-static",
                "int8-litert-static+round+bias",
            ),
        ),
        _row("executorch", ("fp32", "int8-xnnpack-static", "int8-xnnpack-dynamic")),
        _row(
            "qnn",
            ("int8-static-minmax", "a16w8-static-minmax", "fp16"),
            per=("name", "figures"),
            proof_samples=8,
        ),
        _row(
            "web",
            ("fp32", "int8-static-mse", "int8-static-mse+round+bias", "int8-dynamic"),
            extra=None,
            flexible=True,
        ),
    )
}

# Without VNNI (or its AVX form) u8 x s8 products saturate in 16 bits on x86.
_VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}


def dialect(target: str, recipe: str, device: Device) -> str:
    """The form in which ``target`` wants this recipe's graph on ``device``: part of a variant's identity."""
    static = recipe.startswith(("int8-static", "int8-mixed"))
    if target in {"tensorrt", "qnn"} or (target == "openvino" and not static):
        return target
    if target in {"coreml", "litert", "executorch"}:
        return "float"
    form = "openvino-qdq" if target == "openvino" else "ort"
    narrow = static and device.arch == "x86_64" and not _VNNI & set(device.features)
    return f"{form}-7bit" if narrow else form
