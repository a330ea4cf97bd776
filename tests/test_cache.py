"""The cache gives back what was finished, redoes what was not, and never serves what is damaged."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekiln.cache import code_hash, default_root, step
from edgekiln.errors import ConversionFailed, MachineFault
from edgekiln.records import Record, Rejected

PACKAGE = Path(sys.modules["edgekiln"].__file__).parent


class Made(Record, frozen=True, kw_only=True):
    number: float
    text: str = ""


class Producer:
    """Writes two files and counts how often it was asked."""

    def __init__(self, number=0.1):
        self.number, self.calls = number, 0

    def __call__(self, folder):
        self.calls += 1
        (folder / "sub").mkdir()
        (folder / "sub" / "weights.bin").write_bytes(bytes(range(256)) * 40)
        (folder / "graph").write_text("graph")
        return Made(number=self.number, text='ü \u2028 \\ "')


def identities(folder):
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*")}


def everything(root):
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*"))


def test_a_finished_step_is_given_back_and_no_file_is_touched(tmp_path):
    produce = Producer()
    folder, made, there = step(tmp_path, "make", {"a": 1}, Made, produce)
    before = identities(tmp_path)
    again, same, hit = step(tmp_path, "make", {"a": 1}, Made, produce)
    assert (there, hit, produce.calls) == (False, True, 1)
    assert (again, same) == (folder, made)
    assert identities(tmp_path) == before
    assert len(list((tmp_path / "make").iterdir())) == 1


def test_another_key_or_another_name_is_another_step(tmp_path):
    produce = Producer()
    folders = {
        step(tmp_path, name, key, Made, produce)[0]
        for name in ("make", "judge")
        for key in ([1, 2], [2, 1], {"a": [1]}, None, "1", 1)
    }
    assert len(folders) == produce.calls == 12


def damage_flip(folder):
    data = bytearray((folder / "sub" / "weights.bin").read_bytes())
    data[5000] ^= 1
    (folder / "sub" / "weights.bin").write_bytes(data)


def damage_result(folder):
    text = (folder / "step.json").read_text()
    assert '"number": 0.1' in text
    (folder / "step.json").write_text(text.replace('"number": 0.1', '"number": 0.7'))


def damage_type(folder):
    text = (folder / "step.json").read_text()
    (folder / "step.json").write_text(text.replace('"number": 0.1', '"number": "0.1"'))


DAMAGE = {
    "a flipped bit": damage_flip,
    "a truncated file": lambda f: (f / "graph").write_text("gra"),
    "a missing file": lambda f: (f / "graph").unlink(),
    "a changed figure in the result": damage_result,
    "a result of another type": damage_type,
    "no result": lambda f: (f / "step.json").unlink(),
    "half a result": lambda f: (f / "step.json").write_bytes((f / "step.json").read_bytes()[:50]),
    "a binary result": lambda f: (f / "step.json").write_bytes(b"\xff\x00"),
    "an empty folder": lambda f: [shutil.rmtree(f), f.mkdir()],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_step_is_redone(tmp_path, kind):
    produce = Producer()
    folder, made, _ = step(tmp_path, "make", 1, Made, produce)
    DAMAGE[kind](folder)
    again, same, hit = step(tmp_path, "make", 1, Made, produce)
    assert (hit, produce.calls) == (False, 2)
    assert (again, same) == (folder, made)
    assert (folder / "sub" / "weights.bin").read_bytes() == bytes(range(256)) * 40
    assert step(tmp_path, "make", 1, Made, produce)[2] is True
    assert len(list((tmp_path / "make").iterdir())) == 1


@pytest.mark.parametrize(
    "error",
    [
        ConversionFailed("making", "x", "it can't", "Give up"),
        MachineFault("making", "x", "dead", "Buy another"),
        KeyboardInterrupt(),
        PermissionError(13, "Permission denied", "/somebody/elses/model"),
        ZeroDivisionError(),
    ],
)
def test_what_the_producer_raises_passes_through_and_leaves_nothing(tmp_path, error):
    def produce(folder):
        (folder / "half").write_text("half")
        raise error

    with pytest.raises(type(error)) as caught:
        step(tmp_path, "make", 1, Made, produce)
    assert caught.value is error
    assert everything(tmp_path) == ["make"]
    assert step(tmp_path, "make", 1, Made, Producer())[2] is False


KILLED = """
import os, signal, sys
from pathlib import Path
from edgekiln.cache import step
from edgekiln.records import Rejected
def produce(folder):
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
step(Path(sys.argv[1]), "make", 1, Rejected, produce)
"""


def test_a_killed_producer_leaves_no_step_and_the_next_run_makes_it(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=60)
    assert done.returncode == -9
    produce = Producer()
    assert step(tmp_path, "make", 1, Made, produce)[2] is False
    assert step(tmp_path, "make", 1, Made, produce)[2] is True


RACER = """
import sys, time
from pathlib import Path
from edgekiln.cache import step
from edgekiln.records import Rejected
root, me = Path(sys.argv[1]), sys.argv[2]
def produce(folder):
    (folder / "who").write_text(me)
    (root / f"{me}.ready").touch()
    while len(list(root.glob("*.ready"))) < 2:
        time.sleep(0.005)
    return Rejected(path="x", reason="y")
