"""The table of operators: the ONNX name and its translation."""

from __future__ import annotations

from edgekiln.compile.torch_graph import elementwise, layers, layout, recurrent, reductions, resize, windows
from edgekiln.compile.torch_graph.node import Translate

OPS: dict[str, Translate] = {
    **elementwise.OPS,
    **layers.OPS,
    **layout.OPS,
    **recurrent.OPS,
    **reductions.OPS,
    **resize.OPS,
    **windows.OPS,
}
"""Operators of the default domain. Shape, Size, EyeLike, If and Loop are handled when the graph loads."""
