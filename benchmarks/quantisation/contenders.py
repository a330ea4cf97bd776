"""The contenders: each a function from a scene to an artifact that an engine of edgekiln opens.

Each is given what its documentation advises, the same samples and the same number of threads. Who has an
engine of its own runs in it; what is chosen among several by looking is chosen on the validation samples.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln import files
from edgekiln.prove.parity import ParityStream
from edgekiln.records import Artifact, Scalar
from quantisation import scenes
from quantisation.scenes import Inputs, Scene


@dataclass(frozen=True)
class Order:
    """What a contender works with. ``folder`` is the scene's, ``into`` where its files go, ``samples`` bounds
    the calibration samples, ``recipes`` and ``targets`` are those that edgekiln is asked for (() for its own
    choice), ``bounded`` whether it holds the bound: a recipe that was chosen before is made whatever it
    gives."""

    scene: Scene
    folder: Path
    into: Path
    threads: int
    samples: int
    recipes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    bounded: bool = True

    @property
    def graph(self) -> Path:
        return self.folder / "graph.onnx"

    def calibration(self) -> Iterator[Inputs]:
        return scenes.arrays(self.folder / "calibration", self.samples)

    def validation(self) -> Iterator[Inputs]:
        return scenes.arrays(self.folder / "validation")


@dataclass(frozen=True)
class Contender:
    """``make`` gives the artifact and a note. ``family`` says whose it is: ours, onnxruntime, openvino,
    litert, olive. ``spins``: the engine's own default lets threads spin, so it is timed with and without.
    ``quantises`` is False for the float models."""

    name: str
    title: str
    family: str
    make: Callable[[Order], tuple[Artifact, str]]
    quantises: bool = True
    spins: bool = False
    only: str = ""

    def unfit(self, scene: Scene) -> str:
        """Why it has no part in this scene; empty where it has."""
        if self.only == "transformer" and not scene.transformer:
            return "for graphs of matrix products"
        if self.only == "classes" and scene.judge != "classes":
            return "needs a share of right answers to hold a bound on"
        return ""


def artifact(
    into: Path, name: str, engine: str, entry: str, options: dict[str, Scalar] | None = None
) -> Artifact:
    """The record of what lies in ``into``."""
    return Artifact(
        id=name,
        target=engine,
        recipe=name,
        engine=engine,
        proof_engine=engine,
        entry=entry,
        files=files.entries(into),
        options=options or {},
        tools={},
        precisions={},
    )


# ---------------------------------------------------------------- ONNX Runtime


class _Reader:
    """The samples as ONNX Runtime asks for them: one at a time, and stretches of them by their place."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._count = min(order.samples, order.scene.calibration)
        self._left = order.calibration()

    def __len__(self) -> int:
        return self._count

    def set_range(self, start_index: int, end_index: int) -> None:
        paths = sorted((self._order.folder / "calibration").glob("*.npz"))[start_index:end_index]
        self._left = (sample for path in paths for sample in _one(path))

    def get_next(self) -> Inputs | None:
        return next(self._left, None)


def _one(path: Path) -> Iterator[Inputs]:
    import numpy as np

    with np.load(path, allow_pickle=False) as held:
        yield dict(held)


def _float_onnx(order: Order) -> tuple[Artifact, str]:
    (order.into / "model.onnx").write_bytes(order.graph.read_bytes())
    return artifact(order.into, "ort-fp32", "onnxruntime", "model.onnx"), ""


def _ort_defaults(order: Order) -> tuple[Artifact, str]:
    from onnxruntime import quantization

    quantization.quantize_static(str(order.graph), str(order.into / "model.onnx"), _Reader(order))
    return artifact(order.into, "ort-defaults", "onnxruntime", "model.onnx"), "s8s8, per tensor, MinMax"


MATRIX_PRODUCTS = ("MatMul", "Gemm")
"""What is quantised of a transformer: an 8-bit mask of -10000 leaves nothing of the scores it is added to."""
STRIDE = 8
"""Samples that a histogram calibrator holds at once; it keeps every tensor of each."""


