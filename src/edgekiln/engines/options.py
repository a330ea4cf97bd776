"""An artifact's options as an engine may trust them: bundles come from strangers.

A value of a wrong type or outside its choices is BadInput with the values that there are; never handed on
to a runtime, whose own answer to a wrong value may be to ignore it.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgekiln.errors import BadInput
from edgekiln.records import Artifact

MAX_THREADS = 1024


def switch(artifact: Artifact, name: str, default: bool) -> bool:
    """Option ``name`` as yes or no. Raises BadInput for anything but true and false."""
    value = artifact.options.get(name, default)
    if not isinstance(value, bool):
        raise _bad(artifact, name, "Use true or false")
    return value


def choice(artifact: Artifact, name: str, known: Sequence[str], default: str) -> str:
    """Option ``name`` as one of ``known``. Raises BadInput for another value."""
    value = artifact.options.get(name, default)
    if not isinstance(value, str) or value not in known:
        raise _bad(artifact, name, f"Use one of {', '.join(known)}")
    return value


def number(artifact: Artifact, name: str, least: int, most: int, default: int) -> int:
    """Option ``name`` as a whole number from ``least`` to ``most``. Raises BadInput for anything else."""
    value = artifact.options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _bad(artifact, name, f"Use a whole number from {least} to {most}")
    return value


def thread_count(artifact: Artifact, given: int) -> int:
    """Threads to run on: option ``threads`` where it is fewer than what the caller gives, never more.

    The caller knows what else its machine has to do. Raises BadInput for what is no count.
    """
    return min(given, number(artifact, "threads", 1, MAX_THREADS, MAX_THREADS))


def _bad(artifact: Artifact, name: str, cure: str) -> BadInput:
    why = f"its option {name} is {str(artifact.options[name])[:80]!r}"
    return BadInput(f"opening with {artifact.engine}", artifact.entry, why, cure)
