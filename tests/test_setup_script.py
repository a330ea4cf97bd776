"""scripts/setup.sh, run in a scratch checkout against stand-in commands that note how they were called."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("bash", "sh", "cat", "cut", "dirname", "env", "grep", "mkdir", "chmod", "cp", "sha256sum")

# Each stand-in appends its name and arguments to $CALLS.
NOTE = '#!/bin/sh\necho "$(basename "$0") $*" >>"$CALLS"\n'
PYTHON = (
    '#!/bin/sh\necho "$(basename "$0") $*" >>"$CALLS"\n'
    'case "$*" in\n'
    '*version_info*"(3, 11)"*) exit "${TOO_OLD:-0}" ;;\n'
    "*version_info*) echo 3.11 ;;\n"
    '*ensurepip*) test -z "$NO_VENV" ;;\n'
    '*"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$BIN/note" .venv/bin/uv\n'
    '    echo "command = python3 -m venv $PWD/.venv" >.venv/pyvenv.cfg ;;\n'
    '*"pip install"*) exit "${PIP_FAILS:-0}" ;;\n'
    "esac\n"
)
APT = (
    NOTE + 'case "$*" in\n'
    '*install*chromium*) cp "$BIN/note" "$BIN/chromium" ;;\n'
    '*install*nodejs*) cp "$BIN/note" "$BIN/node" ;;\n'
    '*install*default-jdk*) cp "$BIN/note" "$BIN/java" ;;\n'
    "esac\n"
)
NPM = NOTE + 'exit "${NPM_FAILS:-0}"\n'
PROGRAMS = ("node", "java", "g++", "cmake", "ssh")


@dataclass(frozen=True)
class Checkout:
    folder: Path
    bin: Path

    def command(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def setup(self, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the script with nothing on the PATH but the stand-ins and a few tools."""
        known = {"PATH": str(self.bin), "BIN": str(self.bin), "CALLS": str(self.folder / "calls")}
        script = str(self.folder / "scripts" / "setup.sh")
        return subprocess.run(
            [script], env=known | environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )

    def calls(self) -> list[str]:
        """What was called since the last look."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line for line in lines if " -c import" not in line]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    folder, commands = tmp_path / "checkout", tmp_path / "bin"
    (folder / "scripts").mkdir(parents=True)
    commands.mkdir()
    for name in ("pyproject.toml", "constraints.txt", "package-lock.json", "scripts/setup.sh"):
        shutil.copy(ROOT / name, folder / name)
    for name in (*TOOLS, "basename"):
        found = shutil.which(name)
        assert found is not None
        (commands / name).symlink_to(found)
    made = Checkout(folder, commands)
    for name in ("note", "chromium", *PROGRAMS):
        made.command(name, NOTE)
    made.command("npm", NPM)
    made.command("python3", PYTHON)
    made.command("id", "#!/bin/sh\necho 0\n")
    return made


def test_torch_is_installed_by_pip_before_uv_does_the_rest(checkout: Checkout) -> None:
    done = checkout.setup()
    assert done.returncode == 0, done.stderr
    installs = [line for line in checkout.calls() if "pip install" in line]
    assert len(installs) == 2
    assert installs[0].startswith("python -m pip install")
    assert "-c constraints.txt torch==2.13.0" in installs[0]
    assert installs[1].startswith("uv pip install")
    assert "-c constraints.txt torch==2.13.0 -e .[dev]" in installs[1]
    assert not [line for line in installs if "index" in line or "find-links" in line]


def test_a_second_run_calls_nothing(checkout: Checkout) -> None:
    checkout.setup()
    checkout.calls()
    done = checkout.setup()
    assert (done.returncode, done.stdout, checkout.calls()) == (0, "", [])


def test_changed_constraints_are_installed_into_the_same_environment(checkout: Checkout) -> None:
    checkout.setup()
    checkout.calls()
    (checkout.folder / "constraints.txt").write_text("torch==2.13.0\n")
    assert checkout.setup().returncode == 0
    calls = checkout.calls()
    assert [line for line in calls if line.startswith("uv pip install")]
    assert not [line for line in calls if "-m venv" in line]


def test_an_environment_that_was_moved_is_made_anew(checkout: Checkout) -> None:
    checkout.setup()
    moved = Checkout(checkout.folder.rename(checkout.folder.with_name("moved")), checkout.bin)
    moved.calls()
    assert moved.setup().returncode == 0
    assert [line for line in moved.calls() if "-m venv --clear .venv" in line]


def test_a_failed_installation_is_tried_again(checkout: Checkout) -> None:
    assert checkout.setup(PIP_FAILS="1").returncode != 0
    checkout.calls()
    assert checkout.setup().returncode == 0
    assert [line for line in checkout.calls() if line.startswith("uv pip install")]


def test_an_old_python_is_refused_with_the_cure(checkout: Checkout) -> None:
    done = checkout.setup(TOO_OLD="1")
    assert done.returncode == 1
    assert "Python 3.11" in done.stderr
    assert "apt-get install python3 python3-venv" in done.stderr


def test_the_browser_is_installed_when_root_can(checkout: Checkout) -> None:
    (checkout.bin / "chromium").unlink()
    checkout.command("apt-get", APT)
    done = checkout.setup()
    assert done.returncode == 0
    assert "MISSING" not in done.stderr
    apt = [line for line in checkout.calls() if line.startswith("apt-get")]
    assert [line.split()[1] for line in apt] == ["update", "install"]


def test_a_missing_browser_is_named_and_the_rest_goes_on(checkout: Checkout) -> None:
    (checkout.bin / "chromium").unlink()
    done = checkout.setup()
    assert done.returncode == 0
    assert "apt-get install chromium" in done.stderr
    assert [line for line in checkout.calls() if line.startswith("uv pip install")]


def test_a_missing_venv_module_is_named_with_its_package(checkout: Checkout) -> None:
    done = checkout.setup(NO_VENV="1")
    assert done.returncode == 1
    assert "apt-get install python3.11-venv" in done.stderr


def test_packages_from_npm_are_those_of_the_lock_file_and_run_no_scripts(checkout: Checkout) -> None:
    assert checkout.setup().returncode == 0
    (line,) = [line for line in checkout.calls() if line.startswith("npm ")]
    assert line.startswith("npm ci --ignore-scripts")
    lock = (ROOT / "package-lock.json").read_text()
    assert "://" not in lock  # it names no registry
    assert lock.count('"integrity": "sha512-') == lock.count('"node_modules/')


def test_a_registry_that_does_not_answer_is_asked_again_and_the_rest_is_there(checkout: Checkout) -> None:
    done = checkout.setup(NPM_FAILS="1")
    assert done.returncode == 0
    assert "MISSING: the packages of package.json" in done.stderr
    checkout.calls()
    done = checkout.setup()
    assert "MISSING" not in done.stderr
    assert [line for line in checkout.calls() if line.startswith("npm ci")]
    assert checkout.setup().stdout == ""


def test_programs_that_are_absent_are_installed_when_root_can(checkout: Checkout) -> None:
    for name in ("node", "java"):
        (checkout.bin / name).unlink()
    checkout.command("apt-get", APT)
    done = checkout.setup()
    assert "MISSING" not in done.stderr
    installed = [line.split()[-1] for line in checkout.calls() if line.startswith("apt-get install")]
    assert installed == ["nodejs", "default-jdk-headless"]


def test_each_program_that_stays_absent_is_named_with_its_package(checkout: Checkout) -> None:
    for name in (*PROGRAMS, "npm"):
        (checkout.bin / name).unlink()
    done = checkout.setup()
    assert done.returncode == 0
    for package in ("nodejs", "npm", "default-jdk-headless", "g++", "cmake"):
        assert f"apt-get install {package}\n" in done.stderr
    assert "MISSING: the packages of package.json" in done.stderr
    assert [line for line in checkout.calls() if line.startswith("uv pip install")]


def test_the_lock_file_holds_the_versions_of_package_json() -> None:
    wanted = json.loads((ROOT / "package.json").read_text())["dependencies"]
    locked = json.loads((ROOT / "package-lock.json").read_text())["packages"]
    assert wanted == {"kotlin-compiler": "2.4.20", "onnxruntime-web": "1.30.0"}
    assert {name: locked[f"node_modules/{name}"]["version"] for name in wanted} == wanted
