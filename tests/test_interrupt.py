"""Ctrl-C and SIGKILL in a real build: nothing half-written, nothing left running, nothing done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edgekiln.files import sha256_file
from fakes import digits
from fakes.command import Kiln, contents

RECIPES = ("fp32", "int8-static-minmax", "int8-nncf-mixed")
STEPS = (
    "",
    "read the model and the data",
    "optimise the graph",
    "run the float model over the data",
    "make  host · onnxruntime · fp32",
    "prove host · onnxruntime · fp32",
    "make  host · onnxruntime · int8-static-minmax",
    "prove host · onnxruntime · int8-static-minmax",
    "make  host · openvino · fp32",
    "prove host · openvino · fp32",
    "make  host · openvino · int8-nncf-mixed",
    "prove host · openvino · int8-nncf-mixed",
    "time what runs on this machine",
)
"""The lines of the build below, in order; "" is its start. Each appears when its step has ended."""


class Killable(Kiln):
    """A build with a cache, an out folder and a folder for temporary files of its own."""

    def __init__(self, folder: Path, files: Path) -> None:
        super().__init__(folder, folder / "cache")
        self.out, self.scratch = folder / "out", folder / "tmp"
        self.scratch.mkdir()
        recipes = [part for name in RECIPES for part in ("--recipe", name)]
        data = digits.data_arguments(files)
        fixed = ["--threads", "1", "--samples", "60", "--out", "out"]
        self.arguments = ["build", str(files / "digits.onnx"), *data, *recipes, *fixed]

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "TMPDIR": str(self.scratch)}

    def stop(self, after: str, how: signal.Signals, delay: float = 0.05) -> tuple[int, str]:
        """Send ``how`` to the group once the line of step ``after`` appeared: exit code and stderr.

        The delay lets the next step begin; without a line the verb's packages are being loaded.
        """
        child = self.start(*self.arguments)
        said = ""
        assert child.stderr is not None
        for line in iter(child.stderr.readline, "") if after else ():
            said += line
            if line.rstrip().endswith(after):
                break
        if after:
            time.sleep(delay)
        else:
            _until_it_loads_numpy(child.pid)
        os.killpg(child.pid, how)
        _, rest = child.communicate(timeout=60)
        return child.returncode, said + rest

    def finished(self) -> dict[str, int]:
        """The steps in the cache and when each was written, after a check that every one is whole."""
        found = {}
        for record in sorted(self.cache.glob("*/*/step.json")):
            for file in msgspec.json.decode(record.read_bytes())["files"]:
                assert sha256_file(record.parent / file["path"]) == file["sha256"]
            found[record.parent.relative_to(self.cache).as_posix()] = record.stat().st_mtime_ns
        return found

    def running(self) -> list[str]:
        """Command lines of the processes that outlive this build.

        A worker that was just being started when the key struck sees that its parent is gone as soon as its
        interpreter is up, so it is given the time for that.
        """
        deadline = time.monotonic() + 5
        while (found := list(_processes(f"TMPDIR={self.scratch}"))) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found


def _until_it_loads_numpy(pid: int) -> None:
    """Before any package of its verb, edgekiln takes the key in hand."""
    deadline = time.monotonic() + 60
    while "numpy" not in Path(f"/proc/{pid}/maps").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)


def _processes(marker: str) -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
            if marker.encode() in variables:
                yield (process / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it ended meanwhile
            continue


@pytest.fixture
def build(tmp_path: Path, digit_files: Path) -> Killable:
    return Killable(tmp_path, digit_files)


def test_ctrl_c_in_any_step_ends_with_130_leaves_nothing_half_written_and_the_next_run_goes_on(
    build: Killable,
) -> None:
    steps: dict[str, int] = {}
    for after in STEPS[:-1]:
        code, said = build.stop(after, signal.SIGINT)
        assert code == 130, (after, code, said)
        assert "Traceback" not in said, (after, said)
        assert "Exception ignored" not in said, (after, said)
        assert said.count("interrupted: finished steps are kept") == 1, (after, said)
        assert not list(build.cache.glob("*/.*")), after
        assert not build.out.exists(), after
        assert not list(build.scratch.iterdir()), after
        assert not build.running(), after
        before, steps = steps, build.finished()
        assert before.items() <= steps.items(), f"after '{after}' a finished step was done again"
        assert set(contents(build.cache)) == {
            f"{step}/{name}" for step in steps for name in contents(build.cache / step)
        }
    assert {name.split("/")[0] for name in steps} >= {"import", "graph", "variant", "artifact", "judge"}
    done = build(*build.arguments)
    assert done.code == 0, done.stderr
    assert steps.items() <= build.finished().items()
    assert sorted(contents(build.out)) == [
        "bundles/host.edgekiln", "calibration.npz", "decision.json", "evidence.json", "report.html",
    ]  # fmt: skip


@pytest.mark.parametrize("delay", [0.5, 1.5, 3.0])
def test_ctrl_c_while_timing_ends_every_worker(
    build: Killable, digit_files: Path, shared_cache: Path, delay: float
) -> None:
    build.cache = shared_cache
    build.arguments += ["--samples", str(20000 + int(delay * 10))]  # long, and new to the cache
    code, said = build.stop("prove host · openvino · int8-nncf-mixed", signal.SIGINT, delay)
    assert code == 130, said
    assert "Traceback" not in said
    assert not build.running()
    assert not list(build.scratch.iterdir())
    assert not build.out.exists()


def test_a_killed_build_goes_on_where_it_stopped(build: Killable) -> None:
    build.arguments += ["--target", "onnxruntime"]
    code, _ = build.stop("prove host · onnxruntime · fp32", signal.SIGKILL)
    assert code == -signal.SIGKILL
    time.sleep(0.2)
    assert not build.running()
    kept = build.finished()
    assert {name.split("/")[0] for name in kept} >= {"import", "graph", "artifact", "judge"}
    assert not build.out.exists()
    done = build(*build.arguments)
    assert done.code == 0, done.stderr
    assert kept.items() <= build.finished().items()


def test_a_closed_pipe_is_no_error(kiln: Kiln) -> None:
    child = subprocess.Popen(
        kiln.command("devices", "--json"),
        cwd=kiln.folder,
        env=kiln.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.close()
    assert child.stderr is not None
    said = child.stderr.read()
    assert (child.wait(timeout=30), said) == (0, b"")


def test_an_interrupt_that_a_librarys_import_swallows_is_not_lost(tmp_path: Path) -> None:
    """As openvino's native module does: KeyboardInterrupt goes in, ImportError comes out."""
    import sys

    from fakes.command import SOURCE

    (tmp_path / "swallower.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    [None for _ in range(10**7)]\n"
        "except KeyboardInterrupt:\n    raise ImportError('initialization failed')\n"
    )
    (tmp_path / "work.py").write_text(
        "from pathlib import Path\n"
        "from edgekiln import interrupt\n"
        "from edgekiln.cache import step\n"
        "from edgekiln.records import Pass\n\n\n"
        "def produce(into):\n"
        "    try:\n        import swallower\n    except ImportError:\n        pass\n"
        "    return Pass(name='spoilt')\n\n\n"
        "with interrupt.watched():\n"
        "    try:\n        step(Path('cache'), 'graph', 'key', Pass, produce)\n"
        "    except KeyboardInterrupt:\n        print('interrupted')\n"
    )
    done = subprocess.run(
        [sys.executable, "work.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("interrupted\n", "")
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_a_second_ctrl_c_does_not_cut_the_tidying_up(tmp_path: Path) -> None:
    import sys

    from fakes.command import SOURCE

    (tmp_path / "work.py").write_text(
        "import os, signal\n"
        "from pathlib import Path\n"
        "from edgekiln import interrupt\n"
        "from edgekiln.files import folder_aside\n\n\n"
        "with interrupt.watched():\n"
        "    try:\n"
        "        with folder_aside(Path('final')) as aside:\n"
        "            try:\n"
        "                (aside / 'half').write_text('half')\n"
        "                os.kill(os.getpid(), signal.SIGINT)\n"
        "            finally:\n"
        "                os.kill(os.getpid(), signal.SIGINT)\n"
        "                [None for _ in range(10**6)]\n"
        "    except KeyboardInterrupt as error:\n"
        "        print('interrupted', error.__context__)\n"
    )
    done = subprocess.run(
        [sys.executable, "work.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("interrupted None\n", "")
    assert [p.name for p in tmp_path.iterdir() if p.name != "work.py"] == []
