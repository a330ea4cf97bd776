"""What is measured on: EfficientNet-Lite0 with photographs, or a tiny network with random inputs.

Both go through the same stations as a build: import, optimise, calibrate, make.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekiln.cache import step
from edgekiln.compile.graph import optimise
from edgekiln.compile.workshop import Calibration, Workshop
from edgekiln.files import sha256_file, write_bytes
from edgekiln.intake import Intake, dataset_key, random_inputs, samples, take_in
from edgekiln.job import Job, ModelOrder, load
from edgekiln.records import PassReport, Record
from measuring.process import ROOT

EXAMPLE = ROOT / "examples" / "efficientnet_lite0"
Network = Literal["one-node", "tiny", "efficientnet-lite0"]
Inputs = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Scene:
    """``calibration(n)`` yields n samples; ``holdout`` other ones; ``shop`` makes artifacts by recipe."""

    intake: Intake
    shop: Workshop
    calibration: Callable[[int], Iterator[Inputs]]
    holdout: Callable[[], Iterator[Inputs]]


class _Passes(Record, frozen=True, kw_only=True):
    passes: tuple[PassReport, ...]


def demo_data() -> ModuleType:
    """The example's data.py; its data are prepared where they are not there yet."""
    spec = importlib.util.spec_from_file_location("efficientnet_lite0_data", EXAMPLE / "data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    module.prepare()
    return module


def scene(network: Network, cache: Path, threads: int) -> Scene:
    """The optimised graph of ``network`` and its data. Finished steps are kept in ``cache``."""
    if network != "efficientnet-lite0":
        source = cache / f"{network}.onnx"
        write_bytes(source, tiny_network() if network == "tiny" else one_node_network())
        intake = take_in(Job(model=ModelOrder(source=str(source), task="classification")), cache)
        return _scene(intake, cache, threads, lambda n: _random(intake, n), lambda: _random(intake, 8, 1000))
    data = demo_data()
    intake = take_in(load(EXAMPLE / "job.toml"), cache)
    return _scene(
        intake, cache, threads, lambda n: _crops(intake, data, n), lambda: samples(intake, intake.holdout)
    )


def scene_of(job: Job, cache: Path, threads: int) -> Scene:
    """The same of any job that brings pictures: its own calibration and holdout sets."""
    demo_data()
    intake = take_in(job, cache)

    def calibration(n: int) -> Iterator[Inputs]:
        return itertools.islice(samples(intake, intake.calibration), n)

    return _scene(intake, cache, threads, calibration, lambda: samples(intake, intake.holdout))


def scenes_at(sides: Sequence[int], cache: Path, threads: int) -> dict[int, Scene]:
    """EfficientNet-Lite0 at several square sizes: each with a static graph and its own samples."""
    demo_data()
    job = load(EXAMPLE / "job.toml")
    job = msgspec.structs.replace(job, model=msgspec.structs.replace(job.model, sizes=tuple(sides)))
    intake = take_in(job, cache)

    def at(side: int) -> Scene:
        one = intake.at((side, side))

        def calibration(n: int) -> Iterator[Inputs]:
            return itertools.islice(samples(one, one.calibration), n)

        return _scene(one, cache, threads, calibration, lambda: samples(one, one.holdout))

    return {side: at(side) for side in sides}


def _scene(
    intake: Intake,
    cache: Path,
    threads: int,
    calibration: Callable[[int], Iterator[Inputs]],
    holdout: Callable[[], Iterator[Inputs]],
) -> Scene:
    shapes = {i.name: tuple(int(n) for n in i.shape) for i in intake.model.signature.inputs}
    probe = next(holdout())

    def produce(into: Path) -> _Passes:
        return _Passes(passes=optimise(intake.graph, shapes, probe, into / "graph.onnx"))

    folder, _, _ = step(cache, "bench-graph", [intake.model.sha256, shapes], _Passes, produce)
    graph = folder / "graph.onnx"
    data = intake.calibration
    n = 32 if data is None else len(data.samples)
    key = "random" if data is None else dataset_key(data, intake.model)
    held = Calibration(lambda: calibration(n) if data is None else samples(intake, data), n, key)
    shop = Workshop(graph, sha256_file(graph), held, cache, threads, intake.model)
    return Scene(intake, shop, calibration, holdout)


def _random(intake: Intake, count: int, first_seed: int = 0) -> Iterator[Inputs]:
    for seed in range(first_seed, first_seed + count):
        yield random_inputs(intake.model.signature, seed)


def _crops(intake: Intake, data: ModuleType, count: int) -> Iterator[Inputs]:
    """``count`` square crops of the calibration photographs, in turns, prepared as the job says."""
    from edgekiln.model.preprocess import apply, open_image

    spec = intake.model.preprocess
    assert spec is not None, "the example's job states its preprocessing"
    photographs = [p for p in data.PHOTOGRAPHS if p.split == "calibration"]
    pictures = [open_image(data.package_file(p.package, p.path)) for p in photographs]
    each = math.ceil(count / len(pictures))
    windows = [data.windows(*picture.size, each) for picture in pictures]
    name = intake.model.signature.inputs[0].name
    turns = [(k, place) for k in range(each) for place in range(len(pictures))]
    for k, place in turns[:count]:
        yield {name: apply(spec, pictures[place].crop(windows[place][k]))}


def tiny_network() -> bytes:
    """Two convolutions, a mean and a Gemm over [1, 3, 32, 32] with seeded random weights: work enough for a
    call to be a call, and little enough to see what is around it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = {
        "w1": (8, 3, 3, 3),
        "b1": (8,),
        "w2": (16, 8, 3, 3),
        "b2": (16,),
        "w3": (10, 16),
        "b3": (10,),
    }
    held = [
        numpy_helper.from_array((0.3 * random.standard_normal(shape)).astype(np.float32), name)
        for name, shape in weights.items()
    ]
    conv: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", **conv),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", **conv),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], "gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        held,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    serialised: bytes = model.SerializeToString()
    return serialised


def one_node_network() -> bytes:
    """The mean of each channel of 1x3x8x8: a call of it is nearly all call."""
    import onnx
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["x"], ["y"], "pool")],
        "one node",
        [value("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [value("y", TensorProto.FLOAT, [1, 3, 1, 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    serialised: bytes = model.SerializeToString()
    return serialised
