"""Devices side by side: ratios where they mean something, and a reason for every unknown."""

from __future__ import annotations

import json
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.cli import main
from edgekiln.devices import COMMON_FIGURES, Device, Figure, load, load_catalogue
from edgekiln.devices.compare import Comparison, Row, cells, compare, reasons
from edgekiln.errors import BadInput

DEVICES = load_catalogue()
FIGURE = st.one_of(
    st.builds(
        lambda value, unit: Figure(value=value, unit=unit, source="s"),
        st.one_of(st.booleans(), st.integers(0, 9), st.floats(0, 9), st.text("ab", min_size=1)),
        st.sampled_from(["", "TOPS", "°C"]),
    ),
    st.just(Figure(reason="not stated")),
)


def row(found: Comparison, key: str) -> Row:
    return next(r for r in found.rows if r.key == key)


def with_figure(name: str, figure: Figure) -> Device:
    pi = DEVICES["raspberry-pi-5"]
    return msgspec.structs.replace(pi, name=name, figures={**pi.figures, "cores": figure})


def test_numbers_of_one_unit_have_a_ratio_to_the_first_device() -> None:
    found = compare([DEVICES["jetson-orin-nano-4gb"], DEVICES["jetson-orin-nano-8gb"], DEVICES["pixel-9"]])
    assert row(found, "bandwidth_gb_s").ratios == (None, 2.0, None)  # the phone's is unknown
    assert row(found, "memory_bytes").ratios == (None, 2.0, 3.0)
    assert row(found, "cpu").ratios == (None, None, None)
    shown = {line[0]: line[1:] for line in cells(found)}
    assert shown["memory bandwidth"] == ("51 GB/s", "102 GB/s (2x)", "unknown")
    assert shown["video encoders (NVENC)"] == ("0", "0", "no figure")


def test_temperatures_have_no_ratio() -> None:
    found = compare([DEVICES["raspberry-pi-5"], DEVICES["jetson-orin-nano-8gb"]])
    throttle = row(found, "throttle_celsius")
    assert all(f is not None and f.value is not None for f in throttle.figures)
    assert throttle.ratios == (None, None)


@settings(deadline=None)
@given(one=FIGURE, other=FIGURE)
def test_a_ratio_is_there_exactly_for_two_numbers_of_one_unit_that_is_no_temperature(
    one: Figure, other: Figure
) -> None:
    (first, ratio) = row(compare([with_figure("a", one), with_figure("b", other)]), "cores").ratios
    assert first is None
    numbers = [
        float(f.value)
        for f in (one, other)
        if isinstance(f.value, int | float) and not isinstance(f.value, bool)
    ]
    if len(numbers) == 2 and one.unit == other.unit != "°C" and numbers[0] and numbers[1]:
        assert ratio is not None
        assert math.isclose(ratio, numbers[1] / numbers[0])
    else:
        assert ratio is None


def test_every_figure_of_every_device_is_in_the_table_and_every_unknown_below_it() -> None:
    found = compare(list(DEVICES.values()))
    assert [r.key for r in found.rows][: len(COMMON_FIGURES)] == list(COMMON_FIGURES)
    told = {(device, why) for device, _, why in reasons(found)}
    for place, device in enumerate(DEVICES.values()):
        for key, figure in device.figures.items():
            assert row(found, key).figures[place] == figure
            assert figure.value is not None or (device.name, figure.reason) in told
    assert all(cell.strip() for line in cells(found) for cell in line)
    assert {len(line) for line in cells(found)} == {len(DEVICES) + 1}


def test_figures_that_share_a_reason_are_told_together() -> None:
    told = reasons(compare([load("browser"), DEVICES["pixel-9"]]))
    machine = [labels for device, labels, why in told if why == "depends on the visitor's machine"]
    assert len(machine) == 1
    assert "memory bandwidth" in machine[0]


@pytest.mark.parametrize("given", [["pixel-9"], ["pixel-9", "pixel-9"], ["pixel-9", "pixel-8", "pixel-9"]])
def test_one_device_alone_or_twice_is_refused(given: list[str]) -> None:
    with pytest.raises(BadInput, match="two or more different devices"):
        compare([DEVICES[name] for name in given])


def test_the_command_prints_the_table_and_the_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--compare", "jetson-orin-nano-8gb", "jetson-agx-thor"]) == 0
    said = capsys.readouterr().out
    assert "273 GB/s (2.68x)" in said
    assert "left to a Thermal Design Guide" in said
    assert max(map(len, said.splitlines())) <= 100


def test_the_command_gives_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--compare", "pixel-8", "pixel-9", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["devices"] == ["pixel-8", "pixel-9"]
    memory = next(r for r in found["rows"] if r["key"] == "memory_bytes")
    assert memory["ratios"] == [None, 1.5]
    assert memory["figures"][0]["source"].startswith("derived: 8 x 2^30")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pixel-8"], "Name two or more different devices"),
        (["pixel-8", "pixel-9x"], "Did you mean"),
    ],
)
def test_the_command_refuses_with_the_cure(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["devices", "--compare", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_device_beside_the_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "pixel-8", "--compare", "pixel-9"]) == 2
    assert "Give --compare pixel-8 pixel-9" in capsys.readouterr().err
