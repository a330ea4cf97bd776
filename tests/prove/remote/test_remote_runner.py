"""What is copied to a device, without one: old Pythons read it, and its log is read strictly."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.prove.remote import runner, runner_tensorrt, runner_work
from edgekiln.prove.remote.lines import Block, Log, Phase

COPIED = [Path(str(m.__file__)) for m in (runner, runner_work, runner_tensorrt)]


@pytest.mark.parametrize("path", COPIED, ids=lambda p: p.name)
def test_python_3_8_can_read_what_is_copied(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    assert any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body), (
        "or its annotations would be evaluated there"
    )


@pytest.mark.parametrize("path", COPIED, ids=lambda p: p.name)
def test_it_uses_nothing_that_python_3_8_has_not(path: Path) -> None:
    newer = {
        "removeprefix",
        "removesuffix",
        "is_relative_to",
        "readlink",
        "bit_count",
        "file_digest",
        "pairwise",
    }
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            assert node.attr not in newer
        if isinstance(node, ast.Call):
            assert not any(k.arg == "strict" for k in node.keywords)


@pytest.mark.parametrize("path", COPIED, ids=lambda p: p.name)
def test_it_needs_nothing_of_edgekiln(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("edgekiln") for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("edgekiln")


def _line(**fields: object) -> bytes:
    return json.dumps(fields).encode() + b"\n"


PHASE = _line(kind="phase", t=1.0, name="idle")
BLOCK = _line(kind="block", t=2.0, begun=1.0, ended=2.0, ms=[1.5, 2.5])
WRONG = (
    _line(kind="block", t=2.0, begun=1.0, ended=2.0, ms=[0.0]),
    _line(kind="block", t=2.0, begun=1.0, ended=2.0, ms=[-1.0]),
    _line(kind="block", t=2.0, begun=1.0, ended=2.0, ms=[]),
    _line(kind="block", t=2.0, begun=2.0, ended=1.0, ms=[1.0]),
    _line(kind="block", t=2.0, begun=1.0, ended=2.0, ms=["1"]),
    b'{"kind":"block","t":2,"begun":1,"ended":2,"ms":[NaN]}\n',
    b'{"kind":"block","t":2,"begun":1,"ended":2,"ms":[1e999]}\n',
    _line(kind="phase", t=1.0, name="idle", more=1),
    _line(kind="unheard-of", t=1.0),
    b"Traceback (most recent call last):\n",
    b"\xff\xfe\n",
)


@given(st.lists(st.sampled_from([PHASE, BLOCK, *WRONG]), max_size=20), st.integers(1, 7))
def test_a_log_is_the_same_however_it_was_cut_and_nothing_is_lost(lines: list[bytes], size: int) -> None:
    whole, log = b"".join(lines), Log()
    for at in range(0, len(whole), size):
        assert log.offset == at
        log.feed(whole[at : at + size])
    known = [line for line in lines if line in (PHASE, BLOCK)]
    assert [Phase if line == PHASE else Block for line in known] == [type(line) for line in log.lines]
    assert len(log.unread) == len(lines) - len(known)
    assert log.samples == 2 * known.count(BLOCK)
    assert not log.ended


def test_a_line_that_is_not_whole_waits_for_its_rest() -> None:
    log = Log()
    log.feed(BLOCK[:-5])
    assert (log.lines, log.unread) == ([], [])
    log.feed(BLOCK[-5:])
    assert log.samples == 2


@pytest.mark.parametrize(
    "message",
    [
        "Unsupported model IR version: 10, max supported IR version: 9",
        "ONNX Runtime only *guarantees* support for models stamped with opset version 21 or below",
        "com.microsoft.nchwc:Foo(-1) is not a registered function/op",
        "Didn't find op for builtin opcode 'CONV_2D' version '6'",
    ],
)
def test_words_of_an_old_runtime_are_known(message: str) -> None:
    assert runner_work.too_old("onnxruntime", "1.10.0", message)
    assert runner_work.too_old("onnxruntime", "1.10.0", "the input has the wrong shape") is None
