"""Devices as rows, and the page that is written from them."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.devices import Figure, load, load_catalogue
from edgekiln.devices.show import details, label, overview, value_text

ROOT = Path(__file__).resolve().parents[2]
DEVICES = tuple(load_catalogue().values())


def test_the_overview_has_one_row_a_device_in_the_order_given() -> None:
    rows = overview([load("browser"), load("jetson-orin-nano-8gb")])
    assert [r["name"] for r in rows] == ["browser", "jetson-orin-nano-8gb"]
    nano = rows[1]
    assert (nano["memory"], nano["bandwidth"]) == ("8 GiB", "102 GB/s")
    assert (nano["int8 dense"], nano["int8 sparse"]) == ("33 TOPS", "67 TOPS")
    assert nano["targets"] == "tensorrt, onnxruntime"
    assert rows[0]["bandwidth"] == "unknown: depends on the visitor's machine"


@pytest.mark.parametrize("device", [*DEVICES, load("host")], ids=lambda d: d.name)
def test_no_cell_is_blank_and_an_unknown_says_why(device) -> None:  # type: ignore[no-untyped-def]
    for row in overview([device]):
        assert all(cell.strip() for cell in row.values())
    rows = details(device)
    assert all(part.strip() for row in rows for part in row)
    by_label = {what: (value, why) for what, value, why in rows}
    for key, figure in device.figures.items():
        if key == "target_order":
            continue
        value, why = by_label[label(key)]
        if figure.value is None:
            assert value == f"unknown: {figure.reason}"
            assert why == figure.reason
        else:
            assert not value.startswith("unknown")
            assert why == figure.source


def test_no_two_facts_of_a_device_share_a_label() -> None:
    for device in DEVICES:
        labels = [what for what, _, _ in details(device)]
        assert len(labels) == len(set(labels))


def test_the_order_of_targets_carries_what_it_rests_on() -> None:
    pi = {what: why for what, _, why in details(load("raspberry-pi-5"))}
    assert "OpenVINO 81.2 ms" in pi["targets, best first"]
    assert "ultralytics/ultralytics@" in pi["targets, best first"]
    phone = {what: why for what, _, why in details(load("pixel-9"))}
    assert "no published comparison" in phone["targets, best first"]


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (True, "", "yes"),
        (False, "", "no"),
        ((7.0, 15.0, 25.0), "W", "7, 15, 25 W"),
        (("5", "6"), "", "5, 6"),
        ((), "", "none"),
        (204.8, "GB/s", "204.8 GB/s"),
        (8 * 2**30, "bytes", "8 GiB"),
        (25276514304, "bytes", "23.54 GiB"),
        (0, "", "0"),
    ],
)
def test_values_read_as_a_person_writes_them(value: object, unit: str, shown: str) -> None:
    assert value_text(Figure(value=value, unit=unit, source="s")) == shown  # type: ignore[arg-type]


@given(st.text(min_size=1).filter(str.strip))
def test_unknown_is_never_blank_and_never_a_number(reason: str) -> None:
    assert value_text(Figure(unit="TOPS", reason=reason)) == f"unknown: {reason}"
    assert value_text(Figure(unit="TOPS", reason=reason), reasons=False) == "unknown"


def test_a_base_figure_says_so() -> None:
    assert label("cpu_mhz_base") == "CPU clock, highest, without MAXN_SUPER"
    assert label("some_new_key") == "some new key"


def test_the_page_of_devices_is_up_to_date() -> None:
    script = ROOT / "scripts" / "devices_table.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_is_made_anew_between_its_markers_only() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "devices_table.py"))
    page = f"before\n{script['BEGIN']}\nstale\n{script['END']}\nafter\n"
    new = script["rewritten"](page, DEVICES)
    assert new.startswith("before\n")
    assert new.endswith("\nafter\n")
    assert "stale" not in new
    assert all(f"### {d.name}" in new for d in DEVICES)
    assert script["rewritten"](new, DEVICES) == new
    with pytest.raises(ValueError, match="markers"):
        script["rewritten"]("no markers", DEVICES)


def test_a_bar_in_a_cell_does_not_break_the_table() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "devices_table.py"))
    assert script["table"](("a",), [("x|y",)]).splitlines()[2] == "| x\\|y |"
