"""Run a script as on a machine with TensorRT 10.3: ``python with_tensorrt.py SCRIPT [ARGUMENT ...]``."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from fakes.tensorrt_module import TensorRT

sys.modules["tensorrt"] = TensorRT("10.3.0")  # type: ignore[assignment]
sys.argv = sys.argv[1:]
sys.path[0] = str(Path(sys.argv[0]).parent)
runpy.run_path(sys.argv[0], run_name="__main__")
