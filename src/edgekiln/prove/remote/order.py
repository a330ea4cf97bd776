"""What a device is asked to do: which files it gets, and the request that the runner there reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekiln.engines import Arrays, at_size, build_engine, openvino
from edgekiln.engines import onnxruntime as ort
from edgekiln.engines.litert import LAYOUT
from edgekiln.engines.options import switch, thread_count
from edgekiln.errors import NotRunnableHere
from edgekiln.files import inside, write_bytes
from edgekiln.prove.arrays import npz_bytes
from edgekiln.prove.remote import runner, runner_tensorrt, runner_work
from edgekiln.prove.remote.gather import SENSORS_MOVING
from edgekiln.records import Artifact, Record

LINUX_ENGINES = ("onnxruntime", "openvino", "litert", "tensorrt")


class Course(Record, frozen=True, kw_only=True):
    """How long and how to measure; times in seconds.

    ``least_seconds`` and ``max_seconds`` bound the timing alone, ``open_seconds`` loading (a TensorRT engine
    is built in it) and every other silence. The device may be away for ``patience_seconds`` in a row. What
    nobody fetches is removed after ``keep_seconds``. ``root`` is where the device has its /proc and /sys.
    """

    threads: int = 2
    samples: int = 200
    idle_seconds: float = 5.0
    warmup_seconds: float = 5.0
    least_seconds: float = 5.0
    max_seconds: float = 60.0
    open_seconds: float = 1800.0
    keep_seconds: float = 900.0
    interval_seconds: float = 0.5
    patience_seconds: float = 60.0
    root: str = "/"

    @property
    def limit_seconds(self) -> float:
        return self.open_seconds + self.warmup_seconds + self.max_seconds


class Order(Record, frozen=True, kw_only=True):
    """``request`` is JSON data; ``files`` are pairs of a path here and one relative to the folder there."""

    request: dict[str, Any]
    files: tuple[tuple[str, str], ...]


def linux(artifact: Artifact, folder: Path, inputs: Arrays, course: Course, scratch: Path) -> Order:
    """The order for a Linux device. ``scratch`` is a folder for what has to be written first.

    Raises BadInput for an option that the engine does not take, NotRunnableHere for an artifact that no
    engine of a Linux device runs.
    """
    one, where = at_size(artifact, folder, None)
    if one.engine not in LINUX_ENGINES:
        why = f"its engine is {one.engine}, and on a Linux device {', '.join(LINUX_ENGINES)} can be measured"
        cure = "Choose another target, or measure a phone with --on adb://SERIAL"
        raise NotRunnableHere("measuring", one.id, why, cure)
    arrays = scratch / "inputs.npz"
    write_bytes(arrays, npz_bytes(inputs))
    request = {
        "engine": one.engine,
        "entry": one.entry,
        "settings": _settings(one, course.threads),
        "threads": course.threads,
        "samples": course.samples,
        "idle_seconds": course.idle_seconds,
        "warmup_seconds": course.warmup_seconds,
        "least_seconds": course.least_seconds,
        "max_seconds": course.max_seconds,
        "limit_seconds": course.limit_seconds,
        "silent_seconds": course.open_seconds,
        "keep_seconds": course.keep_seconds,
        "interval_seconds": course.interval_seconds,
        "root": course.root,
        "sensors": list(SENSORS_MOVING),
    }
    model = [(str(inside(where, f.path, "copying")), f"model/{f.path}") for f in one.files]
    programs = [runner, runner_work]
    if one.engine == "tensorrt":
        programs += [runner_tensorrt, build_engine]
    sources = [Path(str(module.__file__)) for module in programs]
    return Order(
        request=request,
        files=(*((str(s), s.name) for s in sources), (str(arrays), "inputs.npz"), *model),
    )


def _settings(artifact: Artifact, threads: int) -> dict[str, Any]:
    if artifact.engine == "onnxruntime":
        found: dict[str, Any] = {**_plain(ort.settings(artifact, threads))}
        return found
    if artifact.engine == "openvino":
        config = openvino.compile_config(artifact, threads)
        return {"config": config, "share_inputs": switch(artifact, "share_inputs", False)}
    layouts = [n.removeprefix(LAYOUT) for n, kind in artifact.options.items() if n.startswith(LAYOUT)]
    return {"threads": thread_count(artifact, threads), "layouts": layouts}


def _plain(record: Record) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}
