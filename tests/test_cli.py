"""The command line: every verb's answer, its JSON, its exit code; nothing else on standard output."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fakes import digits
from fakes.command import Kiln


@pytest.fixture(scope="session")
def host_bundle(digit_build: Path) -> Path:
    return digit_build / "bundles" / "host.edgekiln"


def spoken(kiln: Kiln, *arguments: object) -> Any:
    """The JSON answer of a verb that succeeds."""
    done = kiln(*arguments, "--json")
    assert done.code == 0, (done.stdout, done.stderr)
    return done.json


def test_inspect_answers_in_json(cold_kiln: Kiln, digit_files: Path) -> None:
    found = spoken(cold_kiln, "inspect", digit_files / "digits.onnx", "--no-targets")
    assert found["model"]["task"] == "classification"
    assert found["cost"]["parameters"] == 9978
    assert found["words"] == []


def test_devices_answers_in_json(cold_kiln: Kiln) -> None:
    names = [device["name"] for device in spoken(cold_kiln, "devices")]
    assert {"host", "jetson-orin-nano-8gb", "raspberry-pi-5", "browser"} <= set(names)
    one = spoken(cold_kiln, "devices", "jetson-orin-nano-8gb")
    assert one["name"] == "jetson-orin-nano-8gb"
    for figure in one["figures"].values():
        assert (figure["value"] is None) == bool(figure.get("reason")), figure
        assert figure["value"] is None or figure["source"]


def test_doctor_answers_in_json(cold_kiln: Kiln) -> None:
    found = spoken(cold_kiln, "doctor")
    assert {a["subject"] for a in found["abilities"]} >= {"onnxruntime", "openvino", "tensorrt", "PyTorch"}


def test_verify_answers_in_json(cold_kiln: Kiln, host_bundle: Path) -> None:
    found = spoken(cold_kiln, "verify", host_bundle)
    assert (found["device"], found["golden"], found["signed"]) == ("host", True, False)


def test_run_answers_in_json(cold_kiln: Kiln, host_bundle: Path, digit_files: Path) -> None:
    found = spoken(cold_kiln, "run", host_bundle, digit_files / "data" / "1500.png", "none.png")
    assert len(found["predictions"][0]["guesses"]) == 5
    assert [r["path"] for r in found["rejected"]] == ["none.png"]


def test_bench_answers_in_json(cold_kiln: Kiln, host_bundle: Path) -> None:
    found = spoken(cold_kiln, "bench", host_bundle, "--samples", "10", "--threads", "1")
    assert found["a_percentiles"]["n"] >= 10
    assert found["b"] is None


def test_build_answers_with_the_decision_in_json_and_progress_on_stderr(
    kiln: Kiln, cold_kiln: Kiln, digit_files: Path, digit_build: Path
) -> None:
    done = cold_kiln(*digits.build_arguments(digit_files), "--out", "out", "--json")
    assert done.code == 0
    assert done.json == json.loads((digit_build / "decision.json").read_text())
    assert "optimise the graph" in done.stderr
    quiet = kiln(*digits.build_arguments(digit_files), "--out", "out", "--json", "--quiet")
    assert quiet.json == done.json
    assert quiet.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", "none.onnx"),
        ("inspect", "none.onnx"),
        ("devices", "none"),
        ("verify", "none.edgekiln"),
        ("run", "none.edgekiln", "a.png"),
        ("bench", "none.onnx"),
    ],
)
def test_an_error_is_json_too_and_three_lines_on_stderr(kiln: Kiln, arguments: tuple[str, ...]) -> None:
    done = kiln(*arguments, "--json")
    done.refused()
    assert set(done.json["error"]) == {"doing", "to", "why", "cure"}
    assert all(done.json["error"].values())
    plain = kiln(*arguments)
    assert plain.stdout == ""


def test_debug_shows_the_traceback(cold_kiln: Kiln) -> None:
    done = cold_kiln("verify", "none.edgekiln", "--debug")
    assert done.code != 0
    assert "Traceback" in done.stderr
    assert "BadInput" in done.stderr


@pytest.mark.parametrize(
    "arguments", [(), ("bake",), ("build",), ("run",), ("bench", "a.onnx", "--samples", "0")]
)
def test_a_wrong_command_line_is_exit_code_2_with_the_usage(kiln: Kiln, arguments: tuple[str, ...]) -> None:
    done = kiln(*arguments)
    assert done.code == 2
    assert "usage: edgekiln" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_names_every_verb_and_every_exit_code_and_loads_nothing_heavy(kiln: Kiln) -> None:
    done = kiln("--help")
    assert done.code == 0
    verbs = ("build", "inspect", "devices", "verify", "run", "bench", "split", "doctor")
    for word in (*verbs, "130 interrupted"):
        assert word in " ".join(done.stdout.split())
    loaded = (
        "import sys; from edgekiln.cli import parser; parser(); "
        "print(*{m.split('.')[0] for m in sys.modules})"
    )
    found = subprocess.run(
        [sys.executable, "-c", loaded], env=kiln.environment(), capture_output=True, text=True, check=True
    )
    heavy = {"torch", "onnx", "onnxruntime", "openvino", "numpy", "PIL", "rich", "jinja2"}
    assert not heavy & set(found.stdout.split())


def test_the_libraries_telemetry_is_off_before_they_load(kiln: Kiln) -> None:
    """ONNX Runtime writes an identifier into the folder for temporary files when its reporting starts."""
    scratch = kiln.folder / "tmp"
    scratch.mkdir()
    code = (
        "import edgekiln, onnxruntime, os; print(os.environ['ORT_DISABLE_TELEMETRY'], os.environ['NNCF_CI'])"
    )
    hidden = {"ORT_DISABLE_TELEMETRY", "NNCF_CI", "CI", "ORT_RUNNING_UNIT_TESTS"}
    clean = {k: v for k, v in kiln.environment().items() if k not in hidden}
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["1", "1"]
    assert not list(scratch.iterdir())


def test_options_of_the_command_line_lie_over_those_of_the_job(kiln: Kiln, digit_files: Path) -> None:
    """Paths in the job start at the job, paths on the command line at the working folder."""
    (kiln.folder / "jobs").mkdir()
    job = kiln.folder / "jobs" / "job.toml"
    job.write_text(
        'out = "from-job"\ndevices = ["browser"]\n[model]\nsource = "here.onnx"\n[budget]\nmax_drop = 0.5\n'
        '[search]\ntargets = ["openvino"]\nrecipes = ["fp32"]\nsamples = 20\n'
    )
    (kiln.folder / "jobs" / "here.onnx").write_bytes((digit_files / "digits.onnx").read_bytes())
    options = ["--device", "host", "--target", "onnxruntime", "--size-mb", "9", "--out", "from-options"]
    done = kiln("build", "jobs/job.toml", *options)
    assert done.code == 0, done.stderr
    decision = json.loads((kiln.folder / "from-options" / "decision.json").read_text())
    assert decision["choices"][0]["artifact_id"] == "host.onnxruntime.fp32"
    assert decision["budget"]["accuracy_drop"] == 0.5
    assert decision["budget"]["size_bytes"] == 9_000_000
    # In the job's own folder, and told without "..".
    job.write_text(job.read_text().replace('"from-job"', '"../over/there"'))
    done = kiln("build", "jobs/job.toml", *options[:-2])
    assert (kiln.folder / "over" / "there" / "report.html").is_file()
    assert "over/there/report.html" in done.stdout
    assert ".." not in done.stdout


@pytest.mark.parametrize("columns", [80, 100])
def test_answers_fit_the_terminal_and_break_no_device_name(
    kiln: Kiln, digit_files: Path, host_bundle: Path, columns: int
) -> None:
    verbs: list[tuple[object, ...]] = [
        ("devices",),
        ("devices", "raspberry-pi-5"),
        ("doctor",),
        ("verify", host_bundle),
        ("inspect", digit_files / "digits.onnx", "--no-targets"),
        ("run", host_bundle, digit_files / "data" / "1500.png"),
    ]
    for verb in verbs:
        shown = _on_terminal(kiln, columns, verb)
        lines = [line.rstrip() for line in shown.splitlines()]
        assert max(map(len, lines)) <= columns, verb
        assert "Traceback" not in shown
        if verb == ("devices",):
            assert any(line.startswith("jetson-orin-nano-8gb ") for line in lines)


def _on_terminal(kiln: Kiln, columns: int, verb: tuple[object, ...]) -> str:
    """What a verb shows on a pseudo-terminal of that width, without colours."""
    code, shown = kiln.on_terminal(*verb, COLUMNS=str(columns), LINES="50", TERM="xterm")
    assert code == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).replace("\r", "")


def test_a_strangers_control_characters_do_not_reach_the_terminal(kiln: Kiln, digit_files: Path) -> None:
    import onnx

    model = onnx.load(digit_files / "digits.onnx")
    evil = "x\x1b[2J\x1b]0;owned\x07[bold]"
    model.graph.input[0].name = model.graph.node[0].input[0] = evil
    onnx.save(model, kiln.folder / "evil.onnx")
    shown = kiln("inspect", "evil.onnx", "--no-targets")
    assert shown.code == 0, shown.stderr
    assert "[bold]" in shown.stdout
    error = kiln("inspect", "evil.onnx", "--no-targets", "--input-shape", "1x1x9x9")
    error.refused("[bold]")
    for text in (shown.stdout, error.stderr):
        assert "\x1b" not in text
        assert "\x07" not in text
