"""Progress says each step once, when it ends, whatever the stream is, and never hides an error."""

import io
import os
import pty
import re
import subprocess
import sys

import pytest

from edgekiln.errors import BadInput
from edgekiln.progress import Bar, Lines, Silent, shown

LINE = re.compile(r" +\d+\.\d s  (.*)")


def test_lines_give_one_line_for_each_finished_step():
    out = io.StringIO()
    say = Lines(out)
    say.expect(2)
    with say.step("read [red]the[/red] model"):
        assert out.getvalue() == ""
    with say.step("optimise"):
        say.note("a note")
    lines = out.getvalue().splitlines()
    assert LINE.fullmatch(lines[0])[1] == "read [red]the[/red] model"
    assert lines[1] == "a note"
    assert LINE.fullmatch(lines[2])[1] == "optimise"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("x"), "ValueError"),
        (KeyboardInterrupt(), "interrupted"),
        (BadInput("reading", "m.onnx", "it is empty", "Give another"), "it is empty"),
    ],
)
def test_a_step_that_fails_is_told_with_its_reason_and_the_error_passes_through(error, told):
    out = io.StringIO()
    with pytest.raises(type(error)) as caught, Lines(out).step("make"):
        raise error
    assert caught.value is error
    assert LINE.fullmatch(out.getvalue().strip("\n"))[1] == f"make: {told}"


def test_silence_says_nothing_and_lets_errors_through(capfd):
    say = Silent()
    say.expect(3)
    say.note("unheard")
    with pytest.raises(ZeroDivisionError), say.step("make"):
        raise ZeroDivisionError
    assert capfd.readouterr() == ("", "")


def test_a_bar_counts_its_steps_and_keeps_markup_as_text():
    from rich.console import Console

    out = io.StringIO()
    bar = Bar(Console(file=out, force_terminal=True, width=100))
    bar.expect(2)
    bar.expect(1)
    try:
        with bar.step("make [bold]x[/bold]"):
            pass
        with pytest.raises(ZeroDivisionError), bar.step("prove x"):
            raise ZeroDivisionError
    finally:
        bar.close()
    text = out.getvalue()
    assert "make [bold]x[/bold]" in text
    assert "prove x: ZeroDivisionError" in text
    assert "2/3" in text


CODE = """
from edgekiln.errors import BadInput
from edgekiln.progress import shown
with shown({silent}) as say:
    say.expect(1)
    with say.step("optimise the graph"):
        pass
print("done")
"""


def run(silent=False):
    return subprocess.run(
        [sys.executable, "-c", CODE.format(silent=silent)], capture_output=True, text=True, timeout=60
    )


def test_off_a_terminal_plain_lines_go_to_standard_error_without_control_codes():
    done = run()
    assert done.stdout == "done\n"
    assert LINE.fullmatch(done.stderr.strip("\n"))[1] == "optimise the graph"
    assert "\x1b" not in done.stderr


def test_a_quiet_run_says_nothing():
    assert run(silent=True).stderr == ""


def test_on_a_terminal_a_live_bar_is_drawn_and_the_cursor_is_given_back():
    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", CODE.format(silent=False)],
        stderr=side,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(side)
    seen = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:
            break
        if not part:
            break
        seen += part
    os.close(main)
    assert process.wait(60) == 0
    assert b"optimise the graph" in seen
    assert seen.count(b"\x1b[?25h") >= seen.count(b"\x1b[?25l") > 0


def test_shown_gives_lines_where_standard_error_is_no_terminal(capsys):
    with shown() as say:
        assert isinstance(say, Lines)
    with shown(silent=True) as say:
        assert isinstance(say, Silent)
