"""Small real models, exported once a session."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier with a static batch of 1, as an ONNX file."""
    from fakes.networks import export

    return export(tmp_path_factory.mktemp("nets") / "net.onnx", dynamic_batch=False)


@pytest.fixture(scope="session")
def dynamic_net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a dynamic batch."""
    from fakes.networks import export

    return export(tmp_path_factory.mktemp("nets") / "dynamic.onnx", dynamic_batch=True)
