"""What Android's dumpsys says, as real phones wrote it, and what is no such text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.sensors.android import battery, batterystats, thermalservice

# A Samsung A52 5G with Android 12 (android.stackexchange.com, question 246774), shortened.
SAMSUNG = """IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 1
\tkilled: false
Thermal Status: 2
Cached temperatures:
\tTemperature{mValue=99.0, mType=0, mName=AP, mStatus=3}
HAL Ready: true
HAL connection:
\tThermalHAL 2.0 connected: yes
Current temperatures from HAL:
\tTemperature{mValue=25.6, mType=0, mName=AP, mStatus=0}
\tTemperature{mValue=23.8, mType=2, mName=BAT, mStatus=0}
\tTemperature{mValue=25.7, mType=5, mName=PA, mStatus=0}
\tTemperature{mValue=0.0, mType=4, mName=USB, mStatus=0}
Current cooling devices from HAL:
\tCoolingDevice{mValue=3, mType=2, mName=cpu}
Temperature static thresholds from HAL:
\tTemperatureThreshold{mType=3, mName=SKIN, mHotThrottlingThresholds=[NaN, 41.0], mVrThrottlingThreshold=NaN}
"""


def test_only_the_current_block_is_read_and_types_have_names():
    found = thermalservice(SAMSUNG)
    assert found.unread == ()
    assert found.value("CPU AP", "temperature_c") == 25.6, "99 degrees are cached"
    assert found.value("POWER_AMPLIFIER PA", "temperature_c") == 25.7
    assert found.value("thermal status", "status") == 2
    (absent,) = [r for r in found.readings if r.value is None]
    assert (absent.sensor, absent.reason) == (
        "USB_PORT USB",
        "the sensor answers exactly 0 degrees: nothing is behind it",
    )


def current(*items):
    return thermalservice(
        "Current temperatures from HAL:\n" + "\n".join(f"\tTemperature{{{i}}}" for i in items)
    )


@pytest.mark.parametrize(
    ("value", "reason"),
    [("NaN", "not finite"), ("-256.0", "nothing is behind it"), ("", "is no number"), ("1e9", "nothing")],
)
def test_a_value_that_is_none_has_the_reason(value, reason):
    (found,) = current(f"mValue={value}, mType=1, mName=GPU0, mStatus=0").readings
    assert found.value is None
    assert reason in found.reason


def test_the_battery_limiter_is_no_temperature_and_an_unknown_type_no_unit():
    found = current(
        "mValue=4200.0, mType=6, mName=vbat, mStatus=0",
        "mValue=1500.0, mType=7, mName=ibat, mStatus=0",
        "mValue=80.0, mType=8, mName=soc, mStatus=0",
        "mValue=30.0, mType=-1, mName=virtual, mStatus=0",
        "mValue=31.0, mType=42, mName=new, mStatus=0",
    )
    assert found.value("BCL_VOLTAGE vbat", "voltage_volts") == pytest.approx(4.2)
    assert found.value("BCL_CURRENT ibat", "current_amperes") == pytest.approx(1.5)
    assert found.value("BCL_PERCENTAGE soc", "share") == pytest.approx(0.8)
    assert found.value("UNKNOWN virtual", "temperature_c") is None
    assert found.value("TYPE 42 new", "temperature_c") == 31


def test_text_without_the_block_is_kept_with_a_null():
    found = thermalservice("Can't find service: thermalservice\n")
    assert found.unread == ("Can't find service: thermalservice",)
    assert [r.reason for r in found.readings] == ["the text has no block 'Current temperatures from HAL:'"]
    assert thermalservice("Thermal Status: 9").readings[0].value is None
    odd = thermalservice("Current temperatures from HAL:\n\tTemperature{mValue=1}\n\tnone today\n")
    assert odd.unread == ("Temperature{mValue=1}", "none today")


# ---------------------------------------------------------------- battery

BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  Max charging current: 500000
  Charge counter: 3270000
  status: 5
  health: 2
  present: true
  level: 67
  scale: 100
  voltage: 4352
  temperature: 274
  technology: Li-ion
  Capacity level: -1
[EventLogBuffer]
08-11 18:34:14.721  Sending ACTION_BATTERY_CHANGED: level:72, voltage:4120, temperature:345
"""


