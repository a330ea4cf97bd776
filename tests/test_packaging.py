"""The wheel: what lies in it, and that it works in an environment with the light core only."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
import uv

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "edgekiln"
HEAVY = ("torch", "onnxruntime", "onnx", "numpy", "openvino", "nncf", "tensorrt_rtx", "PIL")
EXTRAS = ("torch", "openvino", "nncf", "tensorrt_rtx", "skimage", "pytest")

IMPORTED_BY_HELP = """
import contextlib, io, json, sys
from edgekiln.cli import main
sys.argv = ["edgekiln", "--help"]
shown = io.StringIO()
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(shown):
    main()
assert "build" in shown.getvalue()
print(json.dumps(sorted(sys.modules)))
"""


def build_wheel(into: Path) -> Path:
    """Build with the hatchling of this environment: no isolation, so nothing is downloaded."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(into)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = into.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def light(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an empty environment into which only the wheel and its core were installed."""
    environment = tmp_path_factory.mktemp("light") / "venv"
    python = environment / "bin" / "python"
    tool = uv.find_uv_bin()
    subprocess.run([tool, "venv", "--quiet", "--python", sys.executable, environment], check=True)
    command = [tool, "pip", "install", "--quiet", "--python", python, "-c", ROOT / "constraints.txt", wheel]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return python.parent


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    inside = {name for name in names(wheel) if ".dist-info/" not in name}
    source = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == source


def test_the_wheel_holds_the_data_that_the_code_reads(wheel: Path) -> None:
    inside = names(wheel)
    assert {"edgekiln/py.typed", "edgekiln/devices/catalogue/nvidia.toml"} <= inside
    assert any(name.startswith("edgekiln/report/templates/") for name in inside)


def test_the_wheel_names_its_licence_and_its_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = HeaderParser().parsestr(archive.read(f"{folder}/METADATA").decode())
        commands = archive.read(f"{folder}/entry_points.txt").decode()
        licence = archive.read(f"{folder}/licenses/LICENSE").decode()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in licence
    assert "edgekiln = edgekiln.cli:main" in commands


def test_the_light_core_asks_for_no_extra(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(path).decode())
    required = [line for line in metadata.get_all("Requires-Dist") or [] if "extra ==" not in line]
    assert required
    assert not [line for line in required if line.startswith(("torch", "openvino", "nncf", "tensorrt"))]


def test_two_builds_of_the_wheel_are_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    assert build_wheel(tmp_path).read_bytes() == wheel.read_bytes()


def test_the_installed_command_answers_with_the_light_core_only(light: Path) -> None:
    probe = f"import importlib.util as u; print([n for n in {EXTRAS} if u.find_spec(n)])"
    found = subprocess.run([light / "python", "-c", probe], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]", "the environment is not the light one"
    done = subprocess.run([light / "edgekiln", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "build" in done.stdout


def test_the_installed_catalogue_can_be_read(light: Path) -> None:
    done = subprocess.run([light / "edgekiln", "devices"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "raspberry-pi-5" in done.stdout


def test_help_imports_no_heavy_package() -> None:
    command = [sys.executable, "-c", IMPORTED_BY_HELP]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not set(HEAVY) & set(json.loads(done.stdout.splitlines()[-1]))
