"""What is copied to a Linux device, the work: load an artifact in the engine that is installed there.

Needs Python 3.8, numpy and that engine; nothing of edgekiln. ``runner.py`` runs it in a process of its own
and writes down what it tells. Settings are those of ``edgekiln.engines``, checked before they came here.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import platform
import re
import signal
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

WINDOW_CALLS, WINDOW_SECONDS, STABLE_WITHIN = 5, 0.02, 0.05
ROUNDS, BLOCK_SECONDS = 10, 0.15

if TYPE_CHECKING:
    from collections.abc import Callable

    Call = Callable[[Any], Any]
    Tell = Callable[..., None]


class Refused(Exception):
    """The device can't do what is asked of it; ``cure`` says what would help."""

    def __init__(self, why: str, cure: str) -> None:
        Exception.__init__(self, why)
        self.why, self.cure = why, cure


# ---------------------------------------------------------------- engines: each opens to a function


def version_of(distribution: str) -> str:
    """The installed version, "unknown" where nothing tells."""
    try:
        from importlib import metadata

        return str(metadata.version(distribution))
    except Exception:
        return "unknown"


def needs(module: str, package: str, engine: str) -> Any:
    """The module, or Refused with what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        cure = f"Run there: {sys.executable} -m pip install {package} (or name another --remote-python)"
        raise Refused(f"{engine} is not there ({error})", cure) from error


def open_onnxruntime(request: Any, folder: Path) -> Call:
    """ONNX Runtime on the CPU with the artifact's settings."""
    settings = request["settings"]
    if settings["arithmetic"] in ("fp16", "bf16") and platform.machine() not in ("aarch64", "arm64"):
        why = f"a {platform.machine()} CPU computes its {settings['arithmetic']} graph in float32"
        raise Refused(why, "Measure on an Arm device, or the fp32 artifact here")
    ort = needs("onnxruntime", "onnxruntime", "ONNX Runtime")
    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = settings["threads"]
    options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, settings["graph_level"])
    options.enable_cpu_mem_arena = settings["arena"]
    options.enable_mem_pattern = settings["mem_pattern"]
    for key, value in settings["entries"].items():
        options.add_session_config_entry(key, value)
    path = str(folder / request["entry"])
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    if not settings["io_binding"]:
        return lambda inputs: session.run(names, inputs)
    binding = session.io_binding()

    def bound(inputs: Any) -> Any:
        binding.clear_binding_inputs()
        binding.clear_binding_outputs()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name in names:
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()

    return bound


def open_openvino(request: Any, folder: Path) -> Call:
    """OpenVINO on the CPU; the precision is read back, as it computes in bfloat16 where it likes."""
    openvino = needs("openvino", "openvino", "OpenVINO")
    core, settings = openvino.Core(), request["settings"]
    model = core.read_model(str(folder / request["entry"]))
    compiled = core.compile_model(model, "CPU", settings["config"])
    asked = settings["config"]["INFERENCE_PRECISION_HINT"]
    effective = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    effective = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}.get(effective, effective)
    capable = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if effective != asked or (asked != "f32" and {"bf16": "BF16", "f16": "FP16"}[asked] not in capable):
        why = f"it asks for {asked} arithmetic, and this CPU computes it in {effective}"
        raise Refused(why, "Measure the fp32 artifact on this device")
    infer = compiled.create_infer_request()
    return lambda inputs: infer.infer(inputs, share_inputs=settings["share_inputs"], share_outputs=False)


def open_litert(request: Any, folder: Path) -> Call:
    """LiteRT's interpreter, or that of tflite-runtime where only the old one is there."""
    try:
        module = importlib.import_module("ai_edge_litert.interpreter")
    except ImportError:
        module = needs("tflite_runtime.interpreter", "ai-edge-litert", "LiteRT")
    path = str(folder / request["entry"])
    interpreter = module.Interpreter(model_path=path, num_threads=request["settings"]["threads"])
    interpreter.allocate_tensors()
    run, layouts = interpreter.get_signature_runner("serving_default"), request["settings"]["layouts"]
    types = {name: detail["dtype"] for name, detail in run.get_input_details().items()}

    def called(inputs: Any) -> Any:
        fed = {n: v.transpose(0, 2, 3, 1) if n in layouts else v for n, v in inputs.items()}
        return run(**{name: value.astype(types[name], copy=False) for name, value in fed.items()})

    return called


def open_tensorrt(request: Any, folder: Path) -> Any:
    """TensorRT; its engine is built here, which takes minutes, and kept for the next time."""
    return importlib.import_module("runner_tensorrt").opened(request, folder, Refused)


ENGINES = {
    "onnxruntime": (open_onnxruntime, "onnxruntime", "onnxruntime"),
    "openvino": (open_openvino, "openvino", "openvino"),
    "litert": (open_litert, "ai_edge_litert.interpreter", "ai-edge-litert"),
    "tensorrt": (open_tensorrt, "tensorrt", "tensorrt"),
}
"""By name: the function that opens, the module whose import is timed apart, and its distribution."""


def too_old(engine: str, version: str, message: str) -> str | None:
    """The cure where a runtime refuses a model that is newer than it is; None for other refusals."""
    words = (
        "IR version|opset|not a registered function/op|No Op registered|Unsupported .*version|didn't find op"
    )
    if not re.search(words, message, re.IGNORECASE):
        return None
    return f"Install a newer {engine} there (it has {version}), or build for an older one"


