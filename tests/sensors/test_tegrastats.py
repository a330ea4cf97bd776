"""Lines of tegrastats, of every JetPack, and lines that are none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.sensors.tegrastats import parse, parse_log

ORIN_JP6 = (
    "04-19-2026 01:31:10 RAM 519/7607MB (lfb 61x4MB) CPU [0%@1728,0%@1728,off,9%@1728] EMC_FREQ 0%@3199 "
    "GR3D_FREQ 0%@[1018] NVDEC off APE 200 cpu@48.906C tj@49.593C VDD_IN 5971mW/5971mW "
    "VDD_CPU_GPU_CV 1669mW/1669mW VDD_SOC 2308mW/2308mW"
)
NANO_JP4 = (
    "RAM 1903/3964MB (lfb 2x4MB) SWAP 0/1982MB (cached 0MB) IRAM 0/252kB(lfb 252kB) "
    "CPU [29%@1479,18%@1479,off,off] EMC_FREQ 3%@1600 GR3D_FREQ 0%@76 APE 25 PLL@26C CPU@27.5C iwlwifi@-256C "
    "POM_5V_IN 1964/1980 POM_5V_GPU 40/40 POM_5V_CPU 243/243"
)
THOR_JP7 = (
    "11-03-2025 10:00:00 RAM 4000/125772MB (lfb 1x4MB) CPU [0%@972,off] GR3D_FREQ @[1300,0] cpu@35C "
    "gpu@-256C VIN_SYS_5V0 4028mW/4028mW VDD_GPU 0mW/0mW"
)


def test_an_orin_of_jetpack_6():
    found = parse(ORIN_JP6)
    assert found.unread == ()
    assert found.value("VDD_IN", "power_watts") == pytest.approx(5.971)
    assert found.value("tj", "temperature_c") == 49.593
    assert found.value("GR3D_FREQ", "load") == 0
    assert found.value("GR3D_FREQ", "clock_mhz") == 1018
    assert found.value("CPU3", "load") == pytest.approx(0.09)
    assert found.value("RAM", "memory_bytes") == 519 * 2**20
    off = {(r.sensor, r.reason) for r in found.readings if r.value is None}
    assert off == {("CPU2", "the core is switched off"), ("NVDEC", "the engine is switched off")}


def test_a_nano_of_jetpack_4_has_no_clock_and_rails_without_units():
    found = parse(NANO_JP4)
    assert (found.unread, found.time_s) == ((), None)
    assert found.value("POM_5V_IN", "power_watts") == pytest.approx(1.964), "now, and not the mean"
    assert found.value("IRAM total", "memory_bytes") == 252 * 1024
    assert found.value("CPU", "temperature_c") == 27.5
    assert found.value("APE", "clock_mhz") == 25


def test_a_thor_of_jetpack_7_has_clusters_and_sensors_that_answer_minus_256():
    found = parse(THOR_JP7)
    assert found.unread == ()
    assert found.value("GR3D_FREQ cluster 0", "clock_mhz") == 1300
    assert found.value("GR3D_FREQ", "load") is None
    (gpu,) = [r for r in found.readings if r.sensor == "gpu"]
    assert (gpu.value, gpu.reason) == (None, "the sensor answers -256 degrees: nothing is behind it")
    both = parse("GR3D_FREQ 12%@[1300,1200]")
    assert [both.value(f"GR3D_FREQ cluster {k}", "clock_mhz") for k in (0, 1)] == [1300, 1200]
    assert both.value("GR3D_FREQ", "load") == pytest.approx(0.12)


def test_one_clock_for_all_cores():
    found = parse("CPU [1%,5%]@102")
    assert [found.value(f"CPU{k}", "clock_mhz") for k in (0, 1)] == [102, 102]
    assert found.value("CPU1", "load") == pytest.approx(0.05)


def test_what_no_rule_knows_is_kept_word_for_word():
    found = parse(ORIN_JP6.replace("EMC_FREQ 0%@3199", "EMC_FREQ ?? NEW=3"))
    assert found.unread == ("EMC_FREQ", "??", "NEW=3")
    assert found.value("VDD_IN", "power_watts") == pytest.approx(5.971)
    broken = parse("CPU [x%@1728]")
    assert [(r.value, r.reason) for r in broken.readings if r.quantity == "load"] == [
        (None, "'x' is no number")
    ]


def test_times_of_a_log_are_seconds_apart():
    lines = [ORIN_JP6, "", ORIN_JP6.replace("01:31:10", "01:31:12")]
    first, second = parse_log(lines)
    assert second.time_s - first.time_s == 2
    assert parse("99-99-2026 25:00:00 RAM 1/2MB").time_s is None


@given(st.text(max_size=300))
def test_no_text_is_too_strange(text):
    """A stranger's device wrote it: a sample comes back, and nothing of the text is dropped in silence."""
    found = parse(text)
    assert all(r.value is not None or r.reason for r in found.readings)
    if not found.readings:
        assert found.time_s is not None or "".join(found.unread) == "".join(text.split())


@given(
    st.lists(st.sampled_from([*ORIN_JP6.split(), *THOR_JP7.split(), "x@C", "[", "CPU [", "1/2"]), max_size=30)
)
def test_words_in_any_order_never_raise(words):
    parse(" ".join(words))
