"""ONNX Runtime on the CPU: fixed threads, no spinning unless the artifact asks for it.

What a session can be told is the artifact's options, as data; ``prove.tuning`` finds the best by measurement.

Also the proof engine of artifacts that another engine runs on their device.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Arrays
from edgekiln.engines.emulate import ARITHMETIC, emulate
from edgekiln.engines.options import choice, switch, thread_count
from edgekiln.errors import ConversionFailed, NotRunnableHere
from edgekiln.records import Artifact, Record

GRAPH_LEVELS = {"basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "all": "ORT_ENABLE_ALL"}
"""Values of ``graph_level``, and ONNX Runtime's names of them."""
DTYPES = {
    f"tensor({theirs})": np.dtype(own)
    for theirs, own in {
        "float": "float32",
        "double": "float64",
        **{n: n for n in ("float16", "bool", "int8", "int16", "int32", "int64")},
        **{n: n for n in ("uint8", "uint16", "uint32", "uint64")},
    }.items()
}
"""ONNX Runtime's tensor types that are arrays of numbers in NumPy too."""


class Session:
    """A session of ONNX Runtime as a runner."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._outputs = [o.name for o in session.get_outputs()]

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))

    def bind(self) -> InPlace | None:
        """The same session on the caller's memory; None where a tensor is no plain array of numbers."""
        ports = [*self._session.get_inputs(), *self._session.get_outputs()]
        return InPlace(self._session) if all(p.type in DTYPES for p in ports) else None

    def close(self) -> None:
        self._session = None


class InPlace:
    """A session that reads its inputs where the caller has them (``engines.bind``).

    Outputs of a fixed shape have one buffer for good; others get a new one from each call.
    """

    def __init__(self, session: Any) -> None:
        import onnxruntime as ort

        self._session = session
        self._binding = session.io_binding()
        self.takes = {
            i.name: tuple(n if isinstance(n, int) else None for n in i.shape) for i in session.get_inputs()
        }
        self._bound: dict[str, NDArray[Any]] = {}
        self._results: dict[str, NDArray[Any]] = {}
        for output in session.get_outputs():
            if all(isinstance(n, int) for n in output.shape):
                self._results[output.name] = np.zeros(output.shape, DTYPES[output.type])
                value = ort.OrtValue.ortvalue_from_numpy(self._results[output.name])
                self._binding.bind_ortvalue_output(output.name, value)
        self._open = [o.name for o in session.get_outputs() if o.name not in self._results]

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        for name, array in inputs.items():
            if self._bound.get(name) is not array:
                self._bound.pop(name, None)
                self._binding.bind_cpu_input(name, array)
                self._bound[name] = array
        for name in self._open:
            self._binding.bind_output(name)
        self._session.run_with_iobinding(self._binding)
        if not self._open:
            return dict(self._results)
        # In the order in which they were bound first: those of a fixed shape, then the others.
        others = self._binding.get_outputs()[len(self._results) :]
        return self._results | {n: v.numpy() for n, v in zip(self._open, others, strict=True)}

    def close(self) -> None:
        self._bound.clear()
        self._binding = self._session = None


class Bound(Session):
    """A session whose outputs stay bound to buffers that every call fills again; callers get copies.

    The copy is part of a call, and so of its measured time. Outputs of a shape that is not fixed are bound
    anew by each call.
    """

    def __init__(self, session: Any) -> None:
        super().__init__(session)
        self._binding = session.io_binding()
        self._fixed = all(isinstance(n, int) for o in session.get_outputs() for n in o.shape)
        self._bind()

    def _bind(self) -> None:
        self._binding.clear_binding_outputs()
        for name in self._outputs:
            self._binding.bind_output(name)

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        self._binding.clear_binding_inputs()
        for name, array in inputs.items():
            self._binding.bind_cpu_input(name, np.ascontiguousarray(array))
        if not self._fixed:
            self._bind()
        self._session.run_with_iobinding(self._binding)
        return dict(zip(self._outputs, self._binding.copy_outputs_to_cpu(), strict=True))

    def close(self) -> None:
        self._binding = None
        super().close()


def open(artifact: Artifact, folder: Path, threads: int) -> Session:
    """Open ``artifact.entry``. Options read, each with what holds where it is left out:

    ``threads`` (``threads``, and never more), ``spinning`` (False), ``graph_level`` (all; basic, extended),
    ``arena`` (True), ``mem_pattern`` (True), ``prepacking`` (True), ``io_binding`` (False),
    ``denormal_as_zero`` (False; the only one that may change an output), ``arithmetic``.

    Spinning threads win a little on an idle machine and lose half under contention, so it is an option
    of the artifact, never a silent default. Where ``arithmetic`` (fp16, bf16) is the device's and not this
    machine's, the graph is emulated (``engines.emulate``): its numbers are the device's, its speed is not.
    Raises NotRunnableHere when the runtime refuses the graph, BadInput for a bad option.
    """
    import onnxruntime as ort

    ort.set_default_logger_severity(3)
    options, bound = session_options(artifact, threads), switch(artifact, "io_binding", False)
    try:
        model = _emulation(folder / artifact.entry) if emulates(artifact) else str(folder / artifact.entry)
        session = _session(model, options)
    except Exception as error:
        why = error.why if isinstance(error, ConversionFailed) else str(error).strip().splitlines()[-1]
        raise NotRunnableHere(
            "opening with ONNX Runtime",
            artifact.entry,
            why,
            f"Check the graph, or the onnxruntime version (here {ort.__version__})",
        ) from error
    return Bound(session) if bound else Session(session)


