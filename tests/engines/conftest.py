"""The fakes lie beside the rooms' tests, and small real models are exported once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TESTS = str(Path(__file__).parents[1])
if TESTS not in sys.path:
    sys.path.insert(0, TESTS)


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small classifier with a static batch of 1."""
    from fakes.networks import export

    return export(tmp_path_factory.mktemp("nets") / "net.onnx", dynamic_batch=False)


@pytest.fixture(scope="session")
def dynamic_net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small classifier with a dynamic batch."""
    from fakes.networks import export

    return export(tmp_path_factory.mktemp("nets") / "dynamic.onnx", dynamic_batch=True)
