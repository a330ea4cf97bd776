"""Whole measurements over SSH on loopback, and everything that can go wrong on the way."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from numpy.typing import NDArray

from edgekiln.errors import BadInput, DeviceFault, NotRunnableHere
from edgekiln.prove.remote.address import parse
from edgekiln.prove.remote.bench import bench_on
from edgekiln.prove.remote.order import Course
from edgekiln.prove.remote.result import RemoteBench
from edgekiln.records import Artifact
from fakes.command import Kiln
from fakes.measured import QUICK, bundle, conv
from fakes.ssh_server import Device
from fakes.sysfs_tree import board

Given = tuple[Artifact, Path]
Arrays = dict[str, NDArray[Any]]


def measure(device: Device, given: Given, inputs: Arrays, course: Course = QUICK, **more: Any) -> RemoteBench:
    return bench_on(*given, inputs, parse(device.address), course, **more)


def with_(**changes: Any) -> Course:
    return msgspec.structs.replace(QUICK, **changes)


def fake_engine(device: Device, body: str) -> None:
    """An ``onnxruntime`` on the device whose sessions do what ``body`` says."""
    folder = device.folder / "modules"
    folder.mkdir()
    (folder / "onnxruntime.py").write_text(
        "import os, signal, sys, time\n"
        "__version__ = '1.10.0'\n"
        "class SessionOptions:\n"
        "    def add_session_config_entry(self, key, value): pass\n"
        "class GraphOptimizationLevel: ORT_ENABLE_ALL = 99\n"
        "def set_default_logger_severity(level): pass\n"
        "class Output: name = 'y'\n"
        "class InferenceSession:\n"
        "    calls = 0\n"
        "    def __init__(self, path, options, providers): self.opened()\n"
        "    def get_outputs(self): return [Output()]\n"
        "    def opened(self): pass\n"
        f"    {body}\n"
    )
    device.environment["PYTHONPATH"] = str(folder)


# ---------------------------------------------------------------- it works


def test_a_whole_run_brings_back_figures_and_leaves_nothing_there(
    device: Device, artifact: Given, inputs: Arrays
) -> None:
    found = measure(device, artifact, inputs)
    assert found.percentiles is not None
    assert found.percentiles.n == len(found.samples_ms) == sum(found.blocks) == 40
    assert 0 < found.percentiles.p50 < 1000
    assert found.percentiles.p99 is None
    assert found.platform == "linux"
    assert found.engine == "onnxruntime"
    assert found.events == found.unread == ()
    assert list(found.phases) == ["idle", "load", "warm-up", "timing", "after"]
    assert list(found.phases.values()) == sorted(found.phases.values())
    assert found.phases["load"] >= QUICK.idle_seconds
    by_name = {e.what: e for e in found.evidence}
    assert by_name["latency_p50_ms"].how == "measured"
    assert by_name["latency_p50_ms"].where == found.device
    assert by_name["latency_p50_ms"].interval is not None
    assert by_name["latency_p99_ms"].value is None
    assert "at least 100" in by_name["latency_p99_ms"].reason
    memory = by_name["peak_memory_bytes"].value
    assert memory is not None
    assert memory > 20e6
    assert device.left_behind() == []
    assert device.runners() == []


def test_no_name_of_the_device_or_its_user_stands_in_the_answer(
    device: Device, artifact: Given, inputs: Arrays
) -> None:
    device.when("lines.jsonl", lambda: (device.unplug(), time.sleep(1.0), device.plug_in()))
    found = measure(device, artifact, inputs, with_(idle_seconds=1.0))
    assert len(found.events) == 1
    text = msgspec.json.encode(found).decode()
    for secret in ("127.0.0.1", "edge@", str(device.port), str(device.home), "known_hosts"):
        assert secret not in text


def test_openvino_runs_there_too(device: Device, artifact: Given, inputs: Arrays) -> None:
    one, folder = artifact
    found = measure(device, (msgspec.structs.replace(one, engine="openvino"), folder), inputs)
    assert found.engine_version.startswith("20")
    assert found.percentiles is not None


def test_options_of_the_artifact_are_applied_there(device: Device, artifact: Given, inputs: Arrays) -> None:
    one, folder = artifact
    tuned = msgspec.structs.replace(one, options={"io_binding": True, "graph_level": "basic", "arena": False})
    assert measure(device, (tuned, folder), inputs).percentiles is not None
    bad = msgspec.structs.replace(one, options={"graph_level": "utmost"})
    with pytest.raises(BadInput, match="graph_level"):
        measure(device, (bad, folder), inputs)


def test_sensors_over_time_and_energy_from_the_boards_own_rail(
    device: Device, artifact: Given, inputs: Arrays, tmp_path: Path
) -> None:
    root = board(tmp_path / "board")
    # the rail says 10 W from the moment on that the run has loaded
    fake_engine(
        device,
        "def run(self, names, inputs):\n"
        f"        open({str(root / 'sys/class/hwmon/hwmon3/curr1_input')!r}, 'w').write('2000')\n"
        "        time.sleep(0.02)",
    )
    found = measure(device, artifact, inputs, with_(root=str(root), idle_seconds=1.0, samples=100))
    assert found.device == "NVIDIA Imaginary Orin Developer Kit"
    assert found.environment["l4t"] == "# R36 (release), REVISION: 4.3"
    assert found.environment["cpus_usable"] == 6
    assert found.environment["kernel"] == "5.15.148-tegra"
    assert any("governor is schedutil" in sentence for sentence in found.unfit)
    assert found.recording is not None
    hot = found.recording.track("cpu-thermal", "temperature_c")
    assert hot is not None
    assert set(hot.values) == {48.5}
    gone = found.recording.track("cv0-thermal", "temperature_c")
    assert gone is not None
    assert set(gone.values) == {None}
    assert "-256" in gone.reason
    silent = found.recording.track("tj-thermal", "temperature_c")
    assert silent is not None
    assert set(silent.values) == {None}
    assert found.recording.times_s[0] == 0.0
    assert list(found.recording.times_s) == sorted(found.recording.times_s)
    heat = found.get("temperature_max_c")
    assert heat is not None
    assert heat.value == 48.5
    assert found.power.sensors == ("ina3221 VDD_IN",)
    assert (min(found.power.watts), max(found.power.watts)) == pytest.approx((4.0, 10.0))
    if "hole" in found.energy.reason:  # on a busy machine: no energy is made of what was not seen
        return
    assert found.energy.idle_watts == pytest.approx(4.0, abs=0.5)
    assert found.energy.watts == pytest.approx(10.0, abs=1.5)
    # 6 W more than at rest, for as long as one of 100 calls took
    assert found.energy.mj == pytest.approx(6.0 * found.percentiles.p50, rel=0.5)  # type: ignore[union-attr]


def test_a_device_that_is_not_fit_is_refused_where_the_user_is_strict(
    device: Device, artifact: Given, inputs: Arrays, tmp_path: Path
) -> None:
    root = board(tmp_path / "board")
    with pytest.raises(DeviceFault, match="governor is schedutil") as unfit:
        measure(device, artifact, inputs, with_(root=str(root)), strict=True)
    assert "cpupower frequency-set" in unfit.value.cure
    assert not any("mkdir" in command for command in device.commands), "nothing was copied"


def test_tegrastats_and_the_power_mode_of_a_jetson(device: Device, artifact: Given, inputs: Arrays) -> None:
    device.program("nvpmodel", "echo 'NV Power Mode: 15W'; echo 0")
    line = "RAM 519/7607MB CPU [0%@1728] tj@49.5C cv0@-256C VDD_IN ${n}mW/5000mW SPARKLE <<9>>"
    device.program("tegrastats", f'n=5000; while :; do echo "{line}"; n=$((n + 50)); sleep 0.1; done')
    found = measure(device, artifact, inputs, with_(idle_seconds=0.6, least_seconds=1.0))
    assert found.environment["power_mode"] == "NV Power Mode: 15W; 0"
    assert found.power.sensors == ("VDD_IN",)
    assert found.power.watts[0] == pytest.approx(5.0, abs=0.3)
    assert list(found.power.watts) == sorted(found.power.watts)
    if "hole" not in found.energy.reason:  # as on a busy machine: no energy is made of what was not seen
        assert found.energy.watts is not None
        assert found.energy.watts > 5.2
    assert "SPARKLE" in " ".join(found.unread)
    assert "<<9>>" in " ".join(found.unread)
    assert device.left_behind() == []
    time.sleep(0.3)
    assert not [p for p in device.runners() if p], "its tegrastats ended with the run"


def test_hostile_names_of_bundles_and_files_mean_nothing_to_any_shell(
    device: Device, kiln: Kiln, tmp_path: Path, inputs: Arrays
) -> None:
    one, folder = conv(tmp_path / "m", name="sub dir/a b'; touch $HOME/owned; #\n-rf.onnx")
    found = measure(device, (one, folder), inputs)
    assert found.percentiles is not None
    made = bundle(tmp_path / "a b;touch owned'\n.edgekiln", one, folder)
    kiln.folder = tmp_path
    done = kiln("bench", f"./{made.name}", "--on", device.address, "--idle-seconds", "0", "--samples", "20")
    assert done.code == 0, done.stderr
    assert device.left_behind() == []
    assert not (tmp_path / "owned").exists()


def test_the_command_line_prints_a_table_or_json(device: Device, kiln: Kiln, artifact: Given) -> None:
    made = bundle(kiln.folder / "conv.edgekiln", *artifact)
    arguments = ["bench", made, "--on", device.address, "--idle-seconds", "0.3", "--samples", "30"]
    done = kiln(*arguments)
    assert done.code == 0, done.stderr
    for word in ("P50 ms", "onnxruntime", "measured", "energy per inference", "no sensor of power"):
        assert word in done.stdout
    told = kiln(*arguments, "--json")
    assert told.json["percentiles"]["n"] >= 30
    assert told.json["evidence"][0]["how"] == "measured"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["x.onnx", "--on", "ssh://host"], "only a bundle"),
        (["x.edgekiln", "--on", "ssh://a:b@host"], "password"),
        (["x.edgekiln", "--on", "telnet://host"], "no address"),
        (["x.edgekiln", "--on", "ssh://host", "--against", "y.edgekiln"], "one bundle"),
        (["x.edgekiln", "--on", "ssh://host", "--soak", "1m"], "--soak"),
        (["x.edgekiln", "--on", "ssh://host", "--idle-seconds", "-1"], "--idle-seconds"),
        (["x.edgekiln", "--accept-new-host-key"], "--on ADDRESS"),
    ],
)
def test_wrong_arguments(kiln: Kiln, arguments: list[str], word: str) -> None:
    kiln("bench", *arguments).refused(word)


# ---------------------------------------------------------------- the connection


def test_a_connection_that_drops_in_the_middle_loses_nothing(
    device: Device, artifact: Given, inputs: Arrays
) -> None:
    device.when("lines.jsonl", device.drop, times=2)
    found = measure(device, artifact, inputs, with_(idle_seconds=1.5))
    assert len(found.samples_ms) == 40
    assert len(found.events) >= 1
    assert "the connection was lost" in found.events[0]
    assert device.logins >= 2
    assert device.left_behind() == []
    _until(lambda: device.runners() == [])  # a command that was hung up takes a moment to end


@pytest.mark.parametrize("moment", ["mkdir", "cat >", "runner.py", "rm -rf"])
def test_it_may_drop_at_any_other_moment(
    device: Device, artifact: Given, inputs: Arrays, moment: str
) -> None:
    device.when(moment, device.drop)
    found = measure(device, artifact, inputs)
    assert len(found.samples_ms) == 40
    assert device.left_behind() == []
    _until(lambda: device.runners() == [])  # a command that was hung up takes a moment to end


def test_a_device_that_is_away_for_a_while_is_found_again(
    device: Device, artifact: Given, inputs: Arrays
) -> None:
    def leave() -> None:
        device.unplug()
        time.sleep(1.5)
        device.plug_in()

    device.when("lines.jsonl", leave)
    found = measure(device, artifact, inputs, with_(idle_seconds=1.0))
    assert len(found.samples_ms) == 40
    assert "refused" in found.events[0] or "lost" in found.events[0]


def test_a_device_that_is_gone_for_good_is_an_error_and_tidies_up_by_itself(
    device: Device, artifact: Given, inputs: Arrays
) -> None:
    device.when("lines.jsonl", device.unplug)
    started = time.monotonic()
    with pytest.raises(DeviceFault, match="did not answer") as lost:
        measure(device, artifact, inputs, with_(patience_seconds=2.0, keep_seconds=2.0, idle_seconds=1.0))
    assert time.monotonic() - started < 60
    assert "removes itself" in lost.value.cure
    _until(lambda: device.left_behind() in ([], [".cache/edgekiln", ".cache/edgekiln/runs"]))
    _until(lambda: device.runners() == [])


def test_a_host_key_that_changes_in_the_middle_ends_it(
    device: Device, artifact: Given, inputs: Arrays
) -> None:
    device.when("lines.jsonl", device.change_host_key)
    with pytest.raises(DeviceFault, match="host key changed"):
        measure(device, artifact, inputs, with_(idle_seconds=1.0, keep_seconds=2.0, patience_seconds=2.0))


def test_nobody_there_is_said_at_once(device: Device, artifact: Given, inputs: Arrays) -> None:
    device.unplug()
    with pytest.raises(DeviceFault, match="refused") as away:
        measure(device, artifact, inputs)
    assert "runs an SSH server" in away.value.cure


def test_ctrl_c_takes_everything_away_again(device: Device, kiln: Kiln, artifact: Given) -> None:
    made = bundle(kiln.folder / "conv.edgekiln", *artifact)
    child = kiln.start("bench", made, "--on", device.address, "--idle-seconds", "30")
    _until(lambda: any("lines.jsonl" in command for command in device.commands), 60)
    assert device.runners() != []
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == 130, (stdout, stderr)
    assert "Traceback" not in stderr
    assert device.left_behind() == []
    _until(lambda: device.runners() == [])


def _until(condition: Any, seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.1)


# ---------------------------------------------------------------- the device


@pytest.mark.parametrize(("opset", "ir"), [(17, 99), (99, 8)])
def test_a_runtime_older_than_the_model_is_named_with_its_cure(
    device: Device, inputs: Arrays, tmp_path: Path, opset: int, ir: int
) -> None:
    with pytest.raises(NotRunnableHere) as old:
        measure(device, conv(tmp_path / "new", opset=opset, ir=ir), inputs)
    assert str(99) in old.value.why
    assert "Install a newer onnxruntime there" in old.value.cure
    assert device.left_behind() == []


def test_a_runtime_that_is_not_there(device: Device, artifact: Given, inputs: Arrays) -> None:
    device.program("bare", 'exec python3 -S -I "$@"')
    with pytest.raises(NotRunnableHere) as bare:
        measure(device, artifact, inputs, python="bare")
    assert "pip install" in bare.value.cure
    assert "--remote-python" in bare.value.cure


@pytest.mark.parametrize(
    ("script", "why"),
    [("exit 127", "no working Python"), ("echo 3.6.9", "its Python is 3.6.9"), ("echo hello", "no working")],
)
def test_no_python_or_an_old_one(
    device: Device, artifact: Given, inputs: Arrays, script: str, why: str
) -> None:
    device.program("python3", script)
    with pytest.raises(DeviceFault, match=why) as refused:
        measure(device, artifact, inputs)
    assert "--remote-python" in refused.value.cure
    assert device.left_behind() == []


def test_half_precision_is_not_timed_on_a_cpu_without_it(
    device: Device, artifact: Given, inputs: Arrays
) -> None:
    device.program("uname", "echo x86_64")
    one, folder = artifact
    half = msgspec.structs.replace(one, options={"arithmetic": "fp16"})
    import platform

    if platform.machine() in {"aarch64", "arm64"}:
        assert measure(device, (half, folder), inputs).percentiles is not None
        return
    with pytest.raises(NotRunnableHere, match="float32"):
        measure(device, (half, folder), inputs)


def test_an_engine_that_no_linux_device_runs(device: Device, artifact: Given, inputs: Arrays) -> None:
    one, folder = artifact
    with pytest.raises(NotRunnableHere, match="coreml"):
        measure(device, (msgspec.structs.replace(one, engine="coreml"), folder), inputs)
    assert device.commands == []


@pytest.mark.parametrize(
    ("body", "kind", "why"),
    [
        ("def opened(self): os.abort()", DeviceFault, "crashed with signal 6"),
        ("def opened(self): os._exit(3)", DeviceFault, "exit code 3"),
        ("def opened(self): os.kill(os.getpid(), signal.SIGKILL)", DeviceFault, "memory ran out"),
        ("def opened(self): raise MemoryError", DeviceFault, "memory ran out"),
        ("def opened(self): raise RuntimeError('no kernel for Foo')", NotRunnableHere, "no kernel for Foo"),
        ("def run(self, names, inputs): raise ValueError('bad shape')", NotRunnableHere, "bad shape"),
    ],
)
def test_an_engine_that_fails_is_told_with_its_reason(
    device: Device, artifact: Given, inputs: Arrays, body: str, kind: type[Exception], why: str
) -> None:
    fake_engine(device, body)
    with pytest.raises(kind, match=why):
        measure(device, artifact, inputs)
    assert device.left_behind() == []
    assert device.runners() == []


def test_an_engine_that_hangs_is_ended_there(device: Device, artifact: Given, inputs: Arrays) -> None:
    fake_engine(device, "def run(self, names, inputs): time.sleep(60)")
    with pytest.raises(DeviceFault, match=r"silent for \d+ s"):
        measure(device, artifact, inputs, with_(open_seconds=1.0))
    assert device.runners() == []


def test_a_disk_that_fills_up_in_the_middle_is_told(device: Device, artifact: Given, inputs: Arrays) -> None:
    device.file_bytes = 30_000
    fake_engine(device, "def run(self, names, inputs): sys.stdout.write('x'); time.sleep(0.001)")
    with pytest.raises(DeviceFault, match="no space is left on its disk") as full:
        measure(device, artifact, inputs, with_(samples=100_000))
    assert "Free some space" in full.value.cure
    assert device.left_behind() == []
    assert device.runners() == []


def test_a_wall_clock_that_jumps_moves_nothing(device: Device, artifact: Given, inputs: Arrays) -> None:
    folder = device.folder / "jumping"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import itertools, time\n"
        "jumps = itertools.count()\n"
        "time.time = lambda: 1e9 * (-1) ** next(jumps)\n"
        "time.time_ns = lambda: int(time.time() * 1e9)\n"
    )
    device.environment["PYTHONPATH"] = str(folder)
    found = measure(device, artifact, inputs)
    assert len(found.samples_ms) == 40
    assert all(0 < ms < 5000 for ms in found.samples_ms)
    assert found.recording is not None
    assert 0 < found.recording.times_s[-1] < 60
    assert found.recording.events == ()


def test_output_that_nobody_expects_is_kept_word_for_word(
    device: Device, artifact: Given, inputs: Arrays
) -> None:
    device.program("nvpmodel", "printf 'NV Fan Mode:quiet\\033[31m\\n'")
    strange = '{"kind":"block","t":1,"begun":1,"ended":2,"ms":[-5]}\n#!?\n'
    fake_engine(
        device,
        "def run(self, names, inputs):\n"
        "        if self.calls == 0:\n"
        "            import glob\n"
        "            name = glob.glob(os.path.expanduser('~/.cache/edgekiln/runs/*/lines.jsonl'))[0]\n"
        f"            open(name, 'a').write({strange!r})\n"
        "        self.calls += 1\n"
        "        time.sleep(0.001)",
    )
    found = measure(device, artifact, inputs)
    assert len(found.unread) == 2
    assert "-5" in found.unread[0]
    assert found.unread[1] == "#!?"
    assert len(found.samples_ms) == 40
    assert str(found.environment["power_mode"]).startswith("NV Fan Mode:quiet")
