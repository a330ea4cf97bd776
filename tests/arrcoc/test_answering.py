"""One question about one picture with the checkpoint that comes with the program, within a latency."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from edgekiln.arrcoc import answering, checkpoint
from edgekiln.arrcoc.allocate import BudgetTooSmall
from edgekiln.arrcoc.budget import LatencyTooShort
from edgekiln.arrcoc.compact import Compact
from edgekiln.arrcoc.scenes.generate import scenes
from edgekiln.errors import BadInput


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where exports and measured costs are kept: both are made once."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A scene of the validation split as a file, and its question."""
    made, question = next(scenes("validation", 1, kinds=("colour",)))
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    Image.fromarray(made.picture).save(path)
    return path, question


@pytest.fixture(scope="module")
def system(kept, shown):
    reply = answering.ask(None, *_asked(shown), tokens=81, root=kept)
    assert reply.tokens == 81
    (folder,) = (kept / "arrcoc-compact").iterdir()
    return Compact(folder)


def _asked(shown):
    path, question = shown
    return path, question.text


def test_the_checkpoint_says_which_command_made_it():
    _, _, about = checkpoint.load(checkpoint.TRAINED)
    assert about.command.startswith("python -m edgekiln.arrcoc.train --seed")
    assert about.command.endswith("--share 1")
    assert about.seconds < 3600
    assert checkpoint.TRAINED.stat().st_size < 4_000_000


@pytest.mark.parametrize(("kind", "least"), [("colour", 0.6), ("place", 0.4), ("count", 0.3)])
def test_it_answers_about_held_out_glyphs_from_81_tokens(system, kind, least):
    """Photographs, fonts and phrasings of the validation split; chance is one in ten."""
    right = [
        system.ask(made.picture, question.text, 81).answered.answer == question.answer
        for made, question in scenes("validation", 40, kinds=(kind,), start=200)
    ]
    assert np.mean(right) > least


def test_what_it_reads_closely_is_where_the_question_points(system):
    found = []
    for made, question in scenes("validation", 20, kinds=("colour",), start=300):
        seen = system.ask(made.picture, question.text, 81)
        y, x = made.glyphs[question.evidence[0]].centre
        found.append((int(y // 64), int(x // 64)) in answering.regions(seen.allocation))
    assert np.mean(found) > 0.7


def test_a_latency_buys_tokens_and_says_whether_it_was_kept(kept, shown, system):
    reply = answering.ask(None, *_asked(shown), latency_ms=60_000, root=kept)
    assert reply.tokens == max(system.manifest.buckets)
    assert reply.met
    assert reply.predicted_ms is not None
    assert reply.took_ms <= reply.latency_ms
    assert reply.took_ms == pytest.approx(sum(reply.stages_ms.values()), rel=0.2)
    assert sum(reply.weights.values()) == pytest.approx(1, abs=1e-3)
    with pytest.raises(LatencyTooShort, match="Allow at least"):
        answering.ask(None, *_asked(shown), latency_ms=0.001, root=kept)


def test_what_was_read_is_drawn(kept, shown, system, tmp_path):
    drawing = tmp_path / "seen.png"
    reply = answering.ask(None, *_asked(shown), tokens=65, root=kept, drawing=drawing)
    assert len(reply.windows) == 1
    with Image.open(drawing) as drawn:
        assert drawn.size == (896, 896)


def test_an_exported_folder_is_used_in_place_of_the_kept_one(kept, shown, system):
    (folder,) = (kept / "arrcoc-compact").iterdir()
    assert answering.is_compact(folder)
    assert not answering.is_compact(folder.parent)
    reply = answering.ask(folder, *_asked(shown), tokens=49, root=kept)
    assert (reply.tokens, reply.windows, reply.latency_ms, reply.met) == (49, (), None, None)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"tokens": 48}, BudgetTooSmall, "49"),
        ({"tokens": 81, "latency_ms": 10.0}, BadInput, "Give one of them"),
    ],
)
def test_options_of_no_use_are_refused(kept, shown, system, options, error, said):
    with pytest.raises(error, match=said):
        answering.ask(None, *_asked(shown), root=kept, **options)


@pytest.mark.parametrize("question", ["", "which " * 10_000])
def test_a_question_of_no_use_is_refused(kept, shown, system, question):
    with pytest.raises(BadInput):
        answering.ask(None, shown[0], question, tokens=81, root=kept)


@pytest.mark.parametrize(
    ("mode", "size"), [("RGB", (1, 1)), ("RGB", (10_000, 10_000)), ("L", (300, 200)), ("RGBA", (64, 512))]
)
def test_any_picture_gets_an_answer(kept, shown, system, tmp_path, mode, size):
    path = tmp_path / "odd.png"
    Image.new(mode, size, 128 if mode == "L" else (255, 0, 0, 128)[: len(mode)]).save(path)
    reply = answering.ask(None, path, shown[1].text, tokens=81, root=kept)
    assert 0 <= reply.answer <= 9
    assert reply.tokens == 81
