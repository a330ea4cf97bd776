"""Real bundles for the tests of the runtime, packed in milliseconds from small ONNX models made here.

``runtime_bundle(path)`` is a ladder of three artifacts; ``runtime_bundle(path, parts=[Part(...), ...])`` any
other. Every artifact is a real file that its real engine runs; the figures of its evidence are made up, as
stated in the part, and say ``measured`` only because a runtime must read them as those of its device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekiln.bundle.pack import pack
from edgekiln.files import entries
from edgekiln.records import (
    Artifact,
    Choice,
    Evidence,
    How,
    Model,
    Preprocess,
    Proof,
    Resolution,
    Scalar,
    Signature,
    Source,
    TensorSpec,
)

CLASSES = 10
SIZE = (32, 32)
Size = tuple[int, int]


@dataclass(frozen=True)
class Part:
    """One artifact of the bundle; its id is ``ENGINE.RECIPE``.

    ``sizes``: none is the bundle's own (the first part's first, else SIZE); several are one flexible file, or
    with ``per_size`` one file for each. ``channels`` sets how much it computes, ``seed`` its weights (another
    seed, other answers). ``quality`` is its ``agreement``, ``quality_at`` that of further sizes; ``ms`` its
    ``latency_p50_ms`` and ``ms_at`` that of further sizes. ``figures`` are further ones as name: (value,
    unit), or replace those. ``batch`` may be a name for a dynamic batch. ``graph`` replaces the network;
    ``options`` are the engine's.
    """

    recipe: str
    engine: str = "onnxruntime"
    proof_engine: str = ""
    sizes: tuple[Size, ...] = ()
    per_size: bool = False
    channels: int = 8
    seed: int = 0
    batch: int | str = 1
    quality: float | None = 1.0
    quality_at: Mapping[Size, float] = field(default_factory=dict)
    ms: float | None = None
    ms_at: Mapping[Size, float] = field(default_factory=dict)
    figures: Mapping[str, tuple[float | None, str]] = field(default_factory=dict)
    how: How = "measured"
    options: Mapping[str, Scalar] = field(default_factory=dict)
    graph: onnx.ModelProto | None = None

    @property
    def id(self) -> str:
        return f"{self.engine}.{self.recipe}"


LADDER = (
    Part("fp32", channels=32, quality=1.0, ms=4.0, sizes=((64, 64), (32, 32)), quality_at={(32, 32): 0.9}),
    Part("half-width", channels=16, quality=0.95, ms=2.0),
    Part("narrow", channels=4, quality=0.8, ms=0.5),
)


def network(
    height: int | str = 32,
    width: int | str = 32,
    *,
    channels: int = 8,
    seed: int = 0,
    batch: int | str = 1,
) -> onnx.ModelProto:
    """``x`` (batch, 3, height, width) to ``y`` (batch, 10): two convolutions, a mean, a matrix product."""
    rng = np.random.default_rng(seed)
    shapes = {"c1": (channels, 3, 3, 3), "c2": (channels, channels, 3, 3), "m": (CLASSES, channels)}
    weights = [
        numpy_helper.from_array((rng.standard_normal(s) * 0.3).astype("f4"), n) for n, s in shapes.items()
    ]
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "c1"], ["a"], name="first", pads=[1] * 4),
        node("Relu", ["a"], ["b"], name="relu1"),
        node("Conv", ["b", "c2"], ["c"], name="second", pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["c"], ["d"], name="relu2"),
        node("GlobalAveragePool", ["d"], ["e"], name="pool"),
        node("Flatten", ["e"], ["f"], name="flatten"),
        node("Gemm", ["f", "m"], ["y"], name="scores", transB=1),
    ]
    return _model(nodes, [batch, 3, height, width], [batch, CLASSES], weights)


def least(shape: Sequence[int] = (1, 3, 8, 8)) -> onnx.ModelProto:
    """The cheapest network that takes a picture: ``x`` to its mean per channel, ``y`` (1, 3)."""
    node = helper.make_node
    nodes = [
        node("GlobalAveragePool", ["x"], ["e"], name="pool"),
        node("Flatten", ["e"], ["y"], name="flatten"),
    ]
    return _model(nodes, list(shape), [shape[0], shape[1]], [])


def _model(
    nodes: Sequence[onnx.NodeProto],
    takes: Sequence[int | str],
    gives: Sequence[int | str],
    weights: Sequence[onnx.TensorProto],
) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    held = helper.make_graph(
        list(nodes),
        "runtime test",
        [value("x", TensorProto.FLOAT, list(takes))],
        [value("y", TensorProto.FLOAT, list(gives))],
        list(weights),
    )
    return helper.make_model(held, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def picture(size: Size = SIZE, seed: int = 0, batch: int = 1) -> np.ndarray:
    """An input tensor (batch, 3, height, width) of float32 in 0..1."""
    return np.random.default_rng(seed).random((batch, 3, *size), dtype=np.float32)


def runtime_bundle(
    path: Path,
    parts: Sequence[Part] = LADDER,
    *,
    device: str = "host",
    preprocess: bool = True,
    labels: bool = True,
) -> Path:
    """Pack ``parts`` into ``path``, the chosen artifact first. A real bundle: hashes, manifest and all."""
    base = (parts[0].sizes or (SIZE,))[0]
    with TemporaryDirectory() as scratch:
        made = []
        for number, part in enumerate(parts):
            folder = Path(scratch) / str(number)
            made.append(
                (Proof(device=device, artifact=write(part, folder, base), evidence=evidence(part)), folder)
            )
        (chosen, where), *others = made
        pack(
            path,
            version="0",
            model=_described(parts[0], preprocess, labels),
            proof=chosen,
            choice=Choice(device=device, status="proven", artifact_id=chosen.artifact.id, basis="a test's"),
            artifact_folder=where,
            golden=None,
            golden_folder=None,
            provenance={},
            alternates=others,
        )
    return path


def write(part: Part, folder: Path, base: Size = SIZE) -> Artifact:
    """The files of ``part`` below ``folder``, and its record. ``base`` is its size where it states none."""
    sizes = part.sizes or (base,)
    if part.per_size:
        named = [f"{h}x{w}" for h, w in sizes]
        entry = [f"{n}/{_save(part, folder / n, size)}" for n, size in zip(named, sizes, strict=True)]
    else:
        entry = [_save(part, folder, sizes[0] if len(sizes) == 1 else None)] * len(sizes)
    several = len(sizes) > 1 or part.per_size
    return Artifact(
        id=part.id,
        target=part.engine,
        recipe=part.recipe,
        engine=part.engine,
        proof_engine=part.proof_engine or ("onnxruntime" if part.engine == "tensorrt" else part.engine),
        entry=entry[0],
        files=entries(folder),
        options=dict(part.options),
        tools={},
        precisions={"float32": 7},
        resolutions=tuple(
            Resolution(height=h, width=w, entry=e) for (h, w), e in zip(sizes, entry, strict=True) if several
        ),
    )


def evidence(part: Part) -> tuple[Evidence, ...]:
    """The part's figures as evidence of its device."""
    figures: dict[str, tuple[float | None, str]] = {
        "agreement": (part.quality, "fraction"),
        "latency_p50_ms": (part.ms, "ms"),
        **{f"agreement@{h}x{w}": (v, "fraction") for (h, w), v in part.quality_at.items()},
        **{f"latency_p50_ms@{h}x{w}": (v, "ms") for (h, w), v in part.ms_at.items()},
        **part.figures,
    }
    return tuple(
        Evidence(what=what, unit=unit, value=value, how=None if value is None else part.how)
        if value is not None
        else Evidence(what=what, unit=unit, value=None, reason="the test states none")
        for what, (value, unit) in figures.items()
    )


