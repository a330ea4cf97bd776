"""An Android device behind a whole fake adb server, spoken to by the real client library."""

from __future__ import annotations

import builtins
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgekiln.errors import BadInput, DeviceFault, MissingExtra, NotRunnableHere
from edgekiln.prove.remote.adb import AdbLink
from edgekiln.prove.remote.address import AdbAddress
from edgekiln.prove.remote.bench import bench_on
from edgekiln.prove.remote.link import Broken
from edgekiln.prove.remote.result import RemoteBench
from edgekiln.records import Artifact
from fakes import adb_server
from fakes.adb_server import AdbServer
from fakes.command import Kiln
from fakes.measured import QUICK, bundle
from fakes.sysfs_tree import board

Given = tuple[Artifact, Path]
ADDRESS = AdbAddress(serial=adb_server.SERIAL)
PERF = """
for last; do :; done
for i in 1 2 3 4 5 6 7 8 9 10; do
  for j in 1 2 3; do echo "conv,0.00$((i % 3 + 2))5,1000000,50,$i" >>"$last"; done
done
sleep 0.5
echo "Session creation time cost: 0.25 s"
echo "First inference time cost: 12 ms"
echo "Total inference requests: 30"
echo "Average inference time cost total: 3.5 ms"
echo "Peak working set size: 33554432 bytes"
"""


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AdbServer]:
    with adb_server.server(tmp_path / "phone") as made:
        monkeypatch.setenv("ANDROID_ADB_SERVER_ADDRESS", "127.0.0.1")
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(made.port))
        yield made


def program(folder: Path, script: str) -> Path:
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{script}\n")
    return path


def measure(given: Given, tmp_path: Path, script: str, **changes: Any) -> RemoteBench:
    root = board(tmp_path / "board")
    course = msgspec.structs.replace(QUICK, root=str(root), patience_seconds=3.0, **changes)
    return bench_on(*given, {}, ADDRESS, course, runner=program(tmp_path, script))


@pytest.mark.parametrize("features", ["shell_v2,cmd", "cmd"])
def test_arguments_outputs_and_status(phone: AdbServer, features: str) -> None:
    phone.features = features
    link = AdbLink(ADDRESS)
    words = ["a b", "it's", "$HOME", "; exit 3", "line\nbreak", "-rf", "*", ""]
    assert link.run(["printf", "[%s]", *words]).text == "".join(f"[{w}]" for w in words)
    assert link.run(["sh", "-c", "exit 7"]).rc == 7
    assert link.run(["no-such-program"]).rc == 127
    assert link.run(["sh", "-c", "echo out; echo err >&2"]).text.startswith("out\n")


