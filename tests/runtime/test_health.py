"""The health of a machine, read from whole fake trees, with sensors that vanish, hang and talk nonsense."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekiln.runtime import health
from edgekiln.sensors import headroom, power_supply
from edgekiln.sensors.reading import Reading, Sample
from fakes.sysfs_tree import board


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


LAPTOP = {
    "sys/class/power_supply/BAT0/type": "Battery\n",
    "sys/class/power_supply/BAT0/present": "1\n",
    "sys/class/power_supply/BAT0/capacity": "37\n",
    "sys/class/power_supply/BAT0/status": "Discharging\n",
    "sys/class/power_supply/BAT0/current_now": "-1500000\n",
    "sys/class/power_supply/BAT0/voltage_now": "12000000\n",
    "sys/class/power_supply/AC/type": "Mains\n",
    "sys/class/power_supply/AC/online": "0\n",
    "sys/class/power_supply/mouse/type": "Battery\n",
    "sys/class/power_supply/mouse/scope": "Device\n",
    "sys/class/power_supply/mouse/capacity": "3\n",
    "sys/class/power_supply/mouse/status": "Discharging\n",
}
TRIPS = {
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": "95000\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive\n",
    "proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 5000000 kB\n",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "2014000\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    board(tmp_path, watts=7.5, celsius=61.0)
    write(tmp_path, TRIPS)
    return tmp_path


@pytest.fixture
def watch(root: Path) -> Iterator[health.Watch]:
    with health.sources(root) as found:
        yield health.Watch(found)


def looked(watch: health.Watch) -> health.Health:
    watch.ask()
    return watch.look()


def test_a_board_s_heat_power_clock_and_memory(watch: health.Watch) -> None:
    found = looked(watch)
    assert (found.zone, found.temperature_c, found.trip_c) == ("cpu-thermal", 61.0, 95.0)
    assert found.power_watts == pytest.approx(7.5)
    assert found.power_of == "the module's input"
    assert found.clock_share == pytest.approx(1510.4 / 2014.0)
    assert found.memory_free_bytes == 5_000_000 * 1024
    assert found.battery_share is None
    assert found.on_battery is None
    assert watch.events() == ()


def test_a_battery_s_charge_and_drain_and_no_mouse(tmp_path: Path) -> None:
    write(tmp_path, LAPTOP)
    with health.sources(tmp_path) as found:
        seen = looked(health.Watch(found))
    assert seen.battery_share == pytest.approx(0.37)
    assert seen.on_battery is True
    assert seen.power_watts == pytest.approx(18.0)
    assert seen.power_of == "what the battery gives"
    write(tmp_path, {"sys/class/power_supply/BAT0/status": "Charging\n"})
    sample = power_supply.read(tmp_path / "sys")
    assert sample.value("BAT0 discharging", "status") == 0.0
    assert sample.value("BAT0", "power_watts") is None


def test_a_battery_without_percent_and_one_with_nonsense(tmp_path: Path) -> None:
    write(tmp_path, LAPTOP)
    (tmp_path / "sys/class/power_supply/BAT0/capacity").unlink()
    write(
        tmp_path,
        {
            "sys/class/power_supply/BAT0/energy_now": "30000000",
            "sys/class/power_supply/BAT0/energy_full": "60000000",
        },
    )
    assert power_supply.read(tmp_path / "sys").value("BAT0", "share") == 0.5
    write(tmp_path, {"sys/class/power_supply/BAT0/capacity": "4000"})
    assert power_supply.read(tmp_path / "sys").value("BAT0", "share") is None


def test_a_control_group_s_limit_counts_less_what_it_uses(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/meminfo": "MemAvailable: 5000000 kB\n",
            "proc/self/cgroup": "0::/work\n",
            "sys/fs/cgroup/work/memory.max": f"{1 << 30}\n",
            "sys/fs/cgroup/work/memory.current": f"{700 << 20}\n",
            "sys/fs/cgroup/work/memory.stat": f"anon 5\ninactive_file {100 << 20}\n",
        },
    )
    assert headroom.read(tmp_path).value(headroom.MEMORY, "memory_bytes") == (1 << 30) - (600 << 20)


def test_a_sensor_that_vanishes_and_returns_is_two_events(watch: health.Watch, root: Path) -> None:
    looked(watch)
    zone = root / "sys/class/thermal/thermal_zone0/temp"
    text = zone.read_text()
    zone.unlink()
    assert looked(watch).temperature_c is None
    looked(watch)
    (lost,) = watch.events()
    assert (lost.kind, lost.what) == ("sensor-lost", "cpu-thermal (temperature_c)")
    assert lost.why
    zone.write_text(text)
    assert looked(watch).temperature_c == 61.0
    assert [e.kind for e in watch.events()] == ["sensor-returned"]


@pytest.mark.parametrize("nonsense", ["-256000", "", "warm", "999999999", "\x00\xff", "-1e9"])
def test_nonsense_is_a_lost_sensor(watch: health.Watch, root: Path, nonsense: str) -> None:
    looked(watch)
    (root / "sys/class/thermal/thermal_zone0/temp").write_text(nonsense)
    assert looked(watch).temperature_c is None
    assert [e.kind for e in watch.events()] == ["sensor-lost"]


def test_a_source_that_raises_is_one_event_and_the_others_go_on() -> None:
    broken = True

    def odd() -> Sample:
        if broken:
            raise RuntimeError("the driver is gone")
        return Sample(readings=())

    def warm() -> Sample:
        return Sample(readings=(Reading(sensor="die", quantity="temperature_c", value=50.0),))

    watch = health.Watch({"odd": odd, "warm": warm})
    for _ in range(3):
        assert looked(watch).temperature_c == 50.0
    (event,) = watch.events()
    assert (event.kind, event.what, event.why) == ("sensor-lost", "odd", "the driver is gone")
    broken = False
    looked(watch)
    assert [e.kind for e in watch.events()] == ["sensor-returned"]


def test_a_source_that_hangs_stops_nobody() -> None:
    released = threading.Event()

    def hangs() -> Sample:
        released.wait(30.0)
        return Sample(readings=())

    def warm() -> Sample:
        return Sample(readings=(Reading(sensor="die", quantity="temperature_c", value=50.0),))

    skew = [0.0]
    with health.Watch(
        {"hangs": hangs, "warm": warm}, 0.02, clock=lambda: time.monotonic() + skew[0]
    ) as watch:
        deadline = time.monotonic() + 20.0
        while watch.latest().temperature_c is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert watch.latest().temperature_c == 50.0
        told: list[str] = []
        while not told and time.monotonic() < deadline:
            told += [e.what for e in watch.events() if e.kind == "sensor-lost" and e.what == "hangs"]
            time.sleep(0.05)
        assert told == ["hangs"]
        assert watch.latest().temperature_c == 50.0
        begun = time.monotonic()
        watch.latest()
        assert time.monotonic() - begun < 1.0
        released.set()


def test_a_wall_clock_that_jumps_is_an_event_and_moves_nothing() -> None:
    wall = [1000.0]
    watch = health.Watch({}, clock=lambda: 5.0, wall=lambda: wall[0])
    watch.look()
    wall[0] -= 3600.0
    assert watch.look().at_s == 5.0
    assert [e.kind for e in watch.events()] == ["clock"]


def test_psutil_stands_in_where_there_is_no_sysfs(tmp_path: Path) -> None:
    pytest.importorskip("psutil")
    with health.sources(tmp_path) as found:
        assert "psutil" in found
        assert looked(health.Watch(found)).memory_free_bytes
    board(tmp_path)
    with health.sources(tmp_path) as found:
        assert "psutil" not in found


def test_the_real_machine_can_be_read() -> None:
    with health.sources(interval_s=0.05) as found, health.Watch(found, 0.05) as watch:
        deadline = time.monotonic() + 20.0
        while watch.latest().memory_free_bytes is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert watch.latest().memory_free_bytes
