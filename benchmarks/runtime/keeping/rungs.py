"""The rungs: the demo's EfficientNet-Lite0 at several sizes, as float and INT8, made as a build does it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgekiln.cache import step
from edgekiln.compile.make import make
from edgekiln.devices import load as device
from edgekiln.engines import open_engine
from edgekiln.files import write_bytes
from edgekiln.prove.arrays import npz_bytes
from edgekiln.records import Artifact, Record
from measuring.scene import Scene, scene, scenes_at
from runtime.keeping.records import Place

SIDES = (224, 192, 160, 128)
RECIPES = ("fp32", "int8-static-minmax")
TIMED_CALLS = 60


class Answers(Record, frozen=True, kw_only=True):
    """The class that an artifact gives each of the pictures held out."""

    top1: tuple[int, ...]


def make_places(cache: Path, quick: bool) -> list[Place]:
    """Every rung with its quality, best first. ``quick``: a tiny network of random weights at one size."""
    scenes = {32: scene("tiny", cache, 1)} if quick else scenes_at(SIDES, cache, 1)
    places: list[Place] = []
    best: tuple[int, ...] = ()
    for recipe in RECIPES:
        for side, made in scenes.items():
            folder, artifact = make(made.shop, device("host"), "onnxruntime", recipe)
            answers = _answers(made, folder, artifact, cache)
            best = best or answers
            places.append(_place(made, folder, artifact, side, _agreement(answers, best), cache))
    return sorted(places, key=lambda p: (-p.quality, p.calm_ms))


def _answers(made: Scene, folder: Path, artifact: Artifact, cache: Path) -> tuple[int, ...]:
    def produce(into: Path) -> Answers:
        runner = open_engine("onnxruntime", artifact, folder, 1)
        found = [next(iter(runner(inputs).values())) for inputs in made.holdout()]
        runner.close()
        return Answers(top1=tuple(int(np.argmax(scores)) for scores in found))

    _, answers, _ = step(cache, "bench-answers", [artifact, made.shop.model_sha256], Answers, produce)
    return answers.top1


def _agreement(answers: tuple[int, ...], best: tuple[int, ...]) -> float:
    return float(np.mean(np.equal(answers, best)))


def _place(made: Scene, folder: Path, artifact: Artifact, side: int, quality: float, cache: Path) -> Place:
    """The artifact's files are linked beside its input; its calm time is taken here and now."""
    name = f"{artifact.recipe.split('-')[0]}-{side}"
    where = cache / "rungs" / name
    where.mkdir(parents=True, exist_ok=True)
    for file in artifact.files:
        write_bytes(where / file.path, (folder / file.path).read_bytes())
    inputs = next(iter(made.holdout()))
    write_bytes(where / "input.npz", npz_bytes(inputs))
    calm_ms = float(np.median(list(_times(where, artifact, inputs))))
    return Place(
        id=name, folder=str(where.resolve()), artifact=artifact, side=side, quality=quality, calm_ms=calm_ms
    )


def _times(where: Path, artifact: Artifact, inputs: dict[str, Any]) -> Iterator[float]:
    runner = open_engine("onnxruntime", artifact, where, 1)
    for _ in range(TIMED_CALLS):
        began = time.perf_counter()
        runner(inputs)
        yield (time.perf_counter() - began) * 1e3
    runner.close()


def read_places(path: Path) -> tuple[Place, ...]:
    """What ``make_places`` made, as it was written down."""
    return msgspec.json.decode(path.read_bytes(), type=tuple[Place, ...])