def _save(part: Part, folder: Path, size: Size | None) -> str:
    """The network at ``size`` (None: any) in the engine's format; the name of its file."""
    folder.mkdir(parents=True, exist_ok=True)
    high, wide = size or ("height", "width")
    made = part.graph or network(high, wide, channels=part.channels, seed=part.seed, batch=part.batch)
    if part.engine == "openvino":
        import openvino

        onnx.save(made, folder / "source.onnx")
        openvino.save_model(openvino.convert_model(folder / "source.onnx"), folder / "model.xml", False)
        (folder / "source.onnx").unlink()
        return "model.xml"
    onnx.save(made, folder / "model.onnx")
    if part.engine == "tensorrt":
        (folder / "plan.json").write_bytes(_plan(made))
    return "model.onnx"


def _plan(made: onnx.ModelProto) -> bytes:
    import msgspec

    shape = [d.dim_value or 1 for d in made.graph.input[0].type.tensor_type.shape.dim]
    told = {
        "schema": 1,
        "tensorrt_min": [10, 0],
        "tensorrt_below": 12,
        "workspace_bytes": None,
        "builder_optimization_level": 3,
        "tf32": False,
        "profiles": [{"x": {"min": shape, "opt": shape, "max": shape}}],
    }
    return msgspec.json.encode(told)


def _described(part: Part, preprocess: bool, labels: bool) -> Model:
    graph = part.graph
    size = (part.sizes or (SIZE,))[0]
    takes: tuple[int | str, ...] = (part.batch, 3, *size)
    gives: tuple[int | str, ...] = (part.batch, CLASSES)
    if graph is not None:
        takes, gives = (
            tuple(d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim)
            for v in (graph.graph.input[0], graph.graph.output[0])
        )
    height, width = (int(n) for n in takes[2:4])
    return Model(
        name="runtime-test",
        path="model.onnx",
        sha256="0" * 64,
        signature=Signature(
            inputs=(TensorSpec(name="x", dtype="float32", shape=takes),),
            outputs=(TensorSpec(name="y", dtype="float32", shape=gives),),
        ),
        task="classification",
        source=Source(kind="onnx", files=()),
        preprocess=Preprocess(width=width, height=height) if preprocess else None,
        labels=tuple(f"class-{i}" for i in range(int(gives[1]))) if labels else (),
    )
