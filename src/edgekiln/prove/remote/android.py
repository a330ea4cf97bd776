"""One measurement on an Android device: the runtime's own benchmark program, detached in /data/local/tmp.

There is no Python on a phone. The user gives the program, built for the device (``--runner``); what it prints
is read by ``benchmark_output``, and heat and battery come from two ``dumpsys`` services, asked now and then.
"""

from __future__ import annotations

import secrets
import tempfile
import time
from pathlib import Path

import msgspec

from edgekiln.engines import at_size
from edgekiln.errors import BadInput, DeviceFault, NotRunnableHere
from edgekiln.files import inside
from edgekiln.progress import Progress
from edgekiln.prove.remote import benchmark_output
from edgekiln.prove.remote.adb import AdbLink
from edgekiln.prove.remote.address import AdbAddress
from edgekiln.prove.remote.benchmark_output import Parsed
from edgekiln.prove.remote.fit import fit_to_measure
from edgekiln.prove.remote.gather import gather_machine
from edgekiln.prove.remote.link import Broken
from edgekiln.prove.remote.linux import Patient, Run, folder, ok
from edgekiln.prove.remote.order import Course
from edgekiln.prove.remote.result import (
    Figures,
    RemoteBench,
    energy_evidence,
    heat_evidence,
    identity,
    latency_evidence,
    since_start,
)
from edgekiln.prove.statistics import percentiles
from edgekiln.records import Artifact, Evidence, Scalar
from edgekiln.sensors import android
from edgekiln.sensors.energy import Energy
from edgekiln.sensors.power import total
from edgekiln.sensors.reading import Sample
from edgekiln.sensors.recorder import Recorder, Recording

TEMPORARY = "/data/local/tmp"
LOOK_SECONDS = (1.0, 5.0)
MOST_TEXT_BYTES = 4 << 20
PROPERTIES = {
    "device_model": "ro.product.model",
    "manufacturer": "ro.product.manufacturer",
    "soc_model": "ro.soc.model",
    "arch": "ro.product.cpu.abi",
    "android": "ro.build.version.release",
}
PROGRAMS = {
    ".tflite": ("benchmark_model", "litert"),
    ".onnx": ("onnxruntime_perf_test", "onnxruntime"),
    ".ort": ("onnxruntime_perf_test", "onnxruntime"),
}
"""By the artifact's suffix: the program that times it, and the engine that it is."""

# $1 folder, $2 seconds to keep it, then the command. Started once, however often this is asked for.
_START = """
cd "$1" || exit 10
if mkdir started 2>/dev/null; then
    setsid sh -c 'folder=$1 keep=$2; shift 2
echo $$ >pid.part; mv pid.part pid
ORT_DISABLE_TELEMETRY=1 "$@" >out 2>&1
echo $? >rc.part; mv rc.part rc
sleep "$keep"; rm -rf -- "$folder"' sh "$@" </dev/null >/dev/null 2>&1 &
fi
for i in 1 2 3 4 5 6 7 8 9 10; do [ -f pid ] && break; sleep 0.2; done
read -r pid <pid; read -r line <"/proc/$pid/stat"; set -- ${line##*)}
echo "$pid ${20}"
"""
_LOOK = """
cat /proc/uptime; echo "$2"; cat "$1/rc" 2>/dev/null; echo "$2"
dumpsys thermalservice 2>&1; echo "$2"; dumpsys battery 2>&1; echo "$2"
"""


def bench_on(
    artifact: Artifact,
    model_folder: Path,
    address: AdbAddress,
    course: Course,
    runner: Path | None,
    strict: bool,
    when: str,
    tell: Progress,
) -> RemoteBench:
    """See ``bench.bench_on``. Raises BadInput without a program."""
    one, where = at_size(artifact, model_folder, None)
    program, engine = _program(one)
    if runner is None or not runner.is_file():
        why = "it has no Python, so that the runtime's own program has to be given"
        if runner is not None:
            why = f"there is no file {runner}"
        cure = f"Give --runner PATH: {program}, built for the device"
        raise BadInput("measuring on", address, why, cure)
    link = AdbLink(address)
    patient = Patient(link, str(address), course.patience_seconds)
    try:
        with tempfile.TemporaryDirectory(prefix="edgekiln-") as scratch, tell.step(f"reaching {address}"):
            environment, unfit = _reached(patient, Path(scratch), course.root, strict)
        for sentence in unfit:
            tell.note(f"the device: {sentence}")
        with folder(patient, TEMPORARY, "-") as run:
            with tell.step("copying the artifact and the program"):
                _copy(run, one, where, runner)
            with tell.step(f"measuring on {environment.get('device_model', 'the device')}"):
                watched = _Watched(patient, run, course)
                text, times = watched.measure(_command(program, run.path, one, course))
    finally:
        link.close()
    parsed = benchmark_output.benchmark_model(text) if program == "benchmark_model" else _perf(text, times)
    made = _figures(parsed, one, engine, program, environment, course, watched.recording, when)
    unread = (*((parsed.unread,) if parsed.unread else ()), *watched.unread)
    return msgspec.structs.replace(
        made, unfit=(*unfit, *watched.unfit()), events=tuple(patient.events), unread=unread, said=text[-2000:]
    )


