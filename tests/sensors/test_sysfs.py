"""Sensors below /sys: whole trees as the kernel lays them, and what firmware makes of them."""

import pytest

from edgekiln.sensors.sysfs import Counter, counters, power_between, read, trips


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else f"{text}\n".encode())


INA3221 = {
    "class/hwmon/hwmon4/name": "ina3221",
    "class/hwmon/hwmon4/in1_label": "VDD_IN",
    "class/hwmon/hwmon4/in1_input": "4960",
    "class/hwmon/hwmon4/curr1_input": "1200",
    "class/hwmon/hwmon4/in2_label": "VDD_SOC",
    "class/hwmon/hwmon4/in2_input": "4952",
    "class/hwmon/hwmon4/curr2_input": "N/A",
}


def test_a_rail_of_an_ina3221_is_volts_times_amperes(tmp_path):
    tree(tmp_path, INA3221)
    found = read(tmp_path)
    assert found.value("ina3221 VDD_IN", "power_watts") == pytest.approx(4.960 * 1.2)
    (soc,) = [r for r in found.readings if (r.sensor, r.quantity) == ("ina3221 VDD_SOC", "power_watts")]
    assert (soc.value, soc.reason) == (None, "curr2_input holds 'N/A', which is no number")


def test_watts_of_a_chip_are_taken_as_they_are(tmp_path):
    tree(
        tmp_path,
        {
            "class/hwmon/hwmon0/name": "amdgpu",
            "class/hwmon/hwmon0/power1_average": "23000000",
            "class/hwmon/hwmon0/power1_label": "PPT",
            "class/hwmon/hwmon0/temp1_input": "45250",
        },
    )
    found = read(tmp_path)
    assert found.value("amdgpu PPT", "power_watts") == 23
    assert found.value("amdgpu temp1", "temperature_c") == pytest.approx(45.25)


def test_zones_and_clocks(tmp_path):
    tree(
        tmp_path,
        {
            "class/thermal/thermal_zone0/type": "tj-thermal",
            "class/thermal/thermal_zone0/temp": "51375",
            "class/thermal/thermal_zone10/type": "cv0-thermal",
            "class/thermal/thermal_zone10/temp": "-256000",
            "class/thermal/thermal_zone2/type": b"gpu\x1b[31m\xff-thermal",
            "class/thermal/thermal_zone2/temp": "",
            "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1728000",
            "devices/system/cpu/cpufreq/x": "1",
        },
    )
    found = read(tmp_path)
    assert found.value("tj-thermal", "temperature_c") == pytest.approx(51.375)
    assert found.value("cpu0", "clock_mhz") == 1728
    reasons = {r.sensor: r.reason for r in found.readings if r.value is None}
    assert reasons["cv0-thermal"] == "temp answers -256 degrees: nothing is behind it"
    (hostile,) = [name for name in reasons if name.startswith("gpu")]
    assert hostile.isprintable()
    assert reasons[hostile] == "temp holds '', which is no number"


def test_a_machine_without_sensors_has_none(tmp_path):
    assert read(tmp_path).readings == ()
    assert counters(tmp_path) == ((), ())


# ---------------------------------------------------------------- counters


def test_a_counter_of_each_zone_and_a_reason_for_those_that_are_closed(tmp_path):
    zone = "class/powercap/intel-rapl:0"
    tree(tmp_path, {f"{zone}/name": "package-0", f"{zone}/energy_uj": "5000000"})
    tree(tmp_path, {f"{zone}/max_energy_range_uj": "262143328850", "class/powercap/intel-rapl/enabled": "1"})
    (tmp_path / "class/powercap/intel-rapl:1").mkdir()
    (found,), (missing,) = counters(tmp_path)
    assert (found.joules, found.range_joules) == (5, pytest.approx(262143.32885))
    assert missing.reason == "energy_uj: No such file or directory"


def look(joules, time_s, whole=100.0, zone="package-0"):
    return Counter(zone=zone, joules=joules, range_joules=whole, time_s=time_s)


@pytest.mark.parametrize(
    ("before", "after", "watts", "reason"),
    [
        (look(10, 0), look(30, 4), 5, ""),
        (look(95, 0), look(5, 2), 5, ""),  # started again from nothing
        (look(95, 0, None), look(5, 2, None), None, "does not say where"),
        (look(1, 3), look(2, 3), None, "one after the other"),
        (look(1, 3), look(2, 4, zone="core"), None, "of one zone"),
    ],
)
def test_power_is_energy_between_two_looks(before, after, watts, reason):
    found = power_between(before, after)
    assert found.value == watts
    assert reason in found.reason


# ---------------------------------------------------------------- trip points


def test_trip_points_that_cost_speed_and_are_set(tmp_path):
    zone = "class/thermal/thermal_zone1"
    tree(
        tmp_path,
        {
            f"{zone}/type": "tj-thermal",
            f"{zone}/temp": "94000",
            f"{zone}/trip_point_0_temp": "95000",
            f"{zone}/trip_point_0_type": "passive",
            f"{zone}/trip_point_1_temp": "50000",
            f"{zone}/trip_point_1_type": "active",
            f"{zone}/trip_point_2_temp": "-256000",
            f"{zone}/trip_point_2_type": "hot",
            f"{zone}/trip_point_3_temp": "0",
            f"{zone}/trip_point_3_type": "critical",
            f"{zone}/trip_point_4_temp": "99000",
        },
    )
    (found,) = trips(tmp_path)
    assert (found.zone, found.kind, found.celsius, found.now_celsius) == ("tj-thermal", "passive", 95, 94)
