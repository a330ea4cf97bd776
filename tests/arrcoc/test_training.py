"""Training on a few scenes, what it is shown, and the checkpoint that it leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekiln.arrcoc import checkpoint, training
from edgekiln.arrcoc.scenes.colours import COLOURS
from edgekiln.arrcoc.scenes.generate import questions_about, relevance_target, scene
from edgekiln.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]
TINY = training.Course(
    crop=8, score=8, read=8, joint=8, crop_batch=4, score_batch=4, batch=4, workers=0, threads=1
)


def test_a_sample_belongs_to_its_scene_and_the_evidence_to_its_question():
    data = training.Scenes("train", 3, 8, training.Course())
    for number in range(8):
        sample = data[number]
        made, own = scene("train", number, 3, training.Course().kinds)
        assert np.array_equal(sample["picture"], made.picture.transpose(2, 0, 1))
        assert np.array_equal(sample["target"][0], relevance_target(made, own, (28, 28)))
        assert sample["answer"][0] == own.answer
        known = {q.answer for q in questions_about(made)}
        assert set(sample["answer"].tolist()) <= known | {own.answer}
        assert sample["ids"].shape == (3, 16)
        assert (own.kind == "count") == sample["counting"][0]


def test_a_glyph_is_where_it_is_and_has_its_colour():
    made, _ = scene("train", 0, 0, ("colour",))
    glyphs, colours, digits = training.glyphs_of(made)
    assert glyphs.sum() == pytest.approx(len(made.glyphs), abs=1e-3)
    names = list(COLOURS)
    for glyph in made.glyphs:
        y, x = (int(c // 16) for c in glyph.centre)
        assert (colours[y, x], digits[y, x]) == (names.index(glyph.colour), glyph.digit)
    assert set(np.unique(colours)) == {training.NONE, *(names.index(g.colour) for g in made.glyphs)}


def test_a_disturbed_relevance_stays_a_relevance_and_keeps_the_truth_visible():
    target = torch.zeros(4, 28, 28)
    target[:, 10, 20] = 1
    found = training.disturbed(target, torch.zeros(4, dtype=torch.bool), torch.Generator().manual_seed(0))
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert bool((found[:, 10, 20] >= 0.5).all())
    assert not torch.equal(found[0], found[1])


def test_a_disturbed_relevance_that_is_counted_keeps_its_number():
    """Of three glyphs, each in one cell: what is blurred or doubled could not be counted."""
    target = torch.zeros(64, 28, 28)
    target[:, 3, [2, 12, 22]] = 1
    counting = torch.arange(64) % 2 == 0
    sums = training.disturbed(target, counting, torch.Generator().manual_seed(0)).sum((1, 2))
    assert bool(((sums[counting] - 3.2).abs() < 0.7).all())
    assert float(sums[~counting].std()) > 3 * float(sums[counting].std())


def test_the_scorer_learns_from_what_it_is_shown():
    """On eight scenes again and again, a minute's worth of the first stage in small."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    scorer = training.Scorer(training.TOKENS, training.LENGTH)
    scenes = training.Scenes("train", 0, 8, training.Course(kinds=("colour",)))
    (batch,) = training.batches(scenes, 8, workers=0)
    optimiser = torch.optim.AdamW(scorer.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss, relevance = training.score_loss(scorer, batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.35 * losses[0]
    assert relevance.shape == (8 * 3, 28, 28)
    assert 0 <= float(relevance.detach().min()) <= float(relevance.detach().max()) <= 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "tiny.safetensors"
    command = [sys.executable, "-m", "edgekiln.arrcoc.train", str(path), "--share", "0.005", "--seed", "5"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return path, done.stdout


def test_the_command_trains_all_stages_and_says_where_the_weights_come_from(trained):
    path, told = trained
    assert [line.split()[0] for line in told.splitlines()[:-1]] == ["crops", "score", "read", "joint"]
    scorer, reader, about = checkpoint.load(path)
    assert (about.seed, about.torch) == (5, torch.__version__)
    assert "--seed 5" in about.command
    assert not scorer.training
    assert not reader.training


def test_the_same_seed_gives_the_same_weights_but_for_rounding():
    first, second = (training.train(1, TINY, lambda line: None) for _ in range(2))
    other = training.train(2, TINY, lambda line: None)
    for one, two in zip(first, second, strict=True):
        for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
            assert torch.allclose(a.float(), b.float(), atol=0.01), name
    apart = first[0].features.where.weight - other[0].features.where.weight
    assert float(apart.detach().abs().max()) > 0.1


def test_a_checkpoint_of_another_version_or_a_damaged_one_is_refused(trained, tmp_path):
    path, _ = trained
    with pytest.raises(BadInput, match="no such file"):
        checkpoint.load(tmp_path / "none.safetensors")
    data = path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInput):
        checkpoint.load(tmp_path / "cut.safetensors")
    for old, new, words in (
        (rb"\"version\":%d" % checkpoint.VERSION, rb"\"version\":9", "version 9"),
        (b"cyan digit", b"cyan tigid", "another vocabulary"),
    ):
        assert old in data
        (tmp_path / "changed.safetensors").write_bytes(data.replace(old, new))
        with pytest.raises(BadInput, match=words):
            checkpoint.load(tmp_path / "changed.safetensors")


def test_the_benchmark_compares_every_contender(trained):
    path, _ = trained
    command = [
        sys.executable,
        "benchmarks/arrcoc/accuracy.py",
        str(path),
        "--scenes",
        "25",
        "--kinds",
        "colour",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][2:]
    names = {row[0].removeprefix("| ") for row in rows}
    assert {"uniform", "random", "edge", "entropy", "origin's scorer", "oracle", "ours"} <= names
    assert {"attention after the encoder (FastV-like)", "similarity after the encoder (DART-like)"} <= names
    assert {(r[0], r[1]) for r in rows} >= {("| uniform", n) for n in ("49", "81", "196", "784")}
    assert all(0 <= float(row[2].split()[0].rstrip("|")) <= 1 for row in rows)
