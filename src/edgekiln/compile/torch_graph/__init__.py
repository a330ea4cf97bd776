"""An ONNX graph as a torch module that torch.export takes: the way to LiteRT, ExecuTorch and Core ML.

``load(path)`` gives the module. ``check_against(path, module)`` holds it against ONNX Runtime; a target
calls it before it converts, so that a wrong translation never ships.
"""

from __future__ import annotations

from edgekiln.compile.torch_graph.check import Parity, check_against
from edgekiln.compile.torch_graph.loading import Translated, load
from edgekiln.compile.torch_graph.table import OPS

__all__ = ["OPS", "Parity", "Translated", "check_against", "load"]
