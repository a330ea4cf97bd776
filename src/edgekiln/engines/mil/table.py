"""Every op that is interpreted: its name and its function."""

from __future__ import annotations

import functools

from edgekiln.engines.mil import (
    constants,
    control,
    conv,
    elementwise,
    indexing,
    moves,
    recurrent,
    reduction,
    resizing,
)
from edgekiln.engines.mil.values import Function

CONSTANTS: dict[str, Function] = dict(constants.OPS)
"""Evaluated once, when the package is opened."""

FLOW = frozenset({"cond", "while_loop", "read_state", "write_state", "coreml_update_state"})
"""Run by ``program``: they take blocks or states."""

# From this specification on a negative index is undefined (iOS 17).
_STRICT_FROM = 7

_PLAIN: dict[str, Function] = {
    **control.OPS,
    **conv.OPS,
    **elementwise.OPS,
    **indexing.OPS,
    **moves.OPS,
    **recurrent.OPS,
    **reduction.OPS,
    **resizing.OPS,
}

UNROUNDED = frozenset(moves.MOVES) | {"identity", "relu", "relu6", "gather", "max_pool", "select"}
"""Ops that hand on values they were given: what was rounded stays so, and the work is spared."""


def functions(opset: int) -> dict[str, Function]:
    """Op name to function, for CoreML5 (iOS 15) to CoreML9 as a number."""
    strict = opset >= _STRICT_FROM
    return {**_PLAIN, **{n: functools.partial(f, strict=strict) for n, f in indexing.STRICT.items()}}


def names() -> frozenset[str]:
    """Every op that is interpreted."""
    return frozenset(functions(0)) | frozenset(CONSTANTS) | FLOW | {"const"}
