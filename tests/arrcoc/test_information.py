"""Spatial information against the entropy that it estimates, on real photographs."""

from __future__ import annotations

import numpy as np
import pytest

from edgekiln.arrcoc.baselines import origin
from edgekiln.arrcoc.information import entropy, information
from edgekiln.arrcoc.scenes.generate import scene
from edgekiln.arrcoc.texture import texture


@pytest.fixture(scope="module")
def arrays():
    return [texture(scene("train", i)[0].picture, (224, 224)) for i in range(12)]


def ranks(x):
    return np.argsort(np.argsort(x.ravel()))


def test_it_ranks_places_as_their_entropy_does(arrays):
    found = [np.corrcoef(ranks(information(a, 28, 28)), ranks(entropy(a, 28, 28)))[0, 1] for a in arrays]
    assert np.median(found) > 0.75
    assert min(found) > 0.5


def test_a_flat_picture_has_none_and_noise_has_the_most(arrays):
    flat = texture(np.full((448, 448, 3), 90, np.uint8), (224, 224))
    assert information(flat, 28, 28).max() < 0.01
    assert entropy(flat, 28, 28).max() == 0
    random = np.random.default_rng(0).integers(0, 2, (224, 224, 1)) * 255
    noise = texture(random.repeat(3, 2).astype(np.uint8), (224, 224))
    assert information(noise, 28, 28).min() > 0.9
    for array in arrays:
        found = information(array, 28, 28)
        assert 0 <= found.min() <= found.max() <= 1
        assert found.max() < information(noise, 28, 28).min()


def test_the_origin_s_score_hardly_tells_places_apart(arrays):
    """Why it was replaced: over a picture it spans a small part of its range."""
    spans = [np.ptp(origin(a, 28, 28)) for a in arrays]
    ours = [np.ptp(information(a, 28, 28)) for a in arrays]
    assert np.median(spans) < 0.2 * np.median(ours)
