"""``sensors -j`` and ``sensors``, as lm-sensors prints them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.sensors.lm_sensors import parse

# Two chips; the errors stand where lm-sensors prints them: inside the JSON.
AS_JSON = """{
   "coretemp-isa-0000":{
      "Adapter": "ISA adapter",
      "Package id 0":{
         "temp1_input": 46.000,
         "temp1_max": 80.000,
         "temp1_crit": 100.000,
         "temp1_crit_alarm": 0.000
      },
      "Core 0":{
         "temp2_input": -256.000
      }
   },
   "amdgpu-pci-0008":{
      "Adapter": "PCI adapter",
      "vddgfx":{
ERROR: Can't get value of subfeature in0_input: Can't read

      },
      "PPT":{
         "power1_average": 23.125,
         "power1_cap": 100.000
      },
      "fan1":{
         "fan1_input": 1520.000
      },
      "vddnb":{
         "in1_input": 0.806,
         "mystery": 1.0
      }
   }
}
"""
AS_TEXT = """coretemp-isa-0000
Adapter: ISA adapter
Package id 0:  +46.0°C  (high = +80.0°C, crit = +100.0°C)
Core 0:        +43.0 C  (high = +80.0 C, crit = +100.0 C)

nct6775-isa-0290
Adapter: ISA adapter
Vcore:         +0.92 V  (min =  +0.00 V, max =  +1.74 V)
in1:         808.00 mV
fan1:          1520 RPM  (min =    0 RPM)
SYSTIN:       +113.0°F  (high = +32.0°F)
                       (crit = +212.0°F)
AUXTIN:            N/A
power1:         5.25 W  (interval = 1.00 s)
curr1:         +1.20 A
intrusion0:   ALARM
"""


def test_json_gives_inputs_and_passes_limits_and_fans_over():
    found = parse(AS_JSON)
    assert found.value("coretemp-isa-0000 Package id 0", "temperature_c") == 46
    assert found.value("amdgpu-pci-0008 PPT", "power_watts") == 23.125
    assert found.value("amdgpu-pci-0008 vddnb", "voltage_volts") == 0.806
    (broken,) = [r for r in found.readings if r.value is None]
    assert (broken.sensor, broken.reason) == (
        "coretemp-isa-0000 Core 0",
        "the sensor answers -256 degrees: nothing is behind it",
    )
    assert found.unread == (
        "ERROR: Can't get value of subfeature in0_input: Can't read",
        "amdgpu-pci-0008 vddgfx: no value",
        "amdgpu-pci-0008 vddnb mystery: 1.0",
    )


def test_text_gives_the_same_quantities():
    found = parse(AS_TEXT)
    assert found.value("coretemp-isa-0000 Package id 0", "temperature_c") == 46
    assert found.value("coretemp-isa-0000 Core 0", "temperature_c") == 43
    assert found.value("nct6775-isa-0290 Vcore", "voltage_volts") == 0.92
    assert found.value("nct6775-isa-0290 in1", "voltage_volts") == pytest.approx(0.808)
    assert found.value("nct6775-isa-0290 SYSTIN", "temperature_c") == pytest.approx(45)
    assert found.value("nct6775-isa-0290 power1", "power_watts") == 5.25
    assert found.value("nct6775-isa-0290 curr1", "current_amperes") == 1.2
    assert [(r.sensor, r.reason) for r in found.readings if r.value is None] == [
        ("nct6775-isa-0290 AUXTIN", "the chip answers N/A")
    ]
    assert found.unread == ("intrusion0:   ALARM",)


@pytest.mark.parametrize(
    "text", ["[1, 2]", '{"chip": {"temp1": {"temp1_input": ', "{" * 5000, "sh: sensors: not found"]
)
def test_other_text_is_kept(text):
    found = parse(text)
    assert found.readings == ()
    assert found.unread == (text,)


@pytest.mark.parametrize("value", [None, True, "warm", [], float("nan")])
def test_a_value_that_is_no_number_has_the_reason(value):
    (found,) = parse(json.dumps({"chip": {"temp1": {"temp1_input": value}}})).readings
    assert found.value is None
    assert found.reason


@given(st.text(max_size=300))
def test_no_text_is_too_strange(text):
    for found in (parse(text), parse(AS_TEXT + text), parse("{" + text)):
        assert all(r.value is not None or r.reason for r in found.readings)
