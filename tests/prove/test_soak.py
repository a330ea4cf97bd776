"""Soaks of real models in real workers: what throttles them is seen, and the end is always an orderly one."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekiln import interrupt
from edgekiln.errors import BadInput
from edgekiln.prove.soak import parse_duration, soak
from edgekiln.prove.soak_record import Soak
from edgekiln.prove.timing import Contender, TimingFailure
from edgekiln.records import Artifact

FAKES = Path(__file__).parents[1] / "fakes"
FAKE_WORKER = (sys.executable, str(FAKES / "prove_worker.py"))


def artifact(name, entry="model.onnx", engine="onnxruntime", **options):
    return Artifact(
        id=name,
        target=engine,
        recipe="fp32",
        engine=engine,
        proof_engine=engine,
        entry=entry,
        files=(),
        options=options,
        tools={},
        precisions={"fp32": 1},
    )


@pytest.fixture(scope="module")
def matmuls(tmp_path_factory):
    """A model of about a millisecond on one core, and its input."""
    folder, size, count = tmp_path_factory.mktemp("model"), 160, 8
    weight = np.random.default_rng(0).normal(0, 0.05, (size, size)).astype(np.float32)
    nodes = [helper.make_node("MatMul", [f"t{i}", "w"], [f"t{i + 1}"]) for i in range(count)]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [size, size]) for n in ("t0", f"t{count}")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [onnx.numpy_helper.from_array(weight, "w")])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        folder / "model.onnx",
    )
    made = Contender(id="matmuls", folder=str(folder), artifact=artifact("matmuls"), engine="onnxruntime")
    return made, {"t0": np.ones((size, size), np.float32)}


def fake(folder, behaviour="good", **options):
    made = artifact("it", engine="fake", behaviour=behaviour, **options)
    contender = Contender(id="it", folder=str(folder), artifact=made, engine="fake")
    return contender, {"x": np.ones(3, np.float32)}


class Watch:
    """Hears the soak's progress: starts a timer at its first block, and knows when that was."""

    def __init__(self, seconds, action):
        self.timer, self.started, self.acted = threading.Timer(seconds, self.act), None, None
        self.action = action

    def act(self):
        self.acted = time.monotonic()
        self.action()

    def __call__(self, text, done, total):
        if text == "soaking" and self.started is None:
            self.started = time.monotonic()
            self.timer.start()

    @property
    def at_s(self):
        return self.acted - self.started


def near(found, at_s):
    """The slow-down at about ``at_s``; other people's work may have slowed the machine elsewhere too."""
    assert isinstance(found, Soak)
    close = [s for s in found.slowdowns if abs(s.change.at_s - at_s) < 2.5]
    assert close, (at_s, found.changes)
    return max(close, key=lambda s: s.change.ratio)


# ---------------------------------------------------------------- real throttling


@contextlib.contextmanager
def control_group():
    """A new control group with the CPU controller: its folder and a function that sets its quota in CPUs."""
    name = f"edgekiln-test-{os.getpid()}"
    mounts = [line.split()[1:4] for line in Path("/proc/mounts").read_text().splitlines()]
    for point, kind, options in mounts:
        one, two = kind == "cgroup" and "cpu" in options.split(","), kind == "cgroup2"
        folder = Path(point) / name
        try:
            if one or two:
                folder.mkdir()
            quota = folder / ("cpu.cfs_quota_us" if one else "cpu.max")
            if not (one or two) or not quota.exists():
                raise FileNotFoundError(quota)
            quota.write_text("-1" if one else "max")
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
            continue
        try:
            yield folder, lambda cpus, quota=quota: quota.write_text(str(int(cpus * 100_000)))
        finally:
            deadline = time.monotonic() + 10
            while folder.exists() and time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    folder.rmdir()
                time.sleep(0.05)
        return
    pytest.skip("no CPU control group can be made here; the competing load below is the real throttling then")


def once_more(test):
    """A second run where the first failed: other work on a shared machine may drown it once."""

    @functools.wraps(test)
    def run(matmuls):
        try:
            test(matmuls)
        except AssertionError as error:
            warnings.warn(f"seen only in a second run: {error}", stacklevel=2)
            test(matmuls)

    return run


