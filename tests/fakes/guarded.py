"""Candidates for the tests of the fallback chain: small real models on disk, opened by real engines."""

import time
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgekiln.runtime.vocabulary import Candidate, Rung
from fakes.guard_engine import NAME, ORDERS
from fakes.runtime_bundle import Part, write

SHAPE = (1, 3, 32, 32)


def candidate(folder, name="first", *, engine="onnxruntime", graph=None, seed=0, expected_ms=None):
    """One of ``network()`` or ``graph``, in ``folder/name``, by a real engine or the one that misbehaves."""
    real = "onnxruntime" if engine == NAME else engine
    part = Part(name, engine=real, graph=graph, seed=seed, channels=4)
    where = Path(folder) / name
    artifact = write(part, where)
    rung = Rung(id=name, artifact_id=name, quality=1.0, quality_of="the test's", expected_ms=expected_ms)
    artifact = artifact.__class__(
        **{f: getattr(artifact, f) for f in artifact.__struct_fields__} | {"id": name}
    )
    return Candidate(rung=rung, artifact=artifact, folder=str(where), engine=engine, threads=1)


def order(candidate, what):
    """Tell a ``guard`` engine how to behave from its next call on."""
    path = Path(candidate.folder) / ORDERS
    aside = path.with_suffix(".new")
    aside.write_text(what)
    aside.replace(path)


def model_of(candidate):
    return Path(candidate.folder) / candidate.artifact.entry


def picture(value=None):
    shape = SHAPE
    return {"x": np.full(shape, value, np.float32) if value is not None else np.ones(shape, np.float32) / 3}


def divides():
    """``y = x / x``: NaN where the input is 0, else 1."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Div", ["x", "x"], ["y"])],
        "divides",
        [value("x", TensorProto.FLOAT, list(SHAPE))],
        [value("y", TensorProto.FLOAT, list(SHAPE))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def outer():
    """``x`` (n, 1) to the sum of all products, over activations of n * n floats."""
    value = helper.make_tensor_value_info
    axes = numpy_helper.from_array(np.array([0, 1], np.int64), "axes")
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "t"], ["all"]),
            helper.make_node("Relu", ["all"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "axes"], ["y"], keepdims=0),
        ],
        "outer",
        [value("x", TensorProto.FLOAT, ["n", 1])],
        [value("y", TensorProto.FLOAT, [])],
        [axes],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def eventually(true, seconds=20.0, tell=lambda: "it does not hold"):
    """Wait until ``true()`` holds; whatever it gave. Fails after ``seconds`` with what ``tell()`` says."""
    until = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < until, f"not within {seconds} s: {tell()}"
        time.sleep(0.01)
    return found


def nothing_more(before):
    """Whether this process holds no more than ``before``: what an earlier test left may go meanwhile."""
    return all(n <= before[name] for name, n in held().items())


def is_running(pid):
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children():
    """What this process's children, zombies included, were started as, by pid and the tick of their start:
    a pid is given out again.

    A thread that ends meanwhile hands its children to another one, perhaps to one already read: then all
    is read again.
    """
    while True:
        found = []
        try:
            for task in Path("/proc/self/task").iterdir():
                found += (task / "children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        return dict(sorted(filter(None, map(_known, found))))


def _known(pid):
    """((pid, start), command line) of a process, its name and state where it is a zombie; None of none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
    except OSError:
        return None
    head, _, tail = stat.rpartition(")")
    state, *rest = tail.split()
    told = words.decode(errors="replace") or f"{head.partition('(')[2]}, in state {state}"
    return (int(pid), int(rest[18])), told


def count(folder):
    return sum(1 for _ in Path(folder).iterdir())


def held():
    """What this process holds that could leak: descriptors, threads, children, names in /dev/shm."""
    return {
        "handles": count("/proc/self/fd"),
        "threads": count("/proc/self/task"),
        "children": len(children()),
        "shared": count("/dev/shm"),
    }
