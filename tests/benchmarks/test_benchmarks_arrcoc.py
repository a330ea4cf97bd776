"""What shows ARR-COC runs as one command, and its arithmetic is right on figures whose answer is known."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from edgekiln.errors import BadInput
from fakes.untrained_compact import untrained

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    """A module of ``showing``, imported as its start would."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(f"arrcoc.showing.{request.param}")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fresh weights: what they answer means nothing."""
    return untrained(tmp_path_factory.mktemp("fresh") / "fresh.safetensors")


def _command(name: str, *given: object) -> subprocess.CompletedProcess[str]:
    """A benchmark in a process of its own, with this checkout's sources."""
    search = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH", ""))))
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "arrcoc" / name), *map(str, given)],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one smoke run of everything."""
    out = tmp_path_factory.mktemp("whole")
    done = _command("run.py", checkpoint, "--out", out, "--quick", "--short", "--kinds", "colour")
    assert done.returncode == 0, f"{done.stderr}\n{(out / 'README.md').read_text()}"
    return out


# ---------------------------------------------------------------- readers of one density


def test_a_reader_of_its_own_stands_beside_the_shared_one(checkpoint: Path) -> None:
    """Trained on in a copy: the row of our own tokens is that of the checkpoint."""
    done = _command("own_readers.py", checkpoint, "--sides", 9, "--scenes", 25, "--share", 0.01)
    assert done.returncode == 0, done.stderr
    assert "9x9 3/3: loss" in done.stdout, "a hundredth of 2,400 scenes, eight in a step"
    rows = re.findall(r"^\| colour \| (.+?) \| (\S+) \(", done.stdout, re.MULTILINE)
    assert [name for name, _ in rows] == [
        "ours, 81 tokens",
        "uniform 81, the shared reader",
        "uniform 81, its own reader",
    ]
    assert all(0 <= float(share) <= 1 for _, share in rows)


# ---------------------------------------------------------------- the whole


def test_the_page_has_every_part_with_its_command_and_its_goals(whole: Path) -> None:
    text = (whole / "README.md").read_text(encoding="utf-8")
    assert "its figures mean nothing" in text
    commands = re.findall(r"^python benchmarks/arrcoc/(\w+)\.py ", text, re.MULTILINE)
    assert commands == ["accuracy", "latency", "overhead", "gallery"]
    titles = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert len(titles) == len(set(titles)), "nothing stands there twice"
    for part in ("Accuracy, questions by colour", "Ablations, questions by colour", "At equal latency"):
        assert any(part in title for title in titles)
    assert sum(title.startswith("Goal") for title in titles) == 3
    for picture in re.findall(r"!\[[^]]+\]\(([^)]+)\)", text):
        assert (whole / picture).stat().st_size > 1000
    assert text.count("Machine: ") == 3


def test_every_contender_was_timed_with_one_thread_and_with_two(whole: Path) -> None:
    raw = json.loads((whole / "arrcoc-latency.json").read_text())["raw"]
    timed = {(t["contender"], t["tokens"], t["threads"]) for t in raw}
    for threads in (1, 2):
        assert {("ours", n, threads) for n in (49, 65, 81, 113, 177)} <= timed
        assert {("uniform", n, threads) for n in (49, 81, 196, 784)} <= timed
        for name in ("attention after the encoder (FastV-like)", "similarity after the encoder (DART-like)"):
            assert {(name, n, threads) for n in (65, 81, 113)} <= timed
    for t in raw:
        if t["contender"] == "ours":
            stages = ["texture", "information", "scorers", "allocation", "reader"]
            assert sorted(t["stages_ms"]) == sorted(stages)
            parts = np.sum([t["stages_ms"][s] for s in stages], axis=0)
            assert (parts <= np.concatenate(t["blocks_ms"])).all()
        assert {len(block) for block in t["blocks_ms"]} == {3}


def test_pruning_pays_for_the_encoder_over_all_tokens(whole: Path) -> None:
    raw = json.loads((whole / "arrcoc-latency.json").read_text())["raw"]
    cost = {(t["contender"], t["tokens"]): np.median(t["blocks_ms"]) for t in raw if t["threads"] == 1}
    assert cost["similarity after the encoder (DART-like)", 65] > 2 * cost["uniform", 81]


def test_the_gallery_is_the_first_scenes_of_the_split(whole: Path) -> None:
    from edgekiln.arrcoc.scenes.generate import scenes

    raw = json.loads((whole / "arrcoc-gallery.json").read_text())["raw"]
    asked = [question for _, question in scenes("test", 2)]
    assert [(r["number"], r["question"], r["answer"]) for r in raw] == [
        (i, q.text, q.answer) for i, q in enumerate(asked)
    ]
    page = (whole / "gallery.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 2 * 3
    assert "http://" not in page
    assert "<script" not in page
    with Image.open(whole / "gallery.png") as sheet:
        assert sheet.width > 1800


def test_the_chart_is_sound_and_names_the_contenders(whole: Path) -> None:
    tree = ElementTree.fromstring((whole / "arrcoc-accuracy-colour.svg").read_text(encoding="utf-8"))
    labels = [t.text for t in tree.iter("{http://www.w3.org/2000/svg}text") if "label" in t.get("class", "")]
    assert labels.count("ARR-COC") == labels.count("uniform") == 2
    assert {"oracle", "random", "FastV-like", "similarity"} <= set(labels)


# ---------------------------------------------------------------- the arithmetic


def row(module: ModuleType, *values: float, contender: str = "ours", tokens: int = 81) -> Any:
    seeds = tuple(str(i) for i in range(len(values)))
    return module.Row(
        kind="colour", contender=contender, tokens=tokens, scenes=100, seeds=seeds, accuracy=values
    )


@pytest.mark.parametrize("module", ["accuracies"], indirect=True)
def test_an_interval_is_over_seeds_or_where_there_is_one_over_scenes(module: ModuleType) -> None:
    low, high = row(module, 0.6, 0.7, 0.8).interval
    assert (low + high) / 2 == pytest.approx(0.7)
    assert high - low == pytest.approx(2 * 4.303 * 0.1 / math.sqrt(3))
    low, high = row(module, 0.5).interval
    assert (low, high) == (pytest.approx(0.404, abs=1e-3), pytest.approx(0.596, abs=1e-3))
    assert row(module, 0.0, 1.0).interval == (0.0, 1.0)


@pytest.mark.parametrize("module", ["accuracies"], indirect=True)
def test_goals_of_accuracy_are_met_missed_or_not_measured(module: ModuleType) -> None:
    def verdicts(*rows: Any) -> list[str]:
        return [cells[-1] for cells in module.goals(rows).rows]

    dense = row(module, 0.8, contender="uniform", tokens=784)
    low, high = row(module, 0.7), row(module, 0.9, tokens=113)
    assert verdicts(dense, low, high) == ["missed by 0.050", "met"]
    assert verdicts(low, high) == ["missed by 0.050", "not measured"]
    assert verdicts(dense, row(module, 0.75)) == ["met", "not measured"]


@pytest.mark.parametrize("module", ["accuracies"], indirect=True)
def test_rows_that_are_none_are_refused(module: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "accuracy.json"
    for text in (None, "[]", "{}", '[{"kind": "colour"}]'):
        if text is not None:
            path.write_text(text)
        with pytest.raises(BadInput, match="accuracy"):
            module.read(path)


def times(module: ModuleType, contender: str, tokens: int, ms: float) -> Any:
    blocks = tuple((ms * 0.99, ms, ms * 1.01) for _ in range(20))
    return module.Times(contender=contender, tokens=tokens, threads=1, blocks_ms=blocks, stages_ms={})


@pytest.mark.parametrize("module", ["latency"], indirect=True)
def test_the_goal_of_latency_is_judged_against_uniform_784_without_scorers(module: ModuleType) -> None:
    found = [
        times(module, "ours", 81, 10.0),
        times(module, "ours", 113, 12.0),
        times(module, "uniform", 784, 33.0),
        times(module, module.INFORMED, 784, 90.0),
    ]
    rows = module.goals(found).rows
    assert [(r[0], r[2], r[-1]) for r in rows] == [("81", "0.303", "met"), ("113", "0.364", "missed")]
    assert module.verdict((0.3, 0.4), 1 / 3).startswith("not shown")
    assert module.verdict(None, 1 / 3).startswith("not shown")


@pytest.mark.parametrize("module", ["latency"], indirect=True)
def test_at_equal_latency_the_best_of_those_that_are_as_quick_is_named(module: ModuleType) -> None:
    from arrcoc.showing import accuracies  # type: ignore[import-not-found]

    rows = [
        row(accuracies, 0.7),
        row(accuracies, 0.5, contender="uniform", tokens=81),
        row(accuracies, 0.6, contender="uniform", tokens=196),
        row(accuracies, 0.9, contender="uniform", tokens=784),
    ]
    found = [
        times(module, "ours", 81, 10.0),
        times(module, "uniform", 81, 4.0),
        times(module, "uniform", 196, 8.0),
        times(module, "uniform", 784, 30.0),
    ]
    (cells,) = module.at_equal_latency(found, rows, "colour").rows
    assert (cells[3], cells[-1]) == ("uniform, 196 tokens", "+0.100")


@pytest.mark.parametrize("module", ["contenders"], indirect=True)
def test_uniform_is_shown_what_the_training_shows(module: ModuleType) -> None:
    import torch

    from edgekiln.arrcoc import views
    from edgekiln.arrcoc.scenes.generate import scene

    picture = scene("validation", 1)[0].picture
    relevance = np.random.default_rng(0).random((28, 28), np.float32)
    full = views.with_relevance(
        torch.from_numpy(picture.transpose(2, 0, 1).copy())[None].float() / 255,
        torch.from_numpy(np.rint(relevance * 255) / 255).float()[None],
    )
    for side in (7, 14, 28):
        wanted = (views.uniform(full, side)[0] * 255).numpy()
        assert np.abs(module.whole(picture, relevance, side) - wanted).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("module", ["everything"], indirect=True)
def test_a_step_that_fails_is_told_and_the_others_stand(module: ModuleType, tmp_path: Path) -> None:
    bad = module.Step(
        name="texture", title="Bad", command=("-c", "raise SystemExit('no room')"), printed=tmp_path / "b"
    )
    good = module.Step(
        name="allocation", title="Good", command=("-c", "print('### T\\nfine')"), printed=tmp_path / "g"
    )
    ended = [module.run(step, False) for step in (bad, good)]
    text = module.page(ended, tmp_path, False)
    assert "**Bad failed**" in text
    assert "no room" in text
    assert "fine" in text
    assert not bad.printed.exists()
    assert module.run(good, True).seconds == 0.0, "kept"


@pytest.mark.parametrize("module", ["gallery"], indirect=True)
def test_the_share_that_was_looked_at_is_of_the_evidence_alone(module: ModuleType) -> None:
    from edgekiln.arrcoc.allocate import allocate
    from edgekiln.arrcoc.compact import Answered, Seen
    from edgekiln.arrcoc.scenes.generate import relevance_target, scene

    made, question = scene("test", 0)
    target = relevance_target(made, question)
    answered = Answered(answer=0, chances=(1.0,), tokens=81, stages_ms={})

    def share(relevance: Any) -> float:
        found = allocate(relevance, 49 + 16 * 4, mode="windows")
        seen = Seen(answered=answered, relevance=target, maps=target, weights=target, allocation=found)
        return float(module.looked_at(made, question, seen))

    assert share(target) == 1.0
    far = np.zeros_like(target)
    y, x = np.unravel_index(target.argmax(), target.shape)
    far[(y + 14) % 28, (x + 14) % 28] = 1
    found = allocate(far, 65, mode="windows")
    seen = Seen(answered=answered, relevance=far, maps=far, weights=far, allocation=found)
    assert module.looked_at(made, question, seen) == 0.0