@once_more
def test_a_cpu_quota_in_the_middle_is_seen_and_named(matmuls):
    contender, inputs = matmuls
    with control_group() as (folder, limit):
        watch = Watch(7.0, lambda: limit(0.2))
        command = (sys.executable, str(FAKES / "grouped_worker.py"), str(folder / "cgroup.procs"))
        found = soak(contender, inputs, 1, 14.0, command=command, progress=watch, warmup_seconds=2.0)
    slow = near(found, watch.at_s)
    assert slow.change.ratio > 2
    assert slow.change.p <= 0.01
    (quota,) = [c for c in slow.causes if c.kind == "quota"]
    assert "a CPU quota stopped it in" in quota.what
    assert found.ended == "whole"
    if found.burst.per_second is None:  # other work on this machine unsettled the start: that is said instead
        assert found.burst.reason
        assert (found.kept, found.kept_interval) == (None, None)
    else:
        assert found.kept < 0.8
        assert found.kept_interval[1] < 1


@once_more
def test_a_competing_load_on_the_same_core_is_seen_and_named(matmuls):
    contender, inputs = matmuls
    core = min(os.sched_getaffinity(0))
    rivals = []

    def compete():
        code = f"import os; os.sched_setaffinity(0, [{core}])\nwhile True: pass"
        rivals.extend(subprocess.Popen([sys.executable, "-c", code]) for _ in range(3))

    watch = Watch(7.0, compete)
    try:
        found = soak(contender, inputs, 1, 14.0, cores=(core,), progress=watch, warmup_seconds=2.0)
    finally:
        watch.timer.cancel()
        for rival in rivals:
            rival.kill()
            rival.wait()
    assert found.cores == (core,)
    slow = near(found, watch.at_s)
    assert slow.change.ratio > 1.3
    assert "load" in {c.kind for c in slow.causes}, slow.causes


# ---------------------------------------------------------------- what a soak holds


def test_a_soak_is_whole_and_its_parts_agree(tmp_path):
    contender, inputs = fake(tmp_path, ms=4.0)
    found = soak(contender, inputs, 1, 5.0, command=FAKE_WORKER, warmup_seconds=0.2, unfit=("hot",))
    assert isinstance(found, Soak)
    assert (found.ended, found.why, found.asked_s, found.unfit) == ("whole", "", 5.0, ("hot",))
    assert 5.0 <= found.lasted_s < 30
    assert found.n == sum(b.n for b in found.bins) == found.percentiles.n
    assert all(b.p50_ms >= 4 for b in found.bins)
    assert all(a.start_s < b.start_s for a, b in zip(found.bins, found.bins[1:], strict=False))
    assert 0 < found.sustained.per_second <= 250
    assert found.sustained.start_s >= found.lasted_s * 0.6
    assert {len(c.means) for c in found.courses} <= {len(found.bins)}
    assert found.peak_rss_bytes > 1 << 20
    assert (found.energy.mj is None) == bool(found.energy.reason)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Soak) == found


