"""The table of a build in a terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from edgekiln.records import Build
from edgekiln.report.terminal import decision_table, print_build
from fakes.build_record import make_build
from fakes.odd_builds import bare, hostile, many, no_artifact, several_sizes

BUILDS = {
    "whole": make_build,
    "nothing fits": no_artifact,
    "bare": bare,
    "long names": lambda: many(2, name="int8-static-" + "verylong" * 20),
    "one sample": lambda: many(1, n=1),
    "no latency": lambda: many(3, p50=None),
    "several sizes": several_sizes,
}


def printed(build: Build, width: int = 100, table_only: bool = False) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    if table_only:
        console.print(decision_table(build, width))
    else:
        print_build(build, console, Path("out"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_says_for_each_device_what_was_chosen_and_how_each_figure_came() -> None:
    text = printed(make_build(), table_only=True)
    host, rest = text.split("host ")[1].split("jetson-orin-nano-8gb")
    jetson, pi = rest.split("raspberry-pi-5")
    assert "openvino int8-static-mse" in host
    assert "90.6" in host
    assert "5.11 / 5.62 / 9.50" in host
    assert host.count("measured") == 5
    assert "proven" in host
    assert jetson.count("emulated") == 2
    assert jetson.count("—") == 2
    assert "predicted" in pi
    assert "21.0 / 25.2 / —" in pi


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("width", [80, 100, 140])
def test_no_line_is_wider_than_the_terminal_and_no_word_is_cut(name: str, width: int) -> None:
    text = printed(BUILDS[name](), width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…\n" not in text


@pytest.mark.parametrize("width", [80, 100])
def test_figures_and_device_names_stay_in_one_piece(width: int) -> None:
    words = printed(make_build(), width, table_only=True).split()
    assert {"jetson-orin-nano-8gb", "raspberry-pi-5", "measured", "emulated", "predicted", "90.6"} <= set(
        words
    )


def test_below_the_table_stand_warnings_open_constraints_failures_and_paths() -> None:
    text = " ".join(printed(make_build()).split())
    assert "The evaluation set has 20 pictures" in text
    assert "jetson-orin-nano-8gb Latency P95 ≤ 50.0 ms: no jetson-orin-nano-8gb is reachable" in text
    assert "raspberry-pi-5 Peak memory: no Raspberry Pi is reachable" in text
    assert "TensorRT's parser refused node DequantizeLinear_17" in text
    assert "Use a symmetric recipe" in text
    assert "2 recipes skipped as not applicable" in text
    for path in ("out/report.html", "out/bundles/host.edgekiln", "out/bundles/raspberry-pi-5.edgekiln"):
        assert path in text


def test_a_device_without_an_artifact_says_which_constraint_broke() -> None:
    text = " ".join(printed(no_artifact()).split())
    assert "no artifact" in text
    assert "Latency P95 ≤ 1.00 ms (the best candidate has 5.62 ms)" in text
    assert "Nothing fits the budget" in text


def test_strangers_strings_are_neither_markup_nor_control_codes() -> None:
    text = printed(hostile("[red]x[/red]\x1b[31m\x07"))
    assert "[red]x[/red]" in text
    assert "\x1b" not in text
    assert "\x07" not in text
