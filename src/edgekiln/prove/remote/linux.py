"""One measurement on a Linux device, over a link that may break at any moment.

Everything that is done there can be done twice without harm, so each step is simply tried again while the
connection is gone, for ``patience_seconds`` at most. The measurement itself runs detached and loses nothing.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from edgekiln.errors import DeviceFault, NotRunnableHere
from edgekiln.files import write_bytes
from edgekiln.prove.remote.lines import Failed, Log
from edgekiln.prove.remote.link import COMMAND_SECONDS, Broken, Link, Ran
from edgekiln.prove.remote.order import Course, Order

OLDEST_PYTHON = (3, 8)
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 8.0
LOOK_SECONDS = (0.3, 2.0)
"""The wait between two looks at the log, growing: each look costs the device some work."""
PIECE_BYTES = 4 << 20
QUIET_SECONDS = 15.0
"""A log that grows no more for so long is a reason to ask whether the runner still lives."""
TIDY_SECONDS = 20.0
MOST_WHY = 1000

_T = TypeVar("_T")
_MAKE = """
umask 077
base="${2:-${XDG_CACHE_HOME:-$HOME/.cache}}/edgekiln/runs"
mkdir -p -- "$base/$1" && cd -- "$base/$1" && pwd
"""
STOP = """
export LC_ALL=C
own() { { read -r line < "/proc/$1/stat"; } 2>/dev/null && set -- "$2" ${line##*)} && [ "${21}" = "$1" ]; }
if own "$2" "$3"; then
    kill -s TERM -- "$4$2"
    for i in 1 2 3 4 5 6 7 8 9 10; do own "$2" "$3" || break; sleep 0.2; done
fi
rm -rf -- "$1"; rmdir -- "${1%/*}" "${1%/*/*}" 2>/dev/null
[ ! -e "$1" ]
"""
"""Arguments: folder, process id, start time, and - to end its whole group. Only the very process that was
started is ended."""


class Patient:
    """Tries again while the link is broken. ``events`` says in sentences what happened to it."""

    def __init__(self, link: Link, where: str, patience_seconds: float) -> None:
        self.link, self.where, self.patience = link, where, patience_seconds
        self.events: list[str] = []
        self.started = time.monotonic()
        self.before_leaving = ""

    def __call__(self, step: Callable[[Link], _T]) -> _T:
        """``step``, which must be harmless to repeat. Raises DeviceFault where the device stays away."""
        lost_at, why, wait = None, "", FIRST_WAIT_SECONDS
        while True:
            try:
                answer = step(self.link)
            except Broken as broken:
                now = time.monotonic()
                lost_at = now if lost_at is None else lost_at
                why = broken.why
                if now - lost_at + wait > self.patience:
                    raise self._gone(now - lost_at, why) from broken
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)
                continue
            if lost_at is not None:
                away, at = time.monotonic() - lost_at, lost_at - self.started
                self.events.append(
                    f"the connection was lost {at:.1f} s after the start ({_cause(why)}) "
                    f"and was there again {away:.1f} s later"
                )
            return answer

    def _gone(self, seconds: float, why: str) -> DeviceFault:
        cure = "Check power and network of the device, then measure again"
        if self.before_leaving:
            cure += f"; {self.before_leaving}"
        return DeviceFault(
            "measuring on", self.where, f"it did not answer for {seconds:.0f} s ({_short(why)})", cure
        )


def reach(patient: Patient) -> None:
    """The first command. Raises DeviceFault at once where the device can't be reached."""
    try:
        patient.link.run(["true"])
    except Broken as broken:
        cure = "Check the address, and that the device is on and runs an SSH server"
        raise DeviceFault("connecting to", patient.where, _short(broken.why), cure) from broken


@contextlib.contextmanager
def folder(patient: Patient, cache: str = "", group: str = "") -> Iterator[Run]:
    """A private folder on the device that is gone after the block, whatever ends it, with what runs in it.

    It lies in the user's cache folder, or in ``cache``. ``group`` "-" ends the runner's whole process group.
    """
    name = f"edgekiln-{secrets.token_hex(8)}"
    made = ok(
        patient(lambda link: link.run(["sh", "-c", _MAKE, "sh", name, cache])),
        patient.where,
        "making a folder",
    )
    path = made.text.strip("\n")
    if not path.startswith("/") or not path.endswith(f"/{name}") or not path.isprintable():
        why = f"it names its folder {path[:80]!r}"
        raise DeviceFault("making a folder on", patient.where, why, "Look at the home folder there by hand")
    run = Run(patient, path, group)
    patient.before_leaving = f"the folder {path} may be left there"
    try:
        yield run
    finally:
        run.remove()


class Run:
    """The folder ``path`` on the device, and the runner that may be at work in it."""

    def __init__(self, patient: Patient, path: str, group: str = "") -> None:
        self.patient, self.path, self.group = patient, path, group
        self.process: tuple[int, str] = (0, "")

    def copy(self, order: Order, scratch: Path) -> int:
        """Put every file of the order there; their bytes."""
        request = scratch / "request.json"
        write_bytes(request, json.dumps(order.request).encode())
        files = [*order.files, (str(request), "request.json")]
        folders = sorted({str(Path(f"{self.path}/{there}").parent) for _, there in files})
        made = self.patient(lambda link: link.run(["mkdir", "-p", "--", *folders]))
        ok(made, self.patient.where, "making folders")
        for here, there in files:
            self.patient(lambda link, a=Path(here), b=f"{self.path}/{there}": link.put(a, b))  # type: ignore[misc]
        return sum(Path(here).stat().st_size for here, _ in files)

    def started(self, pid: int, started: str, keep_seconds: float) -> None:
        """Remember the process to be ended; from now on the folder is removed there by itself."""
        self.process = pid, started
        kept = f"{keep_seconds / 60:.0f} minutes"
        self.patient.before_leaving = f"what was copied there removes itself {kept} after the run"

    def start(self, python: str, keep_seconds: float) -> None:
        """Start the runner, or find it started already by a call whose answer was lost."""
        ran = self.patient(lambda link: link.run([python, f"{self.path}/runner.py", self.path]))
        try:
            told = json.loads(ok(ran, self.patient.where, "starting the runner").text)
            self.started(int(told["pid"]), str(int(told["started"])), keep_seconds)
        except (ValueError, TypeError, KeyError) as error:
            why = f"the runner answers {ran.text[:200]!r}"
            cure = "See whether that Python works there"
            raise DeviceFault("starting the runner on", self.patient.where, why, cure) from error

    def follow(self, course: Course, tell: Callable[[Log], None]) -> Log:
        """The runner's log up to its end, ``tell`` after each look.

        Raises NotRunnableHere where the device refuses the artifact, and DeviceFault where the engine
        crashes or hangs, the disk is full, or the runner or the device vanishes.
        """
        log, wait = Log(), LOOK_SECONDS[0]
        deadline = time.monotonic() + course.idle_seconds + course.limit_seconds + 60.0
        grown = time.monotonic()
        while not log.ended:
            piece = self._piece(log.offset)
            if piece:
                log.feed(piece)
                grown = time.monotonic()
                tell(log)
                continue
            if time.monotonic() - grown > QUIET_SECONDS + 4 * course.interval_seconds or self._full():
                self._check_alive(log)
                grown = time.monotonic()
            if time.monotonic() > deadline:
                why = f"no result within {course.limit_seconds:.0f} s"
                cure = "Allow it more time, or use a smaller model"
                raise DeviceFault("measuring on", self.patient.where, why, cure)
            time.sleep(wait)
            wait = min(1.3 * wait, LOOK_SECONDS[1])
        for line in log.lines:
            if isinstance(line, Failed):
                raise _failure(line, self.patient.where, log)
        return log

    def _piece(self, offset: int) -> bytes:
        words = ["tail", "-c", f"+{offset + 1}", f"{self.path}/lines.jsonl"]
        ran = self.patient(lambda link: link.run(words, max_bytes=16 * PIECE_BYTES))
        return ran.stdout if ran.rc == 0 else b""

    def _full(self) -> bool:
        return bool(self._fault())

    def _fault(self) -> str:
        ran = self.patient(lambda link: link.run(["cat", f"{self.path}/fault"]))
        try:
            return str(json.loads(ran.stdout)["why"]) if ran.stdout.strip() else ""
        except (ValueError, TypeError, KeyError):
            return ""

    def _check_alive(self, log: Log) -> None:
        """Raises DeviceFault where the disk there is full, or the runner is gone before its end."""
        where, so_far = self.patient.where, f"{log.samples} samples had come back"
        if why := self._fault():
            cure = "Free some space in the home folder of that user there, and measure again"
            raise DeviceFault(
                "measuring on", where, f"its disk refuses to be written ({why}); {so_far}", cure
            )
        pid, started = self.process
        ran = self.patient(lambda link: link.run(["cat", f"/proc/{pid}/stat"]))
        fields = ran.text.rpartition(")")[2].split()
        if len(fields) < 20 or fields[19] != started:
            why = f"the runner ended without a word, as after a restart of the device; {so_far}"
            raise DeviceFault("measuring on", where, why, "See the log of the device, and measure again")

    def remove(self) -> None:
        """End the runner and remove the folder. Where that fails, an event says so."""
        pid, started = self.process
        words = ["sh", "-c", STOP, "sh", self.path, str(pid), started, self.group]
        until, wait = time.monotonic() + min(TIDY_SECONDS, self.patient.patience), FIRST_WAIT_SECONDS
        while True:
            try:
                ran = self.patient.link.run(words)
                said = ran.stderr
                if ran.rc == 0:
                    return
            except (Broken, DeviceFault) as error:
                said = error.why
            if time.monotonic() + wait > until:
                self.patient.events.append(
                    f"what was copied could not be removed there at once ({_cause(said)})"
                )
                return
            time.sleep(wait)
            wait *= 2


def check_python(patient: Patient, python: str) -> str:
    """The version of ``python`` there. Raises DeviceFault where there is none, or it is too old."""
    script = "import sys; print('%d.%d.%d' % sys.version_info[:3])"
    ran = patient(lambda link: link.run([python, "-c", script], seconds=COMMAND_SECONDS))
    version = ran.text.strip()
    if ran.rc != 0 or not re.fullmatch(r"\d+\.\d+\.\d+", version):
        why = f"there is no working Python called '{python}' ({_short(ran.stderr) or f'status {ran.rc}'})"
        cure = "Install python3 there, or name the one that has the engine: --remote-python PATH"
        raise DeviceFault("measuring on", patient.where, why, cure)
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_PYTHON:
        why = f"its Python is {version}, the runner needs 3.8"
        raise DeviceFault("measuring on", patient.where, why, "Name a newer one there: --remote-python PATH")
    return version


def ok(ran: Ran, where: str, doing: str) -> Ran:
    """``ran`` as it is. Raises DeviceFault where it failed, with the device's own words."""
    if ran.rc == 0:
        return ran
    why = _short(ran.stderr) or f"it ended with status {ran.rc}"
    full = any(word in why for word in ("No space left", "quota exceeded", "File too large"))
    cure = "Free some space in the home folder of that user there" if full else "Mend that, and measure again"
    raise DeviceFault(f"{doing} on", where, why, cure)


def _failure(failed: Failed, where: str, log: Log) -> NotRunnableHere | DeviceFault:
    if failed.how == "refused":
        return NotRunnableHere("measuring on", where, failed.why[:MOST_WHY], failed.cure[:MOST_WHY])
    why = f"{failed.why[:MOST_WHY]}; {log.samples} samples had come back"
    return DeviceFault("measuring on", where, why, failed.cure[:MOST_WHY])


def _cause(why: str) -> str:
    """The kind of a failure, without the host names and paths that ssh puts into its words."""
    kinds = ("refused", "timed out", "no answer", "reset", "closed", "unreachable", "no route", "damaged")
    return next((kind for kind in kinds if kind in why.lower()), "broken")


def _short(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[-2:])[:300] if lines else ""
