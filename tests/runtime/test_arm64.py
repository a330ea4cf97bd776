"""A bundle for an arm64 board, executed as arm64 code: its hashes, golden outputs and predictions, in QEMU.

``make emulator`` prepares the emulated machine; where that was not done these tests are skipped and
say so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fakes import digits
from fakes.command import Kiln

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "arm64.sh"
READY = (ROOT / "build" / "arm64" / ".ready").exists() and shutil.which("qemu-aarch64-static") is not None

pytestmark = pytest.mark.skipif(not READY, reason="no emulated arm64 machine: run make emulator")


def emulated(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPT), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module", params=["fp32", "int8-static-mse"])
def bundle(
    request: pytest.FixtureRequest,
    digit_files: Path,
    shared_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    where = tmp_path_factory.mktemp("arm64")
    order = ["--device", "raspberry-pi-5", "--target", "onnxruntime", "--recipe", request.param]
    data = digits.data_arguments(digit_files)
    done = Kiln(where, shared_cache)("build", digit_files / "digits.onnx", *data, *order, "--out", "out")
    assert done.code == 0, done.stderr
    return where / "out" / "bundles" / "raspberry-pi-5.edgekiln"


def test_the_golden_outputs_hold_on_arm64(bundle: Path) -> None:
    done = emulated("verify", bundle)
    assert done.returncode == 0, done.stderr
    assert "golden outputs hold" in done.stdout


def test_a_damaged_bundle_is_refused_there_too(bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.edgekiln"
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 0xFF
    broken.write_bytes(bytes(data))
    assert emulated("verify", broken).returncode == 2


def test_it_predicts_what_this_machine_predicts(bundle: Path, digit_files: Path, kiln: Kiln) -> None:
    picture = digit_files / "data" / "1500.png"
    there, here = emulated("run", bundle, picture), kiln("run", bundle, picture)
    assert there.returncode == 0, there.stderr
    assert there.stdout.split()[:5] == here.stdout.split()[:5], (there.stdout, here.stdout)
