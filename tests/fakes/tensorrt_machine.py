"""A machine with TensorRT 10.3, cuda-python and an Orin, as the environment of a process.

``environment(folder)`` makes the packages (``tensorrt_module``'s stand-ins) and the driver's library
(compiled from ``cpp/cuda_library.c``) below ``folder``, and gives the variables of a process that lives
there. Children of that process live there too, which is how an engine is built beside a session. While the
file ``hold`` lies in ``folder`` a build does not end; with the file ``refuse`` TensorRT refuses every graph.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

FAKES = Path(__file__).parent
TENSORRT = """
import sys, time
from pathlib import Path
sys.path.append({tests!r})
from fakes import tensorrt_module
here = Path(__file__).parent
class Machine(tensorrt_module.TensorRT):
    def Builder(self, logger):
        (here / "builds").open("a").write("one\\n")
        end = time.monotonic() + 60
        while (here / "hold").exists() and time.monotonic() < end:
            time.sleep(0.01)
        self.refuse_build = "Could not find any implementation" if (here / "refuse").exists() else ""
        return super().Builder(logger)
sys.modules[__name__] = Machine("10.3.0")
"""
RUNTIME = """
import sys
sys.path.append({tests!r})
from fakes import tensorrt_module
sys.modules[__name__] = tensorrt_module.Cuda()
"""


def environment(folder: Path) -> dict[str, str]:
    """The variables of a process on such a machine, whose user has an empty cache folder."""
    tests = str(FAKES.parent)
    bindings = folder / "cuda" / "bindings"
    bindings.mkdir(parents=True)
    (folder / "tensorrt.py").write_text(TENSORRT.format(tests=tests))
    (bindings / "runtime.py").write_text(RUNTIME.format(tests=tests))
    for package in (bindings, bindings.parent):
        (package / "__init__.py").touch()
    library = [str(folder / "libcuda.so.1"), str(FAKES / "cpp" / "cuda_library.c")]
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", *library], check=True)
    search = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", ""))))
    return {
        **os.environ,
        "PYTHONPATH": search,
        "LD_LIBRARY_PATH": str(folder),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }


def builds(folder: Path) -> int:
    """How many builds were begun there."""
    file = folder / "builds"
    return len(file.read_text().splitlines()) if file.exists() else 0
