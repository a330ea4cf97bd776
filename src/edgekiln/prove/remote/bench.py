"""``bench --on``: one artifact, measured on the device itself. The whole way on one page.

reach it ─► is it fit? ─► copy ─► run, detached, with sensors ─► fetch as it grows ─► tidy up ─► figures
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

from edgekiln.engines import Arrays
from edgekiln.errors import DeviceFault
from edgekiln.progress import Progress, Silent
from edgekiln.prove.remote import android, order
from edgekiln.prove.remote.address import Address, SshAddress
from edgekiln.prove.remote.fit import fit_to_measure
from edgekiln.prove.remote.gather import SENSORS_FIXED, gather, gather_machine
from edgekiln.prove.remote.lines import End, Log
from edgekiln.prove.remote.link import Link
from edgekiln.prove.remote.linux import Patient, check_python, folder, reach
from edgekiln.prove.remote.order import Course
from edgekiln.prove.remote.replay import recording
from edgekiln.prove.remote.result import RemoteBench, identity, linux_bench, name_of, sort_out
from edgekiln.prove.remote.ssh import SshLink
from edgekiln.records import Artifact

MOST_POWER_MODE = 500


def bench_on(
    artifact: Artifact,
    model_folder: Path,
    inputs: Arrays,
    address: Address,
    course: Course | None = None,
    *,
    runner: Path | None = None,
    python: str = "python3",
    accept_new_host_key: bool = False,
    strict: bool = False,
    when: str = "",
    progress: Progress | None = None,
) -> RemoteBench:
    """Measure ``artifact`` (its files lie in ``model_folder``) on the device at ``address``.

    ``inputs`` are one call's arrays. ``python`` is the interpreter on a Linux device that has the engine;
    ``runner`` is the benchmark program for an Android device. Nothing that was copied there stays, except a
    TensorRT engine in the cache of that user. ``strict`` refuses a device that is not fit.

    Raises DeviceFault where the device can't be reached, is lost for good or is full; NotRunnableHere where
    it can't run the artifact; BadInput for options.
    """
    course, tell = course or Course(), progress or Silent()
    if not isinstance(address, SshAddress):
        return android.bench_on(artifact, model_folder, address, course, runner, strict, when, tell)
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as made:
        scratch = Path(made)
        asked = order.linux(artifact, model_folder, inputs, course, scratch)
        link = SshLink(address, accept_new=accept_new_host_key)
        try:
            return _measure(link, str(address), artifact, asked, course, python, strict, when, tell, scratch)
        finally:
            link.close()


def _measure(
    link: Link,
    where: str,
    artifact: Artifact,
    asked: order.Order,
    course: Course,
    python: str,
    strict: bool,
    when: str,
    tell: Progress,
    scratch: Path,
) -> RemoteBench:
    patient, tree = Patient(link, where, course.patience_seconds), scratch / "device"
    tree.mkdir()
    with tell.step(f"reaching {where}"):
        reach(patient)
        check_python(patient, python)
        patient(lambda link: gather_machine(link, tree, course.root))
        patient(lambda link: gather(link, SENSORS_FIXED, tree, course.root))
        environment = identity(tree, power_mode(patient))
        unfit = fit_to_measure(where, tree, strict)
    for sentence in unfit:
        tell.note(f"the device: {sentence}")
    with folder(patient) as run:
        with tell.step("copying the artifact and the runner"):
            run.copy(asked, scratch)
        with tell.step(f"measuring on {name_of(environment)}"):
            run.start(python, course.keep_seconds)
            log = run.follow(course, lambda log: None)
    line = sort_out(log.lines)
    if line is None:
        raise DeviceFault("measuring on", where, _incomplete(log), "Look at what it printed")
    seen, unread = recording(log.lines, tree, course.interval_seconds)
    found = linux_bench(line, artifact, course.threads, environment, seen, course.interval_seconds, when)
    return msgspec.structs.replace(
        found,
        unfit=unfit,
        events=tuple(patient.events),
        unread=(*log.unread, *unread),
        said=next((line.said for line in log.lines if isinstance(line, End)), "").replace(run.path, "."),
    )


def power_mode(patient: Patient) -> str:
    """What ``nvpmodel -q`` says on a Jetson, in one line; empty elsewhere."""
    ran = patient(lambda link: link.run(["nvpmodel", "-q"]))
    lines = [line.strip() for line in ran.text.splitlines() if line.strip()] if ran.rc == 0 else []
    return "; ".join(lines)[:MOST_POWER_MODE]


def _incomplete(log: Log) -> str:
    said = next((line.said.strip() for line in log.lines if isinstance(line, End)), "")
    strange = f"; it wrote {log.unread[0][:120]!r}" if log.unread else ""
    return f"the run ended without figures{strange}{f'; the engine printed {said[-200:]!r}' if said else ''}"
