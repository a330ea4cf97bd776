"""``edgekiln explain``: layers by what they lose, from a build's folder and from a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekiln.errors import BadInput
from edgekiln.explanation import explain
from fakes.command import Kiln


def test_every_quantised_artifact_of_a_build_tells_its_layers_and_others_say_why_not(
    digit_build: Path,
) -> None:
    found = {e.artifact: e for e in explain(digit_build)}
    recovered = found["host.onnxruntime.int8-static-mse+round+bias"]
    assert all(x.isolated_db is not None and x.cumulative_db is not None for x in recovered.layers)
    assert any(note.startswith("recover: ") for note in recovered.notes)
    assert {e.what for e in recovered.quality} >= {"agreement", "sqnr_db"}
    assert found["host.onnxruntime.fp32"].reason == "nothing in it is quantised"
    chosen = [e.chosen for e in explain(digit_build)]
    assert chosen == sorted(chosen, reverse=True)
    assert any(chosen)


def test_the_terminal_shows_the_worst_layers_first(kiln: Kiln, digit_build: Path) -> None:
    done = kiln("explain", str(digit_build), "--all", "--layers", "2")
    assert done.code == 0, done.stderr
    assert "host.onnxruntime.int8-static-mse+round+bias" in done.stdout
    assert "Alone" in done.stdout
    assert "in INT8" in done.stdout
    assert "no layers to show: nothing in it is quantised" in done.stdout


def test_a_bundle_is_explained_and_json_holds_the_same(cold_kiln: Kiln, digit_build: Path) -> None:
    bundle = digit_build / "bundles" / "host.edgekiln"
    done = cold_kiln("explain", str(bundle), "--json")
    assert done.code == 0, done.stderr
    (told,) = json.loads(done.stdout)
    assert told["artifact"] == explain(bundle)[0].artifact


@pytest.mark.parametrize("content", [None, b"{}", b"nothing"])
def test_what_is_no_build_is_refused_with_the_cure(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "evidence.json").write_bytes(content)
    with pytest.raises(BadInput) as caught:
        explain(tmp_path)
    assert caught.value.cure