folder, result, hit = step(root, "make", "same key", Rejected, produce)
print(folder, result.reason, hit)
"""


def test_two_processes_that_make_the_same_step_at_once_leave_one_sound_result(tmp_path):
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(tmp_path), who], stdout=subprocess.PIPE, text=True)
        for who in ("first", "second")
    ]
    told = [r.communicate(timeout=60)[0].split() for r in racers]
    assert [r.returncode for r in racers] == [0, 0]
    assert told[0] == told[1]
    folder = Path(told[0][0])
    assert list((tmp_path / "make").iterdir()) == [folder]
    assert (folder / "who").read_text() in {"first", "second"}
    assert step(tmp_path, "make", "same key", Rejected, Producer())[2] is True


def test_a_step_that_another_process_finished_meanwhile_stays(tmp_path):
    rival = Producer()

    def slow(folder):
        step(tmp_path, "make", 1, Made, rival)
        (folder / "late").write_text("late")
        return Made(number=0.1)

    folder, _, _ = step(tmp_path, "make", 1, Made, slow)
    assert not (folder / "late").exists()
    assert step(tmp_path, "make", 1, Made, rival)[2] is True
    assert rival.calls == 1


CODE_HASH = "from edgekiln.cache import code_hash; print(code_hash())"


def code_hash_of(copy):
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE_HASH], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_change_of_the_sources_changes_every_key(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "edgekiln", ignore=shutil.ignore_patterns("__pycache__"))
    same = code_hash_of(tmp_path)
    assert same == code_hash()
    with (tmp_path / "edgekiln" / "choose.py").open("a") as file:
        file.write("# a change\n")
    changed = code_hash_of(tmp_path)
    (tmp_path / "edgekiln" / "choose.py").rename(tmp_path / "edgekiln" / "chosen.py")
    renamed = code_hash_of(tmp_path)
    with (tmp_path / "edgekiln" / "engines" / "web_page.mjs").open("a") as file:
        file.write("// what is no Python makes artifacts and figures too\n")
    assert len({same, changed, renamed, code_hash_of(tmp_path)}) == 4


def test_the_code_hash_is_part_of_the_folder(tmp_path):
    code = (
        "import sys; from pathlib import Path; from edgekiln.cache import step;"
        "from edgekiln.records import Rejected as R;"
        "print(step(Path(sys.argv[1]), 'make', 1, R, lambda f: R(path='a', reason='b'))[2])"
    )
    shutil.copytree(PACKAGE, tmp_path / "src" / "edgekiln", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "PYTHONDONTWRITEBYTECODE": "1"}

    def hit():
        command = [sys.executable, "-c", code, str(tmp_path / "cache")]
        return subprocess.run(command, env=environment, capture_output=True, text=True).stdout.strip()

    assert (hit(), hit()) == ("False", "True")
    with (tmp_path / "src" / "edgekiln" / "progress.py").open("a") as file:
        file.write("# a change\n")
    assert (hit(), hit()) == ("False", "True")


FULL = """
import resource, signal, sys
from pathlib import Path
from edgekiln.cache import step
from edgekiln.errors import MachineFault
from edgekiln.records import Rejected
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
def produce(folder):
    (folder / "weights").write_bytes(b"x" * 100_000)
try:
    step(Path(sys.argv[1]), "make", 1, Rejected, produce)
except MachineFault as error:
    print(error.cure)
"""


def test_a_full_disk_during_a_step_is_the_machines_fault_and_leaves_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert "Free some space" in done.stdout, done.stderr
    assert everything(tmp_path) == ["make"]


def test_the_cache_lies_where_the_environment_says_else_in_the_users_cache_folder(tmp_path):
    code = "from edgekiln.cache import default_root; print(default_root())"

    def told(**more):
        environment = {k: v for k, v in os.environ.items() if k not in {"EDGEKILN_CACHE", "XDG_CACHE_HOME"}}
        done = subprocess.run(
            [sys.executable, "-c", code], env={**environment, **more}, capture_output=True, text=True
        )
        return done.stdout.strip()

    assert told(EDGEKILN_CACHE=str(tmp_path)) == str(tmp_path)
    assert told(XDG_CACHE_HOME=str(tmp_path)) == str(tmp_path / "edgekiln")
    assert told(HOME=str(tmp_path)).startswith(str(tmp_path))
    assert default_root().name


def test_a_hit_checks_the_hashes_quickly(tmp_path):
    def produce(folder):
        (folder / "weights").write_bytes(bytes(30_000_000))
        return Made(number=1.0)

    step(tmp_path, "make", 1, Made, produce)
    started = time.perf_counter()
    assert step(tmp_path, "make", 1, Made, produce)[2] is True
    assert time.perf_counter() - started < 5