def _ort_best(order: Order) -> tuple[Artifact, str]:
    """Preprocessed, Q/DQ, u8 activations, s8 weights per channel; the calibrator that does best on the
    validation samples. ``reduce_range`` only where the CPU lacks VNNI, as ONNX Runtime's page advises."""
    from onnxruntime import quantization

    prepared = order.into.parent / f"{order.into.name}.prepared.onnx"
    _preprocessed(order.graph, prepared)
    stride = next(n for n in range(STRIDE, 0, -1) if len(_Reader(order)) % n == 0)
    found: list[tuple[float, str]] = []
    for method in ("MinMax", "Percentile", "Entropy"):
        path = order.into / f"{method}.onnx"
        quantization.quantize_static(
            str(prepared),
            str(path),
            _Reader(order),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(MATRIX_PRODUCTS) if order.scene.transformer else None,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=not has_vnni(),
            calibrate_method=quantization.CalibrationMethod[method],
            extra_options={"CalibStridedMinMax": stride},
        )
        found.append((_sqnr_db(path, order), method))
    prepared.unlink()
    best = max(found)[1]
    for _, method in found:
        if method != best:
            (order.into / f"{method}.onnx").unlink()
    (order.into / f"{best}.onnx").rename(order.into / "model.onnx")
    note = f"calibrator {best}; " + ", ".join(f"{method} {sqnr:.1f} dB" for sqnr, method in found)
    return artifact(order.into, "ort-best", "onnxruntime", "model.onnx"), note


def _preprocessed(graph: Path, into: Path) -> None:
    """ONNX Runtime's own preparation; without the symbolic part where that can't read the graph."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        quant_pre_process(str(graph), str(into))
    except Exception:
        quant_pre_process(str(graph), str(into), skip_symbolic_shape=True)


def _ort_dynamic(order: Order) -> tuple[Artifact, str]:
    from onnxruntime import quantization

    quantization.quantize_dynamic(
        str(order.graph), str(order.into / "model.onnx"), per_channel=True, reduce_range=not has_vnni()
    )
    return artifact(order.into, "ort-dynamic", "onnxruntime", "model.onnx"), "s8 weights per channel"


def has_vnni() -> bool:
    """Whether this CPU multiplies u8 by s8 without saturating."""
    flags = Path("/proc/cpuinfo").read_text()
    return "avx512_vnni" in flags or "avx_vnni" in flags


def _sqnr_db(path: Path, order: Order) -> float:
    """Of the worst output on the validation samples: on so few, agreement says less."""
    from edgekiln.engines import open_engine
    from edgekiln.engines.onnxruntime import float_artifact

    expected, found = (
        open_engine("onnxruntime", float_artifact(p.name, "one"), p.parent, order.threads)
        for p in (order.graph, path)
    )
    stream = ParityStream("tensors")
    for sample in order.validation():
        stream.add(expected(sample), found(sample))
    worst = stream.result().worst
    return -200.0 if worst is None or worst.sqnr_db is None else worst.sqnr_db


# ---------------------------------------------------------------- OpenVINO


@dataclass(frozen=True)
class _Again:
    """Samples that NNCF asks for several times; none is held."""

    samples: Callable[[], Iterator[Inputs]]

    def __iter__(self) -> Iterator[Inputs]:
        return self.samples()


def _ir(model: Any, order: Order, name: str, hint: str = "f32") -> Artifact:
    import openvino

    openvino.save_model(model, order.into / "model.xml", compress_to_fp16=False)
    return artifact(order.into, name, "openvino", "model.xml", {"INFERENCE_PRECISION_HINT": hint})


def _openvino(name: str, hint: str) -> Callable[[Order], tuple[Artifact, str]]:
    def make(order: Order) -> tuple[Artifact, str]:
        import openvino

        return _ir(openvino.Core().read_model(order.graph), order, name, hint), ""

    return make


def _nncf(name: str, preset: str) -> Callable[[Order], tuple[Artifact, str]]:
    def make(order: Order) -> tuple[Artifact, str]:
        os.environ.setdefault("NNCF_CI", "1")  # else NNCF reports its use over the network
        import nncf
        import openvino

        quantised = nncf.quantize(
            openvino.Core().read_model(order.graph),
            nncf.Dataset(_Again(order.calibration)),
            preset=nncf.QuantizationPreset(preset),
            subset_size=order.samples,
            model_type=nncf.ModelType.TRANSFORMER if order.scene.transformer else None,
            target_device=nncf.TargetDevice.CPU,
        )
        return _ir(quantised, order, name), ""

    return make


def _nncf_accuracy(order: Order) -> tuple[Artifact, str]:
    """NNCF's own bound: at most 0.01 of agreement with the float model on the validation samples."""
    os.environ.setdefault("NNCF_CI", "1")
    import nncf
    import openvino

    core = openvino.Core()
    model = core.read_model(order.graph)
    samples = list(order.validation())
    reference = _classes(core.compile_model(model, "CPU", _throughput(order.threads)), samples)
    pairs = [{"sample": sample, "label": label} for sample, label in zip(samples, reference, strict=True)]

    def agreement(compiled: Any, data: Any) -> tuple[float, None]:
        rows = list(data)
        found = _classes(compiled, [row["sample"] for row in rows])
        hits = [a == row["label"] for a, row in zip(found, rows, strict=True)]
        return sum(hits) / len(hits), None

    quantised = nncf.quantize_with_accuracy_control(
        model,
        calibration_dataset=nncf.Dataset(_Again(order.calibration)),
        validation_dataset=nncf.Dataset(pairs, lambda pair: pair),
        validation_fn=agreement,
        max_drop=0.01,
        drop_type=nncf.DropType.ABSOLUTE,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=order.samples,
        target_device=nncf.TargetDevice.CPU,
    )
    return _ir(quantised, order, "nncf-accuracy"), "bound: 0.01 of agreement on the validation samples"