def _program(artifact: Artifact) -> tuple[str, str]:
    suffix = Path(artifact.entry).suffix
    if suffix not in PROGRAMS or artifact.engine not in {"litert", "onnxruntime"}:
        why = f"no benchmark program is known for {artifact.engine} and '{suffix}' files"
        cure = "Measure a LiteRT (.tflite) or ONNX Runtime (.onnx, .ort) artifact"
        raise NotRunnableHere("measuring", artifact.id, why, cure)
    return PROGRAMS[suffix]


def _reached(
    patient: Patient, tree: Path, root: str, strict: bool
) -> tuple[dict[str, Scalar], tuple[str, ...]]:
    """Which device it is, and what makes it unfit. Raises DeviceFault at once where it is not there."""
    try:
        patient.link.run(["true"])
    except Broken as broken:
        cure = "Look at adb devices: the device must be listed there as 'device'"
        raise DeviceFault("connecting to", patient.where, broken.why, cure) from broken
    patient(lambda link: gather_machine(link, tree, root))
    found = identity(tree)
    for key, name in PROPERTIES.items():
        told = patient(lambda link, n=name: link.run(["getprop", n])).text.strip()  # type: ignore[misc]
        if told and told.isprintable():
            found[key] = told[:100]
    return found, fit_to_measure(patient.where, tree, strict)


def _copy(run: Run, artifact: Artifact, where: Path, runner: Path) -> None:
    files = [(inside(where, f.path, "copying"), f"{run.path}/model/{f.path}") for f in artifact.files]
    folders = sorted({str(Path(there).parent) for _, there in files})
    ok(
        run.patient(lambda link: link.run(["mkdir", "-p", "--", *folders])),
        run.patient.where,
        "making folders",
    )
    run.patient(lambda link: link.put(runner, f"{run.path}/runner", 0o700))
    for here, there in files:
        run.patient(lambda link, a=here, b=there: link.put(a, b))  # type: ignore[misc]


def _command(program: str, path: str, artifact: Artifact, course: Course) -> list[str]:
    model, least = f"{path}/model/{artifact.entry}", max(1, round(course.least_seconds))
    if program == "benchmark_model":
        return [
            f"{path}/runner",
            f"--graph={model}",
            f"--num_threads={course.threads}",
            f"--num_runs={course.samples}",
            f"--min_secs={least}",
            f"--max_secs={max(least, round(course.max_seconds))}",
            "--report_peak_memory_footprint=true",
        ]
    counted = ["-m", "times", "-r", str(course.samples), "-x", str(course.threads), "-I", "-s"]
    return [f"{path}/runner", *counted, model, f"{path}/times.csv"]


