"""A device on loopback, and a small artifact to measure on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekiln.prove.remote import ssh
from edgekiln.records import Artifact
from fakes import measured, ssh_server


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ssh_server.Device]:
    with ssh_server.device(tmp_path / "device") as made:
        monkeypatch.setenv(ssh.CONFIG_VARIABLE, str(made.config))
        yield made


@pytest.fixture
def inputs() -> dict[str, NDArray[np.float32]]:
    return {"x": np.random.default_rng(0).standard_normal((1, 8, 32, 32)).astype(np.float32)}


@pytest.fixture
def artifact(tmp_path: Path) -> tuple[Artifact, Path]:
    """A convolution for ONNX Runtime, and the folder of its files."""
    return measured.conv(tmp_path / "model")
