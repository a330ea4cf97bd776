"""The scorers' forms: what a question by place is judged by, and what the convolutions see."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekiln.arrcoc.channels import COLOURED, NAMES
from edgekiln.arrcoc.scenes.photographs import CANVAS
from edgekiln.arrcoc.scenes.questions import PLACES
from edgekiln.arrcoc.scorers import AIMS, CELLS, Features, Participatory, distances, softplus

NEAR = {"top": 0, "left": 1} | {
    name: 2 + AIMS.index(aim)
    for name, aim in (
        ("top left", (0.0, 0.0)),
        ("top right", (0.0, 1.0)),
        ("bottom left", (1.0, 0.0)),
        ("bottom right", (1.0, 1.0)),
        ("centre", (0.5, 0.5)),
    )
}


@pytest.mark.parametrize("place", NEAR)
def test_the_distances_are_those_that_the_questions_mean(place):
    found = distances(28, 28)[NEAR[place]].reshape(28, 28).numpy()
    centres = (np.arange(28) + 0.5) * CANVAS / 28
    wanted = np.array([[PLACES[place](y, x) for x in centres] for y in centres]) / CANVAS * CELLS
    assert np.allclose(found, wanted, atol=1e-3)


def test_another_grid_measures_the_same_way():
    fine, coarse = distances(28, 56), distances(14, 28)
    halved = fine.reshape(-1, 14, 2, 28, 2).mean((2, 4))
    assert torch.allclose(coarse.reshape(-1, 14, 28)[:2], halved[:2], atol=1e-4)


@torch.no_grad()
def test_of_all_that_are_there_the_one_furthest_to_where_the_words_point_wins():
    """Three places that hold the same, in a picture of nothing; the words point to the left, or nowhere."""
    torch.manual_seed(0)
    scorer = Participatory().eval()
    features, glyph = torch.zeros(1, 32, 28, 28), torch.randn(32)
    places = [(5, 20), (12, 3), (25, 11)]
    for y, x in places:
        features[0, :, y, x] = glyph
    words, mask = torch.randn(1, 16, 32), torch.ones(1, 16)
    last = scorer.out[-1]
    assert isinstance(last, torch.nn.Linear)
    here = _local(scorer, features, words, mask)
    sign = torch.sign(here[0, 5, 20] - here[0, 0, 0])
    last.weight *= sign * 12 / (here[0, 5, 20] - here[0, 0, 0]).abs()
    last.bias.fill_(0)
    last.bias -= _local(scorer, features, words, mask)[0, 0, 0] + 6  # what is nothing has a logit of -6
    scorer.towards[-1].weight.zero_()
    pointed = torch.zeros(len(AIMS) + 3)
    pointed[1], pointed[-1] = 1.0, 3.0
    scorer.towards[-1].bias.copy_(pointed)
    found = scorer(features, words, mask)[0]
    assert divmod(int(found.argmax()), 28) == (12, 3)
    assert torch.allclose(found[12, 3], torch.tensor(6.0), atol=1e-3)  # and keeps what it has by itself
    assert found[5, 20] < 0
    pointed[-1] = -30.0
    scorer.towards[-1].bias.copy_(pointed)
    assert torch.allclose(scorer(features, words, mask), _local(scorer, features, words, mask), atol=1e-3)


def _local(scorer, features, words, mask):
    places = features.flatten(2).transpose(1, 2)
    both = scorer.held(places) * scorer.heard(scorer.attention(places, words, mask))
    return scorer.out(both)[..., 0].reshape(1, 28, 28)


@torch.no_grad()
def test_the_convolutions_see_the_colours_and_the_places_are_told_beside_them():
    assert NAMES[:COLOURED] == ("R", "G", "B", "L", "a", "b")
    torch.manual_seed(0)
    features = Features().eval()
    texture = torch.rand(1, 13, 64, 64)
    before = features(texture)
    for channel, matters in ((0, True), (5, True), (6, False), (9, True), (11, True), (12, False)):
        changed = texture.clone()
        changed[:, channel] += 0.25
        assert torch.equal(features(changed), before) != matters


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_softplus_is_torchs_and_stays_finite_in_half_precision(kind):
    given = torch.tensor([-60.0, -12.0, -1.0, 0.0, 0.5, 11.5, 60.0])
    found = softplus(given.to(kind)).float()
    assert torch.allclose(found, torch.nn.functional.softplus(given), rtol=2e-3, atol=1e-3)