# ---------------------------------------------------------------- the work: it computes and tells


def status_bytes(field: str) -> int | None:
    """``VmRSS`` or ``VmHWM`` of this process; None where the system does not tell."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) * 1024 if found else None


def timed(run: Call, inputs: Any) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    run(inputs)
    return time.perf_counter() - started


def warm_up(run: Call, inputs: Any, seconds: float) -> dict[str, Any]:
    """Windows of at least 5 calls and 20 ms, until two successive medians differ by under 5 %."""
    deadline, calls, before = time.perf_counter() + seconds, 0, 0.0
    while True:
        window: list[float] = []
        while len(window) < WINDOW_CALLS or sum(window) < WINDOW_SECONDS:
            window.append(timed(run, inputs))
            if time.perf_counter() > deadline:
                break
        calls += len(window)
        median = statistics.median(window)
        stable = before > 0 and abs(median - before) <= STABLE_WITHIN * before
        if stable or time.perf_counter() > deadline:
            return {"calls": calls, "stable": stable, "median_ms": median * 1e3}
        before = median


def blocks(run: Call, inputs: Any, request: Any, median_seconds: float, tell: Tell) -> None:
    """Blocks of calls without the garbage collector, until there are enough samples or time is over.

    They last ``least_seconds`` at least: a sensor of power speaks a few times a second.
    """
    wanted, started = request["samples"], time.perf_counter()
    enough, deadline = started + request["least_seconds"], started + request["max_seconds"]
    calls = max(1, min(-(-wanted // ROUNDS), int(BLOCK_SECONDS / max(median_seconds, 1e-6))))
    made = 0
    while (made < wanted or time.perf_counter() < enough) and time.perf_counter() < deadline:
        gc.collect()
        gc.disable()
        try:
            begun = time.monotonic()
            samples = [round(timed(run, inputs) * 1e3, 6) for _ in range(calls)]
            ended = time.monotonic()
        finally:
            gc.enable()
        made += len(samples)
        tell("block", begun=begun, ended=ended, ms=samples)


def work(request: Any, folder: Path, tell: Tell) -> None:
    """Load, warm up, time. Everything that is found out goes through ``tell``."""
    # before anything that reads them is imported; ONNX Runtime's wheels send models' names home unless told
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    for pool in ("OMP", "OPENBLAS", "MKL", "BLIS"):
        os.environ[pool + "_NUM_THREADS"] = str(request["threads"])
    numpy = needs("numpy", "numpy", "numpy")
    model = folder / "model"
    with numpy.load(str(folder / "inputs.npz"), allow_pickle=False) as held:
        inputs = {name: held[name] for name in held.files}
    if request["engine"] not in ENGINES:
        cure = "Engines that run on a Linux device: " + ", ".join(sorted(ENGINES))
        raise Refused(f"the engine {request['engine']} can't be measured there", cure)
    opens, module, distribution = ENGINES[request["engine"]]
    baseline, started = status_bytes("VmRSS"), time.perf_counter()
    with contextlib.suppress(ImportError):  # whoever opens says what is missing
        importlib.import_module(module)
    import_ms = (time.perf_counter() - started) * 1e3
    version = getattr(sys.modules.get(module), "__version__", None) or version_of(distribution)
    tell("phase", name="load")
    started = time.perf_counter()
    try:
        run = opens(request, model)
        load_ms = (time.perf_counter() - started) * 1e3
        first_ms = timed(run, inputs) * 1e3 if callable(run) else run.first_ms
    except (Refused, MemoryError):
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {str(error).strip()}".replace(f"{model}/", "")
        other = f"Check the artifact with that engine's version, {version}"
        raise Refused(message, too_old(request["engine"], version, message) or other) from error
    notes = getattr(run, "notes", {})
    version = getattr(run, "version", version)
    told = {"import_ms": import_ms, "load_ms": load_ms, "first_ms": first_ms, "baseline_bytes": baseline}
    tell("opened", engine_version=str(version), notes=notes, **told)
    if callable(run):
        tell("phase", name="warm-up")
        warmed = warm_up(run, inputs, request["warmup_seconds"])
        tell("warmed", **warmed)
        tell("phase", name="timing")
        blocks(run, inputs, request, warmed["median_ms"] / 1e3, tell)
    else:
        tell("phase", name="timing")
        run.measure(request, tell)
    peak = status_bytes("VmHWM") if callable(run) else run.peak_bytes()
    tell("finished", peak_bytes=peak)


def worker(request: Any, folder: Path, out: int) -> None:
    """The life of the work process; it never returns."""
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the watch
    null = os.open(os.devnull, os.O_RDWR)
    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(null, 0)
    os.dup2(said, 1)
    os.dup2(said, 2)

    def tell(kind: str, **fields: Any) -> None:
        os.write(out, (json.dumps(dict(fields, kind=kind, t=time.monotonic())) + "\n").encode())

    try:
        work(request, folder, tell)
    except Refused as error:
        tell("failed", how="refused", why=error.why, cure=error.cure)
    except MemoryError:
        tell("failed", how="memory", why="memory ran out", cure="Free some memory there")
    except Exception as error:
        traceback.print_exc()
        tell("failed", how="crashed", why=f"{type(error).__name__}: {error}", cure="See what it said")
    finally:
        os._exit(0)  # some libraries crash in their destructors
