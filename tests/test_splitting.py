"""``edgekiln split`` as a user types it: the places, the two parts, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import edgekiln
from edgekiln.cli import main
from edgekiln.files import sha256_file
from edgekiln.model.parts import read_split

Typed = Callable[..., Any]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for at in range(6):
        Image.fromarray(draw.integers(0, 256, (48, 64, 3), np.uint8)).save(folder / f"{at}.png")
    return folder


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """What ``edgekiln split`` prints in a folder of its own, as JSON or as words."""
    monkeypatch.chdir(tmp_path)

    def type_it(*arguments: object) -> Any:
        code = main(["split", *map(str, arguments)])
        shown = capsys.readouterr()
        assert code == 0, shown.err
        return json.loads(shown.out) if "--json" in arguments else " ".join(shown.out.split())

    return type_it


def outputs_of(path: Path, op: str) -> list[str]:
    return [n.output[0] for n in onnx.load(path).graph.node if n.op_type == op]


def test_without_a_tensor_the_places_are_shown_and_can_be_cut(
    typed: Typed, net: Path, photos: Path, tmp_path: Path
) -> None:
    places = typed(net, "--data", photos, "--json")["places"]
    assert len(places) >= 2
    assert not (tmp_path / "edgekiln-split").exists()
    shown = typed(net, "--data", photos)
    assert all(place["tensor"] in shown for place in places)
    assert "no preprocessing was given" in shown
    for place in (places[0], places[-1]):
        made = typed(net, "--at", place["tensor"], "--data", photos, "--out", place["op"], "--json")
        assert made["macs_share"] == pytest.approx(place["macs_share"], rel=0.01)


def test_a_cut_writes_head_and_tail_and_tells_what_they_cost(
    typed: Typed, net: Path, photos: Path, tmp_path: Path
) -> None:
    tensor = outputs_of(net, "Add")[-1]
    told = typed(net, "--at", tensor, "--data", photos, "--out", "parts", "--json")
    made = read_split(tmp_path / "parts")
    assert told["split"]["head"]["sha256"] == made.head.sha256
    assert made.samples >= 4, "the pictures, not random numbers"
    assert made.parity_max_error < 1e-4
    (feature,) = made.features
    assert told["sent_bytes"] == np.prod(feature.shape) + 8 * feature.shape[1]
    assert made.provenance["source_sha256:net.onnx"] == sha256_file(net)
    said = typed(net, "--at", tensor, "--data", photos, "--out", "again")
    numbers = f"{made.features_elements:,} numbers"
    for word in (tensor, numbers, "head.onnx", "tail.onnx", "dB SQNR", "--split again"):
        assert word in said


def test_it_is_a_function_too_and_takes_an_open_batch(
    dynamic_net: Path, photos: Path, tmp_path: Path
) -> None:
    at = outputs_of(dynamic_net, "GlobalAveragePool")
    made = edgekiln.split(dynamic_net, at, data=photos, out=tmp_path / "parts")
    assert made.split.signature.inputs[0].shape == (1, 3, 32, 32)
    assert read_split(tmp_path / "parts") == made.split


def test_a_job_brings_its_model_data_and_preprocessing(
    typed: Typed, net: Path, photos: Path, tmp_path: Path
) -> None:
    job = f'data = "{photos}"\n[model]\nsource = "{net}"\n[preprocess]\nwidth = 32\nheight = 32\n'
    (tmp_path / "job.toml").write_text(job)
    assert typed("job.toml", "--json")["warnings"] == []


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    def refuse(words: tuple[str, ...], *arguments: object) -> None:
        assert main(["split", *map(str, arguments)]) == 2
        told = capsys.readouterr().err
        assert "cure:" in told
        assert "fault of edgekiln" not in told
        for word in words:
            assert word in told, told

    return refuse


def test_what_can_not_be_cut_is_refused_and_nothing_is_written(
    refused: Callable[..., None],
    net: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    first, add = outputs_of(net, "Conv")[0], outputs_of(net, "Add")[-1]
    data = ("--data", photos)
    refused(("has this name", "Did you mean", add), net, "--at", add[1:-2], *data)
    refused(("has this name", "without --at"), net, "--at", "zzz", *data)
    refused(("nothing is hidden", "without --at", "net.onnx"), net, "--at", first, *data)
    refused(("no such folder",), net, "--at", add, "--data", "nowhere")
    refused(("cure:",), "nothing.onnx", "--at", add)
    assert not (tmp_path / "edgekiln-split").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    refused(("something is there already",), net, "--at", add, *data, "--out", "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
