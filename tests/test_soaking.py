"""``bench --soak`` and the gate as a user meets them."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import msgspec
import pytest

from edgekiln.benching import bench
from edgekiln.errors import MachineFault
from edgekiln.progress import Silent
from edgekiln.prove.soak_record import Soak
from edgekiln.soaking import duration, soak
from fakes.command import Kiln


def test_a_soak_is_shown_written_and_read_back(kiln: Kiln, net: Path) -> None:
    done = kiln("bench", net, "--soak", "6s", "--threads", "1", "--out", "out")
    assert done.code == 0, done.stderr
    for word in ("burst", "sustained", "inferences/s", "P95 ms", "energy:"):
        assert word in done.stdout
    found = msgspec.json.decode((kiln.folder / "out/soak.json").read_bytes(), type=Soak)
    assert (found.ended, found.asked_s) == ("whole", 6)
    assert found.n > 10
    page = (kiln.folder / "out/soak.html").read_text()
    assert net.name in page
    assert sorted(p.name for p in (kiln.folder / "out").iterdir()) == ["soak.html", "soak.json"]


def interrupted(kiln: Kiln, net: Path, after_s: float) -> tuple[int, str, str]:
    """Exit code and output of a soak that Ctrl-C ends ``after_s`` seconds after its worker started."""
    running = kiln.start("bench", net, "--soak", "10m", "--threads", "1", "--out", "out", "--json")
    try:
        deadline = time.monotonic() + 60
        workers: list[Path] = []
        while not workers and time.monotonic() < deadline:
            time.sleep(0.2)
            workers = list(Path(f"/proc/{running.pid}/task/{running.pid}").glob("children"))
            workers = [w for w in workers if w.read_text().strip()]
        time.sleep(after_s)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
    return running.returncode, out, err


def test_ctrl_c_writes_what_was_measured(kiln: Kiln, net: Path) -> None:
    # A busy machine may not have measured anything yet, and then there is nothing to write.
    for after_s in (6, 25, 70):
        code, out, err = interrupted(kiln, net, after_s)
        assert code == 130, err
        assert "Traceback" not in err
        if out:
            break
    told = json.loads(out)
    assert told["ended"] == "interrupted"
    assert told["why"].startswith("cut short after")
    kept = msgspec.json.decode((kiln.folder / "out/soak.json").read_bytes(), type=Soak)
    assert kept.n == told["n"] > 0
    assert "Cut short" in (kiln.folder / "out/soak.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--soak", "soon"), ("30m",)),
        (("--soak", "2s"), ("5 seconds",)),
        (("--soak", "6s", "--against", "other.onnx"), ("one model",)),
        (("--out", "out"), ("--soak",)),
        (("--soak", "6s", "--out", "taken/out"), ("taken",)),
    ],
)
def test_what_can_not_be_soaked_is_refused(
    kiln: Kiln, net: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    (kiln.folder / "taken").write_text("a file")
    kiln("bench", net, *arguments).refused(*words)


def test_a_model_that_is_none_is_refused_at_once(kiln: Kiln) -> None:
    kiln("bench", "none.onnx", "--soak", "30m").refused("none.onnx")


# ---------------------------------------------------------------- the gate


def unfit_machine(root: Path) -> Path:
    path = root / "sys/devices/system/cpu/intel_pstate/no_turbo"
    path.parent.mkdir(parents=True)
    path.write_text("1\n")
    return root


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_the_gate_tells_before_it_measures_and_the_result_keeps_it(tmp_path: Path, net: Path) -> None:
    heard = Heard()
    found = bench(net, threads=1, samples=5, progress=heard, root=unfit_machine(tmp_path))
    assert heard.lines[0].startswith("this machine: turbo clocks are switched off")
    assert getattr(found.a, "unfit", None) == (heard.lines[0].removeprefix("this machine: "),)
    assert found.energy is not None
    assert found.energy.reason == "this machine has no sensor of power that can be read"


def test_a_strict_measurement_is_refused_with_the_cure(tmp_path: Path, net: Path) -> None:
    root = unfit_machine(tmp_path)
    for measure in (
        lambda: bench(net, threads=1, samples=5, strict=True, root=root),
        lambda: soak(net, 6.0, threads=1, strict=True, root=root),
    ):
        with pytest.raises(MachineFault, match=r"turbo clocks are switched off.*cho 0 \| sudo tee"):
            measure()


def test_power_of_a_whole_fake_machine_gives_the_energy_of_a_benchmark(tmp_path: Path, net: Path) -> None:
    rail = {"name": "ina3221", "in1_label": "VDD_IN", "in1_input": "5000", "curr1_input": "1000"}
    folder = tmp_path / "sys/class/hwmon/hwmon0"
    folder.mkdir(parents=True)
    for name, text in rail.items():
        (folder / name).write_text(f"{text}\n")

    class Works(Heard):
        def note(self, text: str) -> None:
            if text.startswith("timing"):  # after the idle look: now the board has work
                (folder / "curr1_input").write_text("1500\n")

    found = bench(net, threads=1, samples=20_000, progress=Works(), root=tmp_path)
    energy = found.energy
    assert energy is not None
    assert energy.reason == ""
    assert energy.idle_watts == pytest.approx(5)
    assert energy.watts == pytest.approx(7.5)
    assert energy.inferences > 20_000, "the calls that are not timed take energy too"
    assert energy.mj is not None
    assert energy.mj > 0


def test_two_that_take_turns_have_no_energy_and_the_reason(net: Path) -> None:
    found = bench(net, net, threads=1, samples=5)
    assert found.energy is not None
    assert found.energy.mj is None
    assert "take turns" in found.energy.reason


def test_durations_are_written_for_people() -> None:
    assert [duration(s) for s in (0, 45, 125, 3600, 5400)] == [
        "0 s",
        "45 s",
        "2 min 5 s",
        "1 h",
        "1 h 30 min",
    ]
