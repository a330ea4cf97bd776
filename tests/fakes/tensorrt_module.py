"""A whole stand-in for NVIDIA's ``tensorrt`` module and ``cuda.bindings.runtime``, on the CPU.

``TensorRT("10.3.0")`` has the attributes that the builder and the engine use. It parses with onnx, records
what it was asked for in ``calls``, and executes with ONNX Runtime: the engine's device memory is host
memory that ``Cuda`` hands out, so addresses, copies, shapes and types must be right for numbers to be.
"""

from __future__ import annotations

import copy
import ctypes
import enum
import json
from types import SimpleNamespace
from typing import Any

import numpy as np


class Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)


class ILogger:
    ERROR, WARNING = Severity.ERROR, Severity.WARNING

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class Logger(ILogger):
    def __init__(self, least: Severity) -> None:
        self.least = least


class TensorIOMode(enum.Enum):
    INPUT, OUTPUT = range(2)


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class BuilderFlag(enum.Enum):
    TF32 = 0


class StronglyTyped(enum.IntEnum):
    STRONGLY_TYPED = 0


class TensorRT:
    """The module of one version. ``own_cache`` is the timing cache header this machine accepts."""

    ILogger, Logger, TensorIOMode = ILogger, Logger, TensorIOMode
    MemoryPoolType, BuilderFlag = MemoryPoolType, BuilderFlag

    def __init__(self, version: str, refuse_build: str = "", own_cache: bytes = b"orin") -> None:
        self.__version__ = version
        self.calls: list[tuple[Any, ...]] = []
        self.refuse_build, self.own_cache = refuse_build, own_cache
        # 11 would keep the flag for compatibility; a later one may drop it, as here.
        self.NetworkDefinitionCreationFlag = StronglyTyped if version.startswith("10") else SimpleNamespace()

    def Builder(self, logger: ILogger) -> _Builder:  # noqa: N802
        return _Builder(self, logger)

    def OnnxParser(self, network: SimpleNamespace, logger: ILogger) -> _Parser:  # noqa: N802
        return _Parser(self, network)

    def Runtime(self, logger: ILogger) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(deserialize_cuda_engine=_Engine.read)

    @staticmethod
    def nptype(kind: str) -> type:
        return {"FLOAT": np.float32, "INT64": np.int64}[kind]


class _Parser:
    def __init__(self, trt: TensorRT, network: SimpleNamespace) -> None:
        self.trt, self.network, self.num_errors = trt, network, 0

    def parse_from_file(self, path: str) -> bool:
        import onnx

        self.trt.calls.append(("parse", path))
        try:
            self.network.model = onnx.load(path)
        except Exception as error:
            self.num_errors, self.message = 1, str(error)
            return False
        return True

    def get_error(self, index: int) -> SimpleNamespace:
        assert index == 0
        return SimpleNamespace(
            node_operator=lambda: "Conv", node_name=lambda: "first", desc=lambda: self.message
        )


class _Builder:
    def __init__(self, trt: TensorRT, logger: ILogger) -> None:
        self.trt, self.logger = trt, logger

    def create_network(self, flags: int) -> SimpleNamespace:
        self.trt.calls.append(("create_network", flags))
        return SimpleNamespace(model=None)

    def create_builder_config(self) -> _Config:
        return _Config(self.trt)

    def create_optimization_profile(self) -> SimpleNamespace:
        shapes: dict[str, Any] = {}
        return SimpleNamespace(shapes=shapes, set_shape=lambda name, *three: shapes.__setitem__(name, three))

    def build_serialized_network(self, network: SimpleNamespace, config: _Config) -> memoryview | None:
        self.trt.calls.append(("build", config.builder_optimization_level))
        if self.trt.refuse_build:
            self.logger.log(Severity.ERROR, self.trt.refuse_build)
            return None
        profiles = [{n: [list(s) for s in three] for n, three in p.items()} for p in config.profiles]
        head = json.dumps(profiles).encode()
        body: bytes = network.model.SerializeToString()
        return memoryview(len(head).to_bytes(8, "big") + head + body)