def _throughput(threads: int) -> dict[str, str]:
    return {"INFERENCE_NUM_THREADS": str(threads), "INFERENCE_PRECISION_HINT": "f32"}


def _classes(compiled: Any, samples: list[Inputs]) -> list[int]:
    return [int(next(iter(compiled(sample).values())).argmax()) for sample in samples]


# ---------------------------------------------------------------- LiteRT


def _litert(name: str, recipe: str) -> Callable[[Order], tuple[Artifact, str]]:
    def make(order: Order) -> tuple[Artifact, str]:
        """edgekiln's target converts; the quantisation is ai-edge-quantizer's own recipe."""
        from edgekiln.compile.make import make as made
        from edgekiln.devices import load
        from quantisation.ours import workshop

        folder, found = made(workshop(order), load("host"), "litert", recipe)
        for file in found.files:
            target = order.into / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((folder / file.path).read_bytes())
        return found, f"ai-edge-quantizer, {recipe}"

    return make


# ---------------------------------------------------------------- the table


def _ours(order: Order) -> tuple[Artifact, str]:
    from quantisation import ours

    return ours.build(order)


def _olive(order: Order) -> tuple[Artifact, str]:
    from quantisation import olive_workflow

    return olive_workflow.workflow(order)


CONTENDERS = {
    c.name: c
    for c in (
        Contender("ours", "edgekiln, all recipes", "ours", _ours),
        Contender("ours-alone", "edgekiln, the chosen recipe alone", "ours", _ours),
        Contender("ort-fp32", "ONNX Runtime FP32", "onnxruntime", _float_onnx, quantises=False, spins=True),
        Contender("ort-defaults", "ONNX Runtime quantize_static", "onnxruntime", _ort_defaults, spins=True),
        Contender("ort-best", "ONNX Runtime per channel, best", "onnxruntime", _ort_best, spins=True),
        Contender(
            "ort-dynamic",
            "ONNX Runtime dynamic",
            "onnxruntime",
            _ort_dynamic,
            spins=True,
            only="transformer",
        ),
        Contender(
            "openvino-fp32", "OpenVINO FP32", "openvino", _openvino("openvino-fp32", "f32"), quantises=False
        ),
        Contender(
            "openvino-bf16", "OpenVINO bf16", "openvino", _openvino("openvino-bf16", "bf16"), quantises=False
        ),
        Contender("nncf-mixed", "NNCF mixed", "openvino", _nncf("nncf-mixed", "mixed")),
        Contender(
            "nncf-performance", "NNCF performance", "openvino", _nncf("nncf-performance", "performance")
        ),
        Contender("nncf-accuracy", "NNCF accuracy control", "openvino", _nncf_accuracy, only="classes"),
        Contender("olive", "Olive workflow", "olive", _olive, spins=True),
        Contender(
            "litert-dynamic", "LiteRT dynamic", "litert", _litert("litert-dynamic", "int8-litert-dynamic")
        ),
        Contender("litert-static", "LiteRT static", "litert", _litert("litert-static", "int8-litert-static")),
    )
}
QUICK = ("ours", "ort-fp32", "ort-defaults", "ort-best", "openvino-fp32", "nncf-mixed")
