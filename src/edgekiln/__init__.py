"""edgekiln: one trained model in; verified, measured packages for every edge device out.

The verbs of the command line as functions: ``build``, ``inspect``, ``verify``, ``run``, ``bench``,
``soak``, ``predict``, ``split``, ``doctor``; the catalogue is ``edgekiln.devices`` (``names``, ``load``).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# From 1.29 on, ONNX Runtime's wheels send the names and hashes of models to Microsoft unless this is set
# before they are imported. A model is its owner's secret; who wants to send it can set the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("NNCF_CI", "1")  # NNCF reports what it quantises over the network; this is its switch

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edgekiln.api import build, inspect, predict, split
    from edgekiln.benching import bench
    from edgekiln.diagnosis import doctor
    from edgekiln.runtime.once import run
    from edgekiln.soaking import soak
    from edgekiln.verification import verify

_VERBS = {
    "build": "edgekiln.api",
    "inspect": "edgekiln.api",
    "predict": "edgekiln.api",
    "split": "edgekiln.api",
    "bench": "edgekiln.benching",
    "doctor": "edgekiln.diagnosis",
    "run": "edgekiln.runtime.once",
    "soak": "edgekiln.soaking",
    "verify": "edgekiln.verification",
}

__all__ = [
    "__version__",
    "bench",
    "build",
    "doctor",
    "inspect",
    "predict",
    "run",
    "soak",
    "split",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Load a verb when it is first used, so that importing edgekiln costs next to nothing."""
    if name not in _VERBS:
        raise AttributeError(f"module 'edgekiln' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_VERBS[name]), name)