def machine(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")


def test_power_heat_and_clock_of_a_whole_fake_machine(tmp_path):
    """A board that takes 5 W idle and 7 W at work, and gets hot in the middle, where its clock falls."""
    root, hwmon, cpu = tmp_path / "root", "sys/class/hwmon/hwmon0", "sys/devices/system/cpu/cpu0/cpufreq"
    zone = "sys/class/thermal/thermal_zone0"
    cool = {f"{zone}/temp": 60000, f"{cpu}/scaling_cur_freq": 2000000}
    machine(
        root,
        {
            f"{hwmon}/name": "ina3221",
            f"{hwmon}/in1_label": "VDD_IN",
            f"{hwmon}/in1_input": 5000,
            f"{hwmon}/curr1_input": 1000,
            f"{zone}/type": "tj-thermal",
            f"{zone}/trip_point_0_temp": 85000,
            f"{zone}/trip_point_0_type": "passive",
            **cool,
        },
    )
    slow = tmp_path / "slow"
    contender, inputs = fake(tmp_path, ms=4.0, slow_file=str(slow), slow_ms=8.0)

    def heat():
        slow.write_text("")
        machine(root, {f"{zone}/temp": 84500, f"{cpu}/scaling_cur_freq": 1000000})

    watch = Watch(4.0, heat)

    def progress(text, done, total):
        if text == "loading":
            machine(root, {f"{hwmon}/curr1_input": 1400})
        watch(text, done, total)

    found = soak(
        contender, inputs, 1, 9.0, command=FAKE_WORKER, warmup_seconds=0.2, root=root, progress=progress
    )
    assert found.idle.watts == pytest.approx(5)
    assert found.energy.watts == pytest.approx(7)
    assert found.energy.mj == pytest.approx(2 * found.lasted_s * 1e3 / found.n, rel=0.02)
    assert found.watts_of == "ina3221 VDD_IN: the module's input"
    assert (found.clock_of, found.hottest_of) == ("the CPU", "tj-thermal")
    assert (found.clock_mhz[0], found.clock_mhz[-1]) == (2000, 1000)
    assert (found.hottest_c[0], found.hottest_c[-1]) == (60, 84.5)
    causes = {c.kind: c.what for c in near(found, watch.at_s).causes}
    assert causes["clock"] == "the clock of the CPU fell from 2000 to 1000 MHz"
    assert causes["temperature"] == (
        "thermal zone tj-thermal reached 84.5 °C; its passive trip point is 85.0 °C"
    )


# ---------------------------------------------------------------- orderly ends


def gone(folder):
    pid = int((folder / "it.pid").read_text())
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not Path(f"/proc/{pid}").exists()


def threads():
    return [t.name for t in threading.enumerate() if t.name == "recorder"]


def test_ctrl_c_keeps_what_was_measured_and_leaves_nothing_behind(tmp_path):
    contender, inputs = fake(tmp_path)
    watch = Watch(1.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    with interrupt.watched():
        found = soak(contender, inputs, 1, 60.0, command=FAKE_WORKER, warmup_seconds=0.2, progress=watch)
    assert isinstance(found, Soak)
    assert found.ended == "interrupted"
    assert found.why.startswith("cut short after 1 of 60 s") or found.why.startswith(
        "cut short after 2 of 60"
    )
    assert found.n > 0
    assert gone(tmp_path)
    assert threads() == []


def test_ctrl_c_before_the_first_call_is_an_interrupt(tmp_path):
    contender, inputs = fake(tmp_path)

    def press(text, done, total):
        if text == "loading":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        soak(contender, inputs, 1, 60.0, command=FAKE_WORKER, progress=press)
    assert threads() == []


@pytest.mark.parametrize(("behaviour", "kind"), [("crash", "crashed"), ("raise", "refused")])
def test_a_worker_that_is_lost_on_the_way_leaves_what_it_measured(tmp_path, behaviour, kind):
    contender, inputs = fake(tmp_path, behaviour, good_calls=600, ms=2.0)
    found = soak(contender, inputs, 1, 30.0, command=FAKE_WORKER, warmup_seconds=0.2)
    assert isinstance(found, Soak)
    assert found.ended == "failed"
    assert found.why.startswith(kind)
    assert 0 < found.n < 600
    assert found.peak_rss_bytes is None
    assert gone(tmp_path)


def test_a_worker_that_hangs_on_the_way_is_ended(tmp_path):
    contender, inputs = fake(tmp_path, "hang", good_calls=200, ms=2.0)
    found = soak(contender, inputs, 1, 30.0, command=FAKE_WORKER, warmup_seconds=0.2, call_seconds=1.0)
    assert found.ended == "failed"
    assert found.why.startswith("hung")
    assert gone(tmp_path)


@pytest.mark.parametrize("behaviour", ["refuse", "crash"])
def test_a_worker_that_can_t_be_opened_is_a_failure(tmp_path, behaviour):
    contender, inputs = fake(tmp_path, behaviour)
    found = soak(contender, inputs, 1, 5.0, command=FAKE_WORKER)
    assert isinstance(found, TimingFailure)
    assert found.reason
    assert threads() == []


# ---------------------------------------------------------------- durations


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("30m", 1800), ("1h", 3600), ("1h30m", 5400), (" 90S ", 90)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "4s", "-5m", "8d", "30m1h", "999h", "1.5h", "0s", "m"])
def test_what_is_no_duration_is_refused_with_the_cure(text):
    with pytest.raises(BadInput, match="45s, 30m, 1h"):
        parse_duration(text)