class _Watched:
    """The program at work there, with what the phone says of heat and battery meanwhile."""

    def __init__(self, patient: Patient, run: Run, course: Course) -> None:
        self._patient, self._run, self._course = patient, run, course
        self._now, self._texts = 0.0, ("", "")
        self.unread: list[str] = []
        self.recording: Recording | None = None

    def measure(self, command: list[str]) -> tuple[str, str]:
        """Everything that the program printed, and its result file. Raises DeviceFault where it fails."""
        recorder = Recorder(
            {"thermalservice": self._heat, "battery": self._battery},
            LOOK_SECONDS[1],
            monotonic=lambda: self._now,
            wall=lambda: self._now,
        )
        self._look()
        recorder.tick()
        self._start(command)
        code, wait, until = None, LOOK_SECONDS[0], time.monotonic() + self._course.limit_seconds
        while code is None:
            time.sleep(wait)
            wait = min(1.5 * wait, LOOK_SECONDS[1])
            before = self._now
            code = self._look()
            if code is None and self._now > before:
                recorder.tick()
            if code is None and time.monotonic() > until:
                why = f"no result within {self._course.limit_seconds:.0f} s"
                raise DeviceFault("measuring on", self._patient.where, why, "Use a smaller model")
        self.recording = recorder.stop()
        for sample in (self._heat(), self._battery()):
            self.unread += [text for text in sample.unread if text not in self.unread]
        text = self._file("out")
        if code != 0:
            last = " ".join(text.split())[-300:]
            why = f"the program ended with status {code}: {last}"
            cure = "See whether it was built for this device, and reads this artifact"
            raise NotRunnableHere("measuring on", self._patient.where, why, cure)
        return text, self._file("times.csv")

    def _start(self, command: list[str]) -> None:
        keep = str(int(self._course.keep_seconds))
        words = ["sh", "-c", _START, "sh", self._run.path, keep, *command]
        ran = ok(self._patient(lambda link: link.run(words)), self._patient.where, "starting the program")
        fields = ran.text.split()
        if len(fields) == 2 and all(field.isdecimal() for field in fields):
            self._run.started(int(fields[0]), fields[1], self._course.keep_seconds)
            return
        why = f"the shell there answers {ran.text[:100]!r}"
        raise DeviceFault("starting on", self._patient.where, why, "Look at the device by hand")

    def _look(self) -> int | None:
        """Ask for the time, the program's exit status (None while it runs), heat and battery."""
        mark = secrets.token_hex(8)
        words = ["sh", "-c", _LOOK, "sh", self._run.path, mark]
        parts = self._patient(lambda link: link.run(words)).text.split(f"{mark}\n")
        if len(parts) < 5:
            return None
        try:
            self._now = max(self._now, float(parts[0].split()[0]))
        except (ValueError, IndexError):
            self.unread.append(parts[0][:200])
        self._texts = parts[2], parts[3]
        return int(parts[1]) if parts[1].strip().isdecimal() else None

    def _file(self, name: str) -> str:
        words = ["head", "-c", str(MOST_TEXT_BYTES), f"{self._run.path}/{name}"]
        ran = self._patient(lambda link: link.run(words))
        return ran.text if ran.rc == 0 else ""

    def _heat(self) -> Sample:
        return android.thermalservice(self._texts[0])

    def _battery(self) -> Sample:
        return android.battery(self._texts[1])

    def unfit(self) -> tuple[str, ...]:
        """What heat did to the run: from "light" on the phone lowers its clocks."""
        track = None if self.recording is None else self.recording.track("thermal status", "status")
        worst = max((v for v in track.values if v is not None), default=0.0) if track is not None else 0.0
        if worst < 1:
            return ()
        name = android.STATES[int(worst)].lower()
        return (f"its thermal status rose to '{name}', where clocks are lowered; let it cool down first",)


def _perf(text: str, times: str) -> Parsed:
    return benchmark_output.perf_test(text, times)


# ---------------------------------------------------------------- figures


def _figures(
    parsed: Parsed,
    artifact: Artifact,
    engine: str,
    program: str,
    environment: dict[str, Scalar],
    course: Course,
    recording: Recording | None,
    when: str,
) -> RemoteBench:
    device = str(environment.get("device_model") or "a device that does not tell its model")
    around: dict[str, Scalar] = {
        **environment,
        "engine": engine,
        "program": program,
        "threads": course.threads,
    }
    figure = Figures(device, when, around)
    found = percentiles(parsed.samples_ms) if parsed.samples_ms else None
    power = total(recording) if recording is not None else None
    used = Energy(inferences=parsed.n or 0, reason="Android's services tell no power")
    assert power is not None, "a look was taken before and after"
    why = "nothing that the program printed is a latency: see unread" if parsed.unread else ""
    latency = latency_evidence(figure, found) if found else _told(figure, parsed, program, why)
    evidence = (
        *latency,
        figure("latency_mean_ms", "ms", parsed.mean_ms, parsed.n, None, why or f"{program} does not tell it"),
        figure("load_ms", "ms", parsed.load_ms, 1, None, why or f"{program} does not tell it"),
        figure(
            "peak_memory_bytes", "bytes", parsed.peak_bytes, 1, None, why or f"{program} does not tell it"
        ),
        figure("engine_memory_bytes", "bytes", parsed.grown_bytes, 1, None, f"{program} does not tell it"),
        *energy_evidence(figure, power, used),
        *heat_evidence(figure, recording),
    )
    shown = None if recording is None else since_start(recording, {})[0]
    return RemoteBench(
        device=device,
        platform="android",
        artifact_id=artifact.id,
        engine=engine,
        engine_version="unknown",
        threads=course.threads,
        environment=around,
        percentiles=found,
        samples_ms=parsed.samples_ms,
        blocks=(len(parsed.samples_ms),) if parsed.samples_ms else (),
        energy=used,
        power=power,
        recording=shown,
        phases={},
        evidence=evidence,
    )


def _told(figure: Figures, parsed: Parsed, program: str, why: str) -> tuple[Evidence, ...]:
    """Percentiles as the program gives them: without its samples there is no interval."""
    values = {"p50": parsed.p50_ms, "p95": parsed.p95_ms, "p99": parsed.p99_ms}
    reason = why or f"this {program} does not tell it"
    return tuple(
        figure(f"latency_{name}_ms", "ms", value, parsed.n, None, reason) for name, value in values.items()
    )
