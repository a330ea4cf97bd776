"""Power logs of MLPerf, as SPEC's PTDaemon writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.sensors.energy import per_inference
from edgekiln.sensors.mlperf import parse, parse_log

LINE = (
    "Time,01-22-2021 15:05:14.313,Watts,22.970000,Volts,227.370000,Amps,0.204340,PF,0.494400,Mark,run_ranging"
)
CHANNELS = (
    "Time,11-13-2020 22:38:59.240,Watts,272.930000,Volts,-1.000000,Amps,-1.000000,PF,-1.000000,Mark,notset,"
    "Ch1,Watts,91.060000,Volts,120.950000,Amps,0.832100,PF,0.938900,Ch2,Watts,90.970000,Volts,120.830000"
)


def test_a_line_has_a_time_and_four_figures():
    found = parse(LINE)
    assert found.value("meter", "power_watts") == 22.97
    assert found.value("meter", "voltage_volts") == 227.37
    assert found.value("meter", "current_amperes") == 0.20434
    assert found.value("meter power factor", "share") == 0.4944
    assert found.unread == ()
    assert parse(LINE.replace("14.313", "15.322")).time_s - found.time_s == pytest.approx(1.009)


def test_channels_stand_beside_their_sum_which_has_no_volts():
    found = parse(CHANNELS)
    assert found.value("meter", "power_watts") == 272.93
    assert found.value("Ch1", "power_watts") == 91.06
    assert found.value("Ch2", "voltage_volts") == 120.83
    reasons = {r.sensor: r.reason for r in found.readings if r.value is None}
    assert reasons == {"meter": "the analyser has no figure for it", "meter power factor": reasons["meter"]}


@pytest.mark.parametrize(
    ("line", "unread", "timed"),
    [
        ("Time,11-07-2020 17:54:49.071,ERROR,Bad volts reading nan from WT310", True, True),
        ("Time,11-07-2020 17:49:06.145,NOTICE,Analyzer identity response: YOKOGAWA,WT310", True, True),
        ("Buffer was 1.000E+00;1;300.0E+00;1", True, False),
        ("Time,13-45-2020 17:49:06.145,Watts,1.0", True, False),
        (LINE, False, True),
    ],
)
def test_what_is_no_measurement_is_kept(line, unread, timed):
    found = parse(line)
    assert bool(found.unread) == unread
    assert (found.time_s is not None) == timed
    assert bool(found.readings) != unread


def test_a_figure_that_is_none_has_the_reason():
    (watts,) = [r for r in parse(LINE.replace("22.970000", "nan")).readings if r.quantity == "power_watts"]
    assert (watts.value, watts.reason) == (None, "the source answers 'nan', which is not finite")
    assert parse("Time,01-22-2021 15:05:14.313,Watts,").readings[0].reason == "'' is no number"
    assert parse("Time,01-22-2021 15:05:14.313,Watts,2,Spin,7").unread == ("Spin,7",)


def test_a_temperature_log_of_the_same_daemon():
    found = parse("09-23-2020 14:40:23.964,Temp,29.687500,Humidity,0.000000,Mark,notset")
    assert found.value("meter", "temperature_c") == 29.6875
    assert found.unread == ()


def test_the_testing_pass_alone_gives_the_energy_of_a_run():
    ranging = [LINE.replace("15:05:14.313", f"15:04:{s:02}.000") for s in range(60)]
    testing = [
        LINE.replace("15:05:14.313", f"15:05:{s:02}.000")
        .replace("ranging", "testing")
        .replace("22.97", "20.00")
        for s in range(60)
    ]
    notice = "Time,01-22-2021 15:05:30.100,WARNING,Uncertainty 1.01%"
    samples = list(parse_log([*ranging, "", notice, *testing], mark="run_testing"))
    assert len(samples) == 60
    times = [s.time_s - samples[0].time_s for s in samples]
    watts = [s.value("meter", "power_watts") for s in samples]
    assert per_inference(times, watts, 10, 50, 100, 5.0).mj == pytest.approx(15 * 40 * 1e3 / 100)


@given(st.text(max_size=300), st.booleans())
def test_no_line_is_too_strange(text, stamped):
    found = parse(f"Time,01-22-2021 15:05:14.313,Watts,{text}" if stamped else text)
    assert all(r.value is not None or r.reason for r in found.readings)
    if not found.readings and not stamped:
        assert "".join(found.unread) == text.strip() or found.time_s is not None