def test_a_file_arrives_whole_or_not_at_all(phone: AdbServer, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(os.urandom(200_000))
    link = AdbLink(ADDRESS)
    for name in ("plain", "a b; rm -rf $HOME'", "a,b"):
        link.put(tmp_path / "source", f"/data/local/tmp/{name}", 0o700)
        assert (phone.data / name).read_bytes() == (tmp_path / "source").read_bytes()
        assert os.access(phone.data / name, os.X_OK)
    phone.program("sha256sum", "echo 00 -")
    with pytest.raises(Broken, match="damaged"):
        link.put(tmp_path / "source", "/data/local/tmp/other")
    assert not list(phone.data.glob("other*"))


def test_a_full_storage_is_told(phone: AdbServer, tmp_path: Path) -> None:
    phone.room_bytes = 1000
    phone.program(
        "df", "echo 'Filesystem 1K-blocks Used Available Use% Mounted'; echo '/d 100 99 1 99% /data'"
    )
    (tmp_path / "source").write_bytes(b"x" * 5000)
    with pytest.raises(DeviceFault, match="no space is left"):
        AdbLink(ADDRESS).put(tmp_path / "source", "/data/local/tmp/x")


@pytest.mark.parametrize(
    ("state", "cure"), [("unauthorized", "allow this computer's key"), ("offline", "plug it in again")]
)
def test_a_device_that_does_not_want_us_has_its_own_cure(phone: AdbServer, state: str, cure: str) -> None:
    phone.state = state
    with pytest.raises(DeviceFault, match=state) as refused:
        AdbLink(ADDRESS).run(["true"])
    assert cure in refused.value.cure
    assert phone.commands == []


def test_an_unknown_serial_names_those_that_are_there(phone: AdbServer) -> None:
    with pytest.raises(Broken, match=adb_server.SERIAL):
        AdbLink(AdbAddress(serial="0A1B")).run(["true"])


def test_no_server_is_an_error_and_none_is_started(phone: AdbServer) -> None:
    phone.stop()
    with pytest.raises(DeviceFault, match="no adb server answers") as refused:
        AdbLink(ADDRESS).run(["true"])
    assert "adb start-server" in refused.value.cure


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("adbutils"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"edgekiln\[android\]"):
        AdbLink(ADDRESS)


def test_output_without_end_and_a_command_that_hangs_are_stopped(phone: AdbServer) -> None:
    link = AdbLink(ADDRESS)
    with pytest.raises(DeviceFault, match="printed more than"):
        link.run(["yes"], max_bytes=100_000)
    with pytest.raises(Broken):
        link.run(["sleep", "30"], seconds=0.5)


# ---------------------------------------------------------------- whole measurements


def test_a_whole_run_with_onnxruntimes_program(phone: AdbServer, artifact: Given, tmp_path: Path) -> None:
    found = measure(artifact, tmp_path, PERF)
    assert found.platform == "android"
    assert found.device == "Pixel Imaginary"
    assert len(found.samples_ms) == 30
    assert found.percentiles is not None
    assert 2.5 <= found.percentiles.p50 <= 4.5
    by_name = {e.what: e for e in found.evidence}
    assert by_name["latency_p50_ms"].how == "measured"
    assert by_name["load_ms"].value == 250.0
    assert by_name["peak_memory_bytes"].value == 32 << 20
    assert by_name["latency_mean_ms"].value == 3.5
    assert by_name["temperature_max_c"].value == 41.5
    assert by_name["energy_mj"].value is None
    assert found.recording is not None
    skin = found.recording.track("SKIN skin", "temperature_c")
    assert skin is not None
    assert set(skin.values) == {33.0}
    assert found.unread == ()
    assert adb_server.SERIAL not in msgspec.json.encode(found).decode()
    assert phone.left_behind() == []
    time.sleep(0.5)
    assert phone.processes() == []


def test_litert_gives_statistics_without_samples(phone: AdbServer, artifact: Given, tmp_path: Path) -> None:
    one, folder = artifact
    (folder / "model.onnx").rename(folder / "model.tflite")
    renamed = tuple(msgspec.structs.replace(f, path="model.tflite") for f in one.files)
    lite = msgspec.structs.replace(one, entry="model.tflite", engine="litert", files=renamed)
    timed = "INFO: count=50 first=900 curr=800 min=700 max=1000 avg=850 std=9 p5=700 median=840 p95=990"
    summary = "Inference timings in us: Init: 5579, First inference: 9, Warmup (avg): 1, Inference (avg): 850"
    found = measure(
        (lite, folder), tmp_path, f"echo 'INFO: count=1 curr=13576'; echo '{timed}'; echo '{summary}'"
    )
    values = {e.what: e.value for e in found.evidence}
    assert values["latency_p50_ms"] == pytest.approx(0.84)
    assert values["latency_p95_ms"] == pytest.approx(0.99)
    assert values["latency_p99_ms"] is None
    assert values["load_ms"] == pytest.approx(5.579)
    assert found.percentiles is None
    assert found.samples_ms == ()


def test_output_that_nobody_expects_is_kept_with_null(
    phone: AdbServer, artifact: Given, tmp_path: Path
) -> None:
    phone.dumpsys("Can not find service: thermalservice", "odd: battery\n")
    found = measure(artifact, tmp_path, "echo 'took about 3 ms, I guess'")
    assert found.percentiles is None
    latency = found.get("latency_p50_ms")
    assert latency is not None
    assert latency.value is None
    assert "see unread" in latency.reason
    assert any("I guess" in text for text in found.unread)
    assert any("Can not find service" in text for text in found.unread)
    heat = found.get("temperature_max_c")
    assert heat is not None
    assert heat.value is None


def test_heat_that_lowers_clocks_is_said(phone: AdbServer, artifact: Given, tmp_path: Path) -> None:
    phone.dumpsys(adb_server.THERMAL.replace("Status: 0", "Status: 3"), adb_server.BATTERY)
    found = measure(artifact, tmp_path, PERF)
    assert any("thermal status rose to 'severe'" in sentence for sentence in found.unfit)


def test_connections_that_drop_are_made_anew(phone: AdbServer, artifact: Given, tmp_path: Path) -> None:
    phone.drop_when = "setsid"
    found = measure(artifact, tmp_path, PERF)
    assert len(found.samples_ms) == 30
    assert len(found.events) == 1
    assert "the connection was lost" in found.events[0]


def test_a_connection_that_drops_at_once_is_an_error_at_once(
    phone: AdbServer, artifact: Given, tmp_path: Path
) -> None:
    phone.drop_when = "true"
    with pytest.raises(DeviceFault, match="closed") as lost:
        measure(artifact, tmp_path, PERF)
    assert "adb devices" in lost.value.cure


def test_a_phone_that_is_unplugged_for_good_tidies_up_by_itself(
    phone: AdbServer, artifact: Given, tmp_path: Path
) -> None:
    threading.Timer(2.0, lambda: setattr(phone, "state", "")).start()
    with pytest.raises(DeviceFault, match="did not answer"):
        measure(artifact, tmp_path, "sleep 4\n" + PERF, keep_seconds=1.0)
    until = time.monotonic() + 30
    while any("model" in name for name in phone.left_behind()):
        assert time.monotonic() < until
        time.sleep(0.2)


def test_a_program_that_fails_is_told_in_its_own_words(
    phone: AdbServer, artifact: Given, tmp_path: Path
) -> None:
    with pytest.raises(NotRunnableHere, match="status 1: error: not an ELF of this machine"):
        measure(artifact, tmp_path, "echo 'error: not an ELF of this machine' >&2; exit 1")
    assert phone.left_behind() == []


def test_a_program_has_to_be_given_and_has_to_fit(phone: AdbServer, artifact: Given, kiln: Kiln) -> None:
    made = bundle(kiln.folder / "conv.edgekiln", *artifact)
    kiln("bench", made, "--on", f"adb://{adb_server.SERIAL}").refused("onnxruntime_perf_test")
    kiln("bench", made, "--on", f"adb://{adb_server.SERIAL}", "--runner", "nowhere").refused("no file")
    one, folder = artifact
    with pytest.raises(NotRunnableHere, match="openvino"):
        bench_on(msgspec.structs.replace(one, engine="openvino"), folder, {}, ADDRESS, QUICK)
    with pytest.raises(BadInput, match="no Python"):
        bench_on(one, folder, {}, ADDRESS, QUICK)