def test_a_battery_in_degrees_volts_and_shares():
    found = battery(BATTERY)
    assert found.value("battery", "temperature_c") == pytest.approx(27.4)
    assert found.value("battery", "voltage_volts") == pytest.approx(4.352)
    assert found.value("battery", "share") == pytest.approx(0.67)
    assert found.value("battery", "charge_mah") == 3270
    assert found.value("plugged", "status") == 1
    assert found.unread == ("Capacity level: -1",), "the log of the past is no state"
    assert battery(BATTERY.replace("USB powered: true", "USB powered: false")).value("plugged", "status") == 0


def test_a_service_that_was_told_what_to_say_says_nothing():
    told = BATTERY.replace("state:\n", "state:\n  (UPDATES STOPPED -- use 'reset' to restart)\n")
    assert {r.value for r in battery(told).readings} == {None}
    assert {r.reason for r in battery(told).readings} == {
        "the service repeats what it was told; run: dumpsys battery reset"
    }


def test_a_battery_that_lacks_lines_has_reasons():
    found = battery("Current Battery Service state:\n  level: \n  temperature: -2560\n  scale: 0\n")
    assert {r.value for r in found.readings} == {None}
    assert all(r.reason for r in found.readings)
    assert battery("error: closed").unread == ("error: closed",)


# ---------------------------------------------------------------- batterystats

STATS = """Battery History (0% used, 2048 used of 4096KB):
Statistics since last charge:
  System starts: 0, currently on battery: true
  Estimated battery capacity: 4173 mAh
  Time on battery: 4d 5h 13m 46s 939ms (98.0%) realtime, 23h 49m 29s 411ms (23.5%) uptime
  Time on battery screen off: 4d 3h 29m 58s 481ms (98.3%) realtime
  Estimated power use (mAh):
    Capacity: 4610, Computed drain: 100.5, actual drain: 98
    UID u0a1384: 33.9 fg: 0.651 (3m 35s 938ms) bg: 28.0
"""


def test_totals_and_the_time_on_battery():
    found = batterystats(STATS)
    assert found.value("capacity", "charge_mah") == 4610
    assert found.value("computed drain", "charge_mah") == 100.5
    assert found.value("actual drain", "charge_mah") == 98
    seconds = 4 * 86400 + 5 * 3600 + 13 * 60 + 46.939
    assert found.value("time on battery", "seconds") == pytest.approx(seconds)
    assert found.unread == ()


def test_the_range_of_an_older_phone_is_no_value():
    found = batterystats(STATS.replace("actual drain: 98", "actual drain: 3150-3185"))
    assert found.value("actual drain", "charge_mah") is None
    assert found.value("actual drain, least", "charge_mah") == 3150
    assert found.value("actual drain, most", "charge_mah") == 3185


def test_a_phone_that_is_plugged_in_drains_nothing_that_can_be_told():
    found = batterystats(STATS.replace("battery: true", "battery: false"))
    reasons = {r.sensor: r.reason for r in found.readings if r.value is None}
    assert set(reasons) == {"computed drain", "actual drain"}
    assert all("plugged in" in reason for reason in reasons.values())


def test_a_vendor_s_own_words_are_kept_with_nulls():
    found = batterystats("Estimated power use (mAh):\n  Total 98 of 4610\n")
    assert found.unread == ("Total 98 of 4610",)
    assert {r.value for r in found.readings} == {None}
    assert batterystats("").unread == ()


@given(st.text(max_size=400))
def test_no_text_is_too_strange(text):
    for parse in (thermalservice, battery, batterystats):
        for found in (parse(text), parse("Current temperatures from HAL:\n" + text), parse(BATTERY + text)):
            assert all(r.value is not None or r.reason for r in found.readings)


@given(
    st.lists(st.sampled_from([*SAMSUNG.split("\n"), *BATTERY.split("\n"), *STATS.split("\n")]), max_size=40)
)
def test_lines_in_any_order_never_raise(lines):
    for parse in (thermalservice, battery, batterystats):
        parse("\n".join(lines))