_SHARED = "Attempt to replace the existing tensor"


def _session(model: str | bytes, options: Any) -> Any:
    """A session; where ONNX Runtime trips over shared weights, of the graph without them.

    Its exact way for a CPU without VNNI rewrites 8-bit weights once for each reader, under one name.
    """
    import onnxruntime as ort

    try:
        return ort.InferenceSession(model, sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if _SHARED not in str(error) or not isinstance(model, str):
            raise
        own = _with_own_weights(Path(model))
        return ort.InferenceSession(own, sess_options=options, providers=["CPUExecutionProvider"])


def _with_own_weights(path: Path) -> bytes:
    """The graph with a copy of each dequantised constant for each of its readers."""
    import onnx

    model = onnx.load(path)
    held = {i.name: i for i in model.graph.initializer}
    for one in [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in held]:
        readers = [n for n in model.graph.node if one.output[0] in n.input]
        for number, reader in enumerate(readers[1:]):
            copy = onnx.NodeProto()
            copy.CopyFrom(one)
            copy.name, copy.output[0] = f"{one.name}_own_{number}", f"{one.output[0]}_own_{number}"
            for at, name in enumerate(one.input):
                copy.input[at] = f"{name}_own_{number}"
                constant = onnx.TensorProto()
                constant.CopyFrom(held[name])
                constant.name = copy.input[at]
                model.graph.initializer.append(constant)
            for at, name in enumerate(reader.input):
                reader.input[at] = copy.output[0] if name == one.output[0] else name
            model.graph.node.insert(0, copy)
    whole: bytes = model.SerializeToString()
    return whole


def open_concurrent(artifact: Artifact, folder: Path, threads: int, calls: int) -> tuple[Session, ...]:
    """``calls`` runners of one session, whose ``run`` may be called from several threads at once.

    Each call gets ``threads`` / ``calls`` threads, rounded down and at least one. Options, errors: ``open``.
    """
    first = open(artifact, folder, max(1, threads // calls))
    return (first, *(type(first)(first._session) for _ in range(calls - 1)))


class Settings(Record, frozen=True, kw_only=True):
    """An artifact's options, checked and resolved: plain data that another process or machine can apply.

    ``graph_level`` is ONNX Runtime's own name of it, ``entries`` its session configuration.
    """

    threads: int
    graph_level: str
    arena: bool
    mem_pattern: bool
    io_binding: bool
    entries: dict[str, str]
    arithmetic: str = ""


def settings(artifact: Artifact, threads: int) -> Settings:
    """The options that ``open`` reads. Raises BadInput for a bad one."""
    level = choice(artifact, "graph_level", tuple(GRAPH_LEVELS), "all")
    entries = {
        "session.intra_op.allow_spinning": switch(artifact, "spinning", False),
        "session.disable_prepacking": not switch(artifact, "prepacking", True),
        "session.set_denormal_as_zero": switch(artifact, "denormal_as_zero", False),
        "session.x64quantprecision": not _seven_bits(artifact),
    }
    return Settings(
        threads=thread_count(artifact, threads),
        graph_level=GRAPH_LEVELS[level],
        arena=switch(artifact, "arena", True),
        mem_pattern=switch(artifact, "mem_pattern", True),
        io_binding=switch(artifact, "io_binding", False),
        entries={key: "1" if on else "0" for key, on in entries.items()},
        arithmetic=str(artifact.options.get("arithmetic", "")),
    )


def _seven_bits(artifact: Artifact) -> bool:
    """Whether its weights were given 7 bits if it was made for a CPU without VNNI (``targets.dialect``), so
    that products don't saturate there. All others are computed by ONNX Runtime's slower, exact way on such a
    CPU. One that was made for a CPU with VNNI looks the same here, and does saturate on one without."""
    return artifact.target == "onnxruntime" and artifact.recipe.startswith(("int8-static", "int8-mixed"))


def session_options(artifact: Artifact, threads: int) -> Any:
    """The artifact's options as ``onnxruntime.SessionOptions``. Raises BadInput for a bad one."""
    import onnxruntime as ort

    given = settings(artifact, threads)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = given.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, given.graph_level)
    options.enable_cpu_mem_arena = given.arena
    options.enable_mem_pattern = given.mem_pattern
    for key, value in given.entries.items():
        options.add_session_config_entry(key, value)
    return options


def emulates(artifact: Artifact) -> bool:
    """Whether ``open`` rounds by emulation: half precision, and not on the artifact's own kind of machine.

    An x86 CPU runs a float16 graph in float32 without saying so; Arm CPUs have ONNX Runtime's float16
    kernels, so there the artifact's own engine needs no emulation.
    """
    if artifact.options.get("arithmetic") not in ARITHMETIC:
        return False
    at_home = artifact.engine == "onnxruntime" and platform.machine() in {"aarch64", "arm64"}
    return not at_home


def _emulation(path: Path) -> bytes:
    import onnx

    graph: bytes = emulate(onnx.load(path)).SerializeToString()
    return graph


def float_artifact(entry: str, name: str) -> Artifact:
    """A float ONNX file as it is, for ONNX Runtime."""
    return Artifact(
        id=name,
        target="onnxruntime",
        recipe="fp32",
        engine="onnxruntime",
        proof_engine="onnxruntime",
        entry=entry,
        files=(),
        options={},
        tools={},
        precisions={},
    )
