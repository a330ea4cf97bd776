"""The recorder: even steps, bounded memory, and whatever happens to a sensor or a clock is an event."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.sensors import live
from edgekiln.sensors.energy import per_inference
from edgekiln.sensors.power import choose, total
from edgekiln.sensors.reading import Reading, Sample
from edgekiln.sensors.recorder import MOST_EVENTS, Recorder
from edgekiln.sensors.tegrastats import parse_log


def one(value, sensor="board", quantity="power_watts", reason=""):
    return Reading(sensor=sensor, quantity=quantity, value=value, reason=reason)


class Clock:
    """Both clocks of a machine, moved by hand."""

    def __init__(self):
        self.now, self.offset = 100.0, 1e9

    def monotonic(self):
        return self.now

    def wall(self):
        return self.now + self.offset


def by_hand(source, clock, **options):
    sources = source if isinstance(source, dict) else {"it": source}
    return Recorder(sources, 0.5, monotonic=clock.monotonic, wall=clock.wall, **options)


def recorded(values, step=0.5, **options):
    """A recording whose one source says ``values`` in turn, None for silence, an exception to raise it."""
    clock, left = Clock(), iter(values)

    def source():
        value = next(left)
        if isinstance(value, Exception):
            raise value
        return Sample(readings=() if value is None else (one(value),))

    running = by_hand(source, clock, **options)
    for at in range(len(values)):
        running.tick() if at < len(values) - 1 else None
        clock.now += step if at < len(values) - 1 else 0.0
    return running.stop()


def test_what_a_source_says_stands_at_its_time():
    found = recorded([1.0, 2.0, 4.0])
    assert found.times_s == (100.0, 100.5, 101.0)
    assert found.track("board", "power_watts").values == (1.0, 2.0, 4.0)
    assert (found.events, found.ticks) == ((), 3)


def test_a_sensor_that_vanishes_and_returns_is_two_events_and_a_gap():
    found = recorded([1.0, None, None, 3.0])
    assert found.track("board", "power_watts").values == (1.0, None, None, 3.0)
    assert [(e.kind, e.what, e.time_s) for e in found.events] == [
        ("lost", "board (power_watts): it is no longer there", 100.5),
        ("returned", "board (power_watts)", 101.5),
    ]


def test_a_source_that_raises_is_an_event_and_the_others_go_on():
    clock, broken = Clock(), True

    def bad():
        if broken:
            raise OSError("the bus is stuck")
        return Sample(readings=(one(9.0, "late"),))

    running = by_hand({"bad": bad, "good": lambda: Sample(readings=(one(1.0),))}, clock)
    running.tick()
    running.tick()
    broken = False
    found = running.stop()
    assert found.track("board", "power_watts").values == (1.0, 1.0, 1.0)
    assert found.track("late", "power_watts").values == (None, None, 9.0)
    assert [(e.kind, e.what) for e in found.events] == [
        ("lost", "bad: the bus is stuck"),
        ("returned", "bad"),
    ]


def test_a_sensor_that_never_reads_keeps_its_reason():
    clock = Clock()
    running = by_hand(lambda: Sample(readings=(one(None, reason="temp answers -256 degrees"),)), clock)
    running.tick()
    found = running.stop()
    track = found.track("board", "power_watts")
    assert (track.values, track.reason, found.events) == ((None, None), "temp answers -256 degrees", ())
    assert total(found).reason == (
        "this machine has no sensor of power that can be read (board: temp answers -256 degrees)"
    )


def test_a_wall_clock_that_jumps_is_an_event_and_moves_no_sample():
    clock = Clock()
    running = by_hand(lambda: Sample(readings=(one(1.0),)), clock)
    running.tick()
    clock.now, clock.offset = clock.now + 0.5, clock.offset - 7200
    running.tick()
    found = running.stop()
    assert [(e.kind, e.what) for e in found.events] == [("clock", "the wall clock jumped by -7200 s")]
    assert found.times_s == (100.0, 100.5, 100.5)


def test_two_sensors_of_one_name_are_both_kept():
    clock = Clock()
    running = by_hand(lambda: Sample(readings=(one(1.0), one(2.0), one(3.0))), clock)
    found = running.stop()
    assert [(t.sensor, t.values) for t in found.tracks] == [
        ("board", (1.0,)),
        ("board #2", (2.0,)),
        ("board #3", (3.0,)),
    ]


def test_events_are_bounded_too():
    found = recorded([1.0, None] * 100)
    assert len(found.events) == MOST_EVENTS
    assert found.events_left_out == 200 - 1 - MOST_EVENTS


@given(st.integers(2, 400), st.integers(8, 40), st.floats(1, 50), st.floats(-0.04, 0.04))
@settings(deadline=None)
def test_a_long_recording_is_thinned_and_keeps_its_integral(count, most, base, slope):
    """A straight line of power: the energy from first to last tick is the same whatever was thinned."""
    watts = [base + 20 + slope * k for k in range(count)]
    found = recorded(watts, most_rows=most)
    assert len(found.times_s) <= most + 2
    assert found.ticks == count
    assert (found.times_s[0], found.times_s[-1]) == (100.0, 100.0 + 0.5 * (count - 1))
    assert all(a < b for a, b in zip(found.times_s, found.times_s[1:], strict=False))
    values = found.track("board", "power_watts").values
    steps = [b - a for a, b in zip(found.times_s, found.times_s[1:], strict=False)]
    area = sum(s * (a + b) / 2 for s, a, b in zip(steps, values, values[1:], strict=False))
    seconds = 0.5 * (count - 1)
    assert area == pytest.approx(seconds * (watts[0] + watts[-1]) / 2, rel=1e-9)


def test_a_thinned_hour_still_gives_the_energy():
    found = recorded([7.0] * 7200, most_rows=512)
    power = total(found)
    energy = per_inference(power.times_s, power.watts, 100.0, 100.0 + 0.5 * 7199, 1000, 5.0)
    assert energy.mj == pytest.approx(2.0 * 0.5 * 7199)


# ---------------------------------------------------------------- the thread


def test_the_thread_keeps_its_interval_and_ends_with_the_block():
    with Recorder({"it": lambda: Sample(readings=(one(1.0),))}, 0.02) as running:
        time.sleep(0.5)
    assert not [t for t in threading.enumerate() if t.name == "recorder"]
    found = running.stop()
    assert 3 <= found.ticks <= 27, "never more often than asked"
    assert found == running.stop()


def test_the_thread_ends_when_the_block_raises():
    with pytest.raises(ZeroDivisionError), Recorder({"it": lambda: Sample(readings=())}, 0.02):
        raise ZeroDivisionError
    assert not [t for t in threading.enumerate() if t.name == "recorder"]


def test_a_sensor_file_that_vanishes_while_the_thread_reads_it(tmp_path):
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("tj\n")
    (zone / "temp").write_text("51000\n")
    with live.here(0.02, root=tmp_path) as sources, Recorder(sources, 0.02) as running:
        time.sleep(0.3)
        (zone / "temp").unlink()
        time.sleep(0.3)
        found = running.stop()
    values = found.track("tj", "temperature_c").values
    assert values[0] == 51
    assert values[-1] is None
    (event,) = found.events
    assert (event.kind, event.what) == ("lost", "tj (temperature_c): temp: No such file or directory")


# ---------------------------------------------------------------- sources


def write(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_counters_of_energy_become_watts_between_two_looks(tmp_path):
    zone = "sys/class/powercap/intel-rapl:0"
    write(tmp_path, f"{zone}/name", "package-0\n")
    write(tmp_path, f"{zone}/energy_uj", "1000000\n")
    source = live.powercap(tmp_path)
    assert source().readings == ()
    write(tmp_path, f"{zone}/energy_uj", "2000000\n")
    (found,) = source().readings
    assert found.sensor == "package-0 (intel-rapl:0)"
    assert found.value > 1


STAT = "cpu  {} 0 0 {} 0 0 0 {} 0 0\ncpu0 1 1\ncpu1 1 1\n"


def test_stolen_time_and_the_work_of_others(tmp_path):
    hz = os.sysconf("SC_CLK_TCK")
    write(tmp_path, "proc/stat", STAT.format(0, 0, 0))
    write(tmp_path, "proc/77/stat", "77 (a b) c) S" + " 0" * 10 + " 0 0 0 0 0")
    source = live.load(tmp_path, own=(77,))
    assert source().readings == ()
    # one second of two CPUs: 1.5 busy, of which 77 took 0.5; 0.2 stolen
    write(tmp_path, "proc/stat", STAT.format(int(1.5 * hz), int(0.3 * hz), int(0.2 * hz)))
    write(tmp_path, "proc/77/stat", f"77 (a b) c) S{' 0' * 10} {int(0.3 * hz)} {int(0.2 * hz)} 0 0 0")
    found = source()
    assert found.value(live.OTHERS, "cpus") == pytest.approx(1.0)
    assert found.value(live.STOLEN, "share") == pytest.approx(0.1)
    write(tmp_path, "proc/stat", "cpu  what\n")
    assert source().readings == ()


@pytest.mark.parametrize(
    ("line", "folder"),
    [("0::/box\n", "sys/fs/cgroup/box"), ("3:cpu,cpuacct:/box\n", "sys/fs/cgroup/cpu,cpuacct/box")],
)
def test_a_quota_that_stops_a_process_is_a_share_of_periods(tmp_path, line, folder):
    write(tmp_path, "proc/9/cgroup", line)
    write(tmp_path, f"{folder}/cpu.stat", "nr_periods 10\nnr_throttled 4\nthrottled_time 1\n")
    source = live.quota(tmp_path, 9)
    assert source().readings == ()
    write(tmp_path, f"{folder}/cpu.stat", "nr_periods 20\nnr_throttled 11\nthrottled_time 1\n")
    assert source().value(live.QUOTA, "share") == pytest.approx(0.7)
    assert source().value(live.QUOTA, "share") == 0
    (tmp_path / folder / "cpu.stat").unlink()
    assert source().readings == ()


FAKE = f"""#!{sys.executable}
import sys, time
for n in range(10**6):
    print("RAM 1/2MB tj@%dC VDD_IN 5000mW/5000mW" % (40 + n % 2), flush=True)
    time.sleep(int(sys.argv[2]) / 1e3)