class _Config:
    def __init__(self, trt: TensorRT) -> None:
        self.trt = trt
        self.builder_optimization_level: int | None = None
        self.profiles: list[dict[str, Any]] = []
        self.cache: bytes | None = None

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        self.trt.calls.append(("memory", pool.name, size))

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.trt.calls.append(("clear_flag", flag.name))

    def add_optimization_profile(self, profile: SimpleNamespace) -> int:
        if any(not a <= b <= c for three in profile.shapes.values() for a, b, c in zip(*three, strict=True)):
            return -1
        self.profiles.append(profile.shapes)
        self.trt.calls.append(("profile", dict(profile.shapes)))
        return len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.trt.calls.append(("cache", cache))
        if cache and not cache.startswith(self.trt.own_cache):
            return False
        self.cache = cache or self.trt.own_cache
        return True

    def get_timing_cache(self) -> SimpleNamespace:
        assert self.cache is not None
        return SimpleNamespace(serialize=lambda: (self.cache or b"") + b"+timings")


class _Engine:
    """A deserialised engine, or one of its contexts; executes the ONNX bytes that it carries."""

    def __init__(self, data: bytes) -> None:
        import onnxruntime

        size = int.from_bytes(data[:8], "big")
        self.profiles = json.loads(data[8 : 8 + size])
        self.session = onnxruntime.InferenceSession(data[8 + size :], providers=["CPUExecutionProvider"])
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        self.outputs = [o.name for o in self.session.get_outputs()]
        self.num_io_tensors = len(self.inputs) + len(self.outputs)
        # As the real one: an engine without dynamic axes has one profile, made by the builder.
        self.num_optimization_profiles = max(1, len(self.profiles))
        self.active_optimization_profile = 0
        self.switches: list[int] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    @staticmethod
    def read(data: bytes) -> _Engine | None:
        try:
            return _Engine(data)
        except Exception:
            return None

    def create_execution_context(self) -> _Engine:
        """Each context has its own shapes, addresses and profile; ``switches`` lists those of all."""
        context = copy.copy(self)
        context.shapes, context.addresses = {}, {}
        return context

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_dtype(self, name: str) -> str:
        return "FLOAT"

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self.profiles:
            least, _, most = self.profiles[self.active_optimization_profile][name]
            if not all(a <= s <= b for a, s, b in zip(least, shape, most, strict=True)):
                return False
        self.shapes[name] = shape
        return True

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.profiles[index][name]]

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        if not 0 <= index < self.num_optimization_profiles:
            return False
        self.active_optimization_profile = index
        self.switches.append(index)
        self.shapes.clear()
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        zeros = {n: np.zeros(self.shapes[n], dtype=np.float32) for n in self.inputs}
        return tuple(self.session.run([name], zeros)[0].shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        feeds = {}
        for name in self.inputs:
            count = int(np.prod(self.shapes[name]))
            memory = (ctypes.c_float * count).from_address(self.addresses[name])
            feeds[name] = np.array(memory, dtype=np.float32).reshape(self.shapes[name])
        for name, value in zip(self.outputs, self.session.run(self.outputs, feeds), strict=True):
            ctypes.memmove(self.addresses[name], value.ctypes.data, value.nbytes)
        return True


class Cuda:
    """``cuda.bindings.runtime``: device memory is host memory, and every allocation is counted."""

    class cudaMemcpyKind(enum.IntEnum):  # noqa: N801
        cudaMemcpyHostToDevice = 1  # noqa: N815
        cudaMemcpyDeviceToHost = 2  # noqa: N815

    def __init__(self, memory_bytes: int = 1 << 30) -> None:
        self.memory_bytes = memory_bytes
        self.blocks: dict[int, Any] = {}
        self.streams: set[int] = set()
        self.mallocs = self.created = 0

    def cudaMalloc(self, size: int) -> tuple[int, int]:  # noqa: N802
        if size > self.memory_bytes:
            return 2, 0
        block = (ctypes.c_char * size)()
        self.blocks[ctypes.addressof(block)] = block
        self.mallocs += 1
        return 0, ctypes.addressof(block)

    def cudaFree(self, pointer: int) -> tuple[int]:  # noqa: N802
        del self.blocks[pointer]
        return (0,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:  # noqa: N802
        device = to if kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice else source
        assert stream in self.streams
        assert size <= len(self.blocks[device])
        ctypes.memmove(to, source, size)
        return (0,)

    def cudaStreamCreate(self) -> tuple[int, int]:  # noqa: N802
        self.created += 1
        self.streams.add(self.created)
        return 0, self.created

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        assert stream in self.streams
        return (0,)

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:  # noqa: N802
        self.streams.remove(stream)
        return (0,)

    def cudaGetErrorName(self, status: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, {2: b"cudaErrorMemoryAllocation"}[status]
