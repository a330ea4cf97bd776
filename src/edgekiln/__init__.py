"""edgekiln: one trained model in; verified, measured packages for every edge device out.

The verbs of the command line as functions: ``build``, ``inspect``, ``verify``, ``run``, ``bench``,
``doctor``; the catalogue is ``edgekiln.devices`` (``names``, ``load``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edgekiln.api import build, inspect
    from edgekiln.benching import bench
    from edgekiln.diagnosis import doctor
    from edgekiln.runtime.once import run
    from edgekiln.verification import verify

_VERBS = {
    "build": "edgekiln.api",
    "inspect": "edgekiln.api",
    "bench": "edgekiln.benching",
    "doctor": "edgekiln.diagnosis",
    "run": "edgekiln.runtime.once",
    "verify": "edgekiln.verification",
}

__all__ = ["__version__", "bench", "build", "doctor", "inspect", "run", "verify"]


def __getattr__(name: str) -> Any:
    """Load a verb when it is first used, so that importing edgekiln costs next to nothing."""
    if name not in _VERBS:
        raise AttributeError(f"module 'edgekiln' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_VERBS[name]), name)
