"""Build the TensorRT engine of this folder on the device that will run it.

    python3 build_engine.py [--folder FOLDER] [--into FOLDER]

An engine fits one TensorRT version and one kind of GPU, so it can't be shipped: the device builds it once
from ``model.onnx`` and ``plan.json``. Needs NVIDIA's ``tensorrt`` package, version 10 or 11 (JetPack brings
it), and nothing else. Prints the engine's path; exit 1 with TensorRT's own messages where it refuses.
"""

import argparse
import ctypes
import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

MODEL, PLAN, CACHE = "model.onnx", "plan.json", "timing.cache"


class BuildFailed(Exception):
    """The plan or TensorRT refused; ``errors`` are dicts with ``op``, ``node`` and ``message``."""

    def __init__(self, *errors: dict[str, str]) -> None:
        self.errors = errors or ({"message": "TensorRT gave no message"},)
        super().__init__("\n".join(": ".join(v for v in e.values() if v) for e in self.errors))


def read_plan(folder: Path) -> Any:
    """The plan in ``folder``. Raises BuildFailed for a schema that this script does not read."""
    plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    if plan["schema"] != 1:
        raise BuildFailed({"message": f"{PLAN} has schema {plan['schema']}, this program reads 1"})
    return plan


def gpu_name() -> str:
    """The first GPU and its compute capability, asked of the driver. Raises OSError without one."""
    cuda = ctypes.CDLL("libcuda.so.1")
    name, gpu, sm = ctypes.create_string_buffer(128), ctypes.c_int(), (ctypes.c_int(), ctypes.c_int())
    failed = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(gpu), 0)
    failed = failed or cuda.cuDeviceGetName(name, len(name), gpu)
    for value, attribute in zip(sm, (75, 76), strict=True):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
        failed = failed or cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, gpu)
    if failed:
        raise OSError(f"the CUDA driver answers with error {failed}")
    return f"{name.value.decode()} sm{sm[0].value}{sm[1].value}"


def create_network(trt: Any, builder: Any) -> Any:
    """A strongly typed network: a flag in TensorRT 10, the only kind from 11 on."""
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if strong is None else 1 << int(strong))


def parse(trt: Any, builder: Any, logger: Any, model: Path) -> Any:
    """The ONNX file as a network. Raises BuildFailed with the parser's messages."""
    network = create_network(trt, builder)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        found = (parser.get_error(i) for i in range(parser.num_errors))
        errors = [{"op": e.node_operator(), "node": e.node_name(), "message": e.desc()} for e in found]
        raise BuildFailed(*errors)
    return network


def configure(trt: Any, builder: Any, plan: Any, cache: bytes, capability: str | None) -> Any:
    """Memory pool, flags, profiles and timing cache as the plan says."""
    config = builder.create_builder_config()
    if plan["workspace_bytes"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, plan["workspace_bytes"])
    config.builder_optimization_level = plan["builder_optimization_level"]
    if not plan["tf32"]:
        config.clear_flag(trt.BuilderFlag.TF32)
    for shapes in plan["profiles"]:
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, tuple(shape["min"]), tuple(shape["opt"]), tuple(shape["max"]))
        if config.add_optimization_profile(profile) < 0:
            raise BuildFailed({"message": f"the optimisation profile does not fit the inputs: {shapes}"})
    if capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    elif not config.set_timing_cache(config.create_timing_cache(cache), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)  # the old one is another machine's
    return config


def build(trt: Any, folder: Path, cache: bytes = b"", capability: str | None = None) -> tuple[Any, bytes]:
    """The serialised engine (a buffer) and the timing cache. Raises BuildFailed with TensorRT's messages.

    ``capability`` (as "SM86") builds ahead of time without a GPU, which only TensorRT-RTX can do.
    """
    errors = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, msg: str) -> None:
            if int(severity) <= int(trt.ILogger.ERROR):
                errors.append({"message": msg})
            if int(severity) <= int(trt.ILogger.WARNING):
                print(msg, file=sys.stderr)

    plan, logger = read_plan(folder), Logger()
    builder = trt.Builder(logger)
    network = parse(trt, builder, logger, folder / MODEL)
    config = configure(trt, builder, plan, cache, capability)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BuildFailed(*errors)
    return engine, b"" if capability is not None else bytes(config.get_timing_cache().serialize())


def write_whole(path: Path, data: Any) -> None:
    """Write aside, sync, rename: an engine file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    aside.replace(path)


def places(trt: Any, folder: Path, into: Path, gpu: str) -> tuple[Path, Path]:
    """The files in ``into`` for the engine of this GPU, TensorRT and model, and for the timing cache."""
    plan, version = read_plan(folder), trt.__version__
    number = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if not tuple(plan["tensorrt_min"]) <= number < (plan["tensorrt_below"],):
        wanted = f"from {plan['tensorrt_min']} on, below {plan['tensorrt_below']}"
        raise BuildFailed({"message": f"TensorRT {version} is installed, the plan needs one {wanted}"})
    digest = hashlib.sha256((folder / PLAN).read_bytes() + (folder / MODEL).read_bytes()).hexdigest()
    slug = re.sub(r"[^A-Za-z0-9]+", "-", gpu).strip("-").lower()
    return into / f"{slug}-trt{version}-{digest[:16]}.engine", into / f"{slug}-trt{version}-{CACHE}"


def prepare(trt: Any, folder: Path, into: Path, gpu: str) -> Path:
    """The engine in ``into``, built where it is not there. The timing cache makes the next build shorter."""
    path, cache = places(trt, folder, into, gpu)
    if not path.exists():
        engine, timings = build(trt, folder, cache.read_bytes() if cache.exists() else b"")
        write_whole(cache, timings)
        write_whole(path, engine)
    return path


def main() -> None:
    options = argparse.ArgumentParser(description="Build the TensorRT engine of this folder on this device.")
    options.add_argument("--folder", type=Path, default=Path(__file__).parent, help="with model and plan")
    options.add_argument("--into", type=Path, help="where the engine goes (default: the folder)")
    given = options.parse_args()
    try:
        import tensorrt as trt

        print(prepare(trt, given.folder, given.into or given.folder, gpu_name()))
    except (BuildFailed, ImportError, OSError, RuntimeError) as error:
        sys.exit(f"no engine was built: {error}")


if __name__ == "__main__":
    main()
