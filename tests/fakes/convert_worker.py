"""The real worker with targets that end badly, or well: ``python tests/fakes/convert_worker.py``."""

import ctypes
import os
import sys
import time
from pathlib import Path

from edgekiln.compile import worker
from edgekiln.compile.targets import TARGETS, Conversion
from edgekiln.errors import BadInput, ConversionFailed, MissingExtra
from edgekiln.records import Artifact
from fakes.variants import artifact


class _Target:
    """A row of the table with ``convert`` in its place."""

    def __init__(self, convert):
        self.convert = convert


def sound(order: Conversion, into: Path) -> Artifact:
    """Chatters on stdout, as converters do, and says which process it was."""
    print("converting, 100 %")
    os.write(1, b"from the depths of C\n")
    Path("left-in-the-working-folder").write_text("x")
    (into / "model.bin").write_bytes(str(os.getpid()).encode())
    return artifact("model.bin", "fake", threads=int(os.environ["OMP_NUM_THREADS"]))


def crashing(order: Conversion, into: Path) -> Artifact:
    sys.stderr.write("loading op 17\nop 17 is not what I expected\n")
    sys.stderr.flush()
    ctypes.string_at(0)
    raise AssertionError("unreachable")


def hanging(order: Conversion, into: Path) -> Artifact:
    sys.stderr.write("optimising, pass 1\n")
    sys.stderr.flush()
    time.sleep(600)
    raise AssertionError("unreachable")


def greedy(order: Conversion, into: Path) -> Artifact:
    held = []
    for _ in range(200):
        held.append(bytearray(os.urandom(1 << 20)) * 16)
        time.sleep(0.02)
    raise AssertionError("nobody stopped it")


def refusing(order: Conversion, into: Path) -> Artifact:
    raise ConversionFailed("converting", "graph.onnx", "op Foo is unknown", "Leave Foo out")


def lacking(order: Conversion, into: Path) -> Artifact:
    raise MissingExtra("converting", "graph.onnx", "coreml")


def misled(order: Conversion, into: Path) -> Artifact:
    raise BadInput("converting", "graph.onnx", "it leaves its folder", "Keep it inside")


def surprised(order: Conversion, into: Path) -> Artifact:
    raise KeyError("aten.foo")


def full(order: Conversion, into: Path) -> Artifact:
    raise OSError(28, "No space left on device")


CONVERTERS = (sound, crashing, hanging, greedy, refusing, lacking, misled, surprised, full)

if __name__ == "__main__":
    TARGETS.update({f.__name__: _Target(f) for f in CONVERTERS})
    worker.main()