"""


def test_tegrastats_is_a_child_that_ends_with_the_block(tmp_path, monkeypatch):
    program = tmp_path / "tegrastats"
    program.write_text(FAKE)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with live.here(0.02, root=tmp_path) as sources:
        deadline = time.monotonic() + 20
        while not sources["tegrastats"]().readings and time.monotonic() < deadline:
            time.sleep(0.02)
        assert sources["tegrastats"]().value("VDD_IN", "power_watts") == 5
        (child,) = [p for p in processes() if str(program) in processes()[p]]
        os.kill(child, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="ended with exit code -9"):
            ask_until_it_raises(sources["tegrastats"])
        recording = Recorder(sources, 0.02)
        recording.tick()
        (event,) = recording.stop().events
        assert (event.kind, "ended with exit code -9" in event.what) == ("lost", True)
    assert not [p for p, line in processes().items() if str(program) in line]


def ask_until_it_raises(source, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        source()
        time.sleep(0.02)


def processes():
    """Command lines of processes that are no zombies."""
    found = {}
    for name in filter(str.isdigit, (p.name for p in Path("/proc").iterdir())):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                line = file.read().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if line:
            found[int(name)] = line
    return found


def test_a_tegrastats_that_falls_silent_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "STALE_SECONDS", 0.3)
    program = tmp_path / "tegrastats"
    program.write_text(f"#!{sys.executable}\nimport time\nprint('tj@40C', flush=True)\ntime.sleep(1000)\n")
    program.chmod(0o755)
    with (
        live.tegrastats(str(program), 0.01) as source,
        pytest.raises(RuntimeError, match="wrote nothing for"),
    ):
        ask_until_it_raises(source)


def test_a_tegrastats_that_can_t_be_started_says_so_at_each_look(tmp_path):
    program = tmp_path / "tegrastats"
    program.write_text("no program\n")
    program.chmod(0o755)
    with (
        live.tegrastats(str(program), 0.1) as source,
        pytest.raises(RuntimeError, match="tegrastats: Exec format"),
    ):
        source()


# ---------------------------------------------------------------- the power of the whole machine

REAL_LOG = Path(__file__).resolve().parents[3] / "shared" / "data" / "tegrastats_orin_nano_jp6.txt"


@pytest.mark.skipif(not REAL_LOG.exists(), reason="the real log lies beside the repository")
def test_a_real_log_of_an_orin_nano_is_understood_whole_and_gives_the_module_s_power():
    samples = list(parse_log(REAL_LOG.read_text().splitlines()))
    assert len(samples) > 10
    assert {word for s in samples for word in s.unread} == set()
    clock, left = Clock(), iter(samples)
    running = by_hand(lambda: next(left), clock)
    for _ in samples[1:]:
        running.tick()
        clock.now += 1.0
    power = total(running.stop())
    assert (power.sensors, power.scope) == (("VDD_IN",), "the module's input")
    assert len(power.watts) == len(samples)
    assert 3 < min(power.watts) <= max(power.watts) < 30, "an Orin Nano takes 4 W idle and 25 W at most"
    spent = per_inference(power.times_s, power.watts, power.times_s[0], power.times_s[-1], 10, 0.0)
    assert spent.watts == pytest.approx(sum(power.watts) / len(power.watts), rel=0.05)


@pytest.mark.parametrize(
    ("sensors", "chosen", "words"),
    [
        (["VDD_IN", "VDD_SOC", "VDD_CPU_GPU_CV"], ("VDD_IN",), "module"),
        (["ina3221 VDD_IN", "ina3221 VDD_SOC"], ("ina3221 VDD_IN",), "module"),
        (["POM_5V_IN", "POM_5V_CPU"], ("POM_5V_IN",), "module"),
        (["core (intel-rapl:0:0)", "package-0 (intel-rapl:0)"], ("package-0 (intel-rapl:0)",), "packages"),
        (
            ["package-0 (intel-rapl:0)", "package-1 (intel-rapl:1)", "package-0 (intel-rapl-mmio:0)"],
            ("package-0 (intel-rapl:0)", "package-1 (intel-rapl:1)"),
            "packages",
        ),
        (["psys (intel-rapl:1)", "package-0 (intel-rapl:0)"], ("psys (intel-rapl:1)",), "platform"),
        (["amdgpu PPT"], ("amdgpu PPT",), "the one sensor"),
        (["VDD_GPU_SOC", "VIN_SYS_5V0"], (), "of 2 sensors of power none is known"),
        ([], (), "no sensor of power"),
    ],
)
def test_the_machine_s_power_is_a_sensor_that_holds_the_others_or_none(sensors, chosen, words):
    names, scope, reason = choose(sensors)
    assert names == chosen
    assert words in scope + reason
    assert bool(names) != bool(reason)
