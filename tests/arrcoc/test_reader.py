"""Levels of detail that mix: a token is the same alone, in a window or with all of its level."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekiln.arrcoc import compact, views
from edgekiln.arrcoc.allocate import allocate
from edgekiln.arrcoc.compact import MARGIN
from edgekiln.arrcoc.exporting import export
from edgekiln.arrcoc.reader import Reader
from edgekiln.arrcoc.scenes.generate import scene
from edgekiln.arrcoc.scorers import Scorer
from edgekiln.arrcoc.words import LENGTH, TOKENS
from edgekiln.arrcoc.words import tokens as numbers
from edgekiln.errors import BadInput


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(0)
    return Reader(TOKENS, LENGTH).eval()


@pytest.fixture(scope="module")
def scorer():
    torch.manual_seed(1)
    return Scorer(TOKENS, LENGTH).eval()


@pytest.fixture(scope="module")
def seen():
    """A picture of two scenes with a random relevance each, as the encoder takes them."""
    pictures = [scene("validation", i)[0].picture.transpose(2, 0, 1) for i in range(2)]
    relevance = torch.rand(2, 28, 28, generator=torch.Generator().manual_seed(2))
    whole = torch.from_numpy(np.stack(pictures)).float() / 255
    return views.with_relevance(whole, relevance), relevance


@torch.no_grad()
def test_a_window_gives_the_tokens_that_the_whole_picture_gives(reader, seen):
    full, _ = seen
    cells = torch.tensor([[0, 10, 48], [3, 24, 42]])  # corners, edges and the middle
    whole = reader.encoder(views.uniform(full, 28)).reshape(2, 28, 28, -1)
    found = reader.encoder(views.windows(full, cells)).reshape(2, 3, 4, 4, -1)
    for b, chosen in enumerate(cells.tolist()):
        for k, cell in enumerate(chosen):
            y, x = cell // 7 * 4, cell % 7 * 4
            assert torch.allclose(found[b, k], whole[b, y : y + 4, x : x + 4], atol=1e-5)


@torch.no_grad()
def test_a_token_sees_its_margin_and_nothing_beyond(reader, seen):
    full, _ = seen
    framed = views.windows(full[:1], torch.tensor([[24]]))
    before = reader.encoder(framed).reshape(4, 4, -1)
    reach = 16 + 2 * MARGIN
    inside, outside = framed.clone(), framed.clone()
    outside[..., reach:, :] = 0.5
    inside[..., reach - 1, :] = 0.5
    assert torch.equal(reader.encoder(outside).reshape(4, 4, -1)[0], before[0])
    assert not torch.equal(reader.encoder(inside).reshape(4, 4, -1)[0], before[0])


@torch.no_grad()
def test_padding_does_not_change_an_answer(reader, seen):
    full, relevance = seen
    tokens = reader.encoder(views.uniform(full, 7))
    positions = views.uniform_positions(relevance, 7, 0.0)
    ids, mask = numbers("Which digit is the red one?")
    words = torch.from_numpy(ids)[None].expand(2, -1), torch.from_numpy(mask).float()[None].expand(2, -1)
    wanted = reader(tokens, positions, torch.ones(2, 49), relevance, *words)
    filled = torch.cat([tokens, torch.full((2, 16, tokens.shape[2]), 9.0)], 1)
    places = torch.cat([positions, positions[:, :16]], 1)
    held = torch.cat([torch.ones(2, 49), torch.zeros(2, 16)], 1)
    assert torch.allclose(reader(filled, places, held, relevance, *words), wanted, atol=1e-4)


@torch.no_grad()
def test_nothing_crosses_a_batch(reader, scorer, seen):
    _, relevance = seen
    texture = torch.rand(2, 13, 224, 224, generator=torch.Generator().manual_seed(3))
    ids, mask = torch.randint(1, TOKENS, (2, LENGTH)), torch.ones(2, LENGTH)
    both = scorer(texture, relevance, ids, mask)
    alone = scorer(texture[:1], relevance[:1], ids[:1], mask[:1])
    for x, y in zip(both, alone, strict=True):
        assert torch.allclose(x[:1], y, atol=1e-5)


def test_windows_are_chosen_as_the_allocation_chooses_them(seen):
    _, relevance = seen
    for one, cells in zip(relevance, views.cells_by_relevance(relevance, 4).tolist(), strict=True):
        found = allocate(one.numpy(), 49 + 4 * 16, mode="windows", peak=views.PEAK)
        assert [y * 7 + x for y, x in compact.regions(found)] == cells


@pytest.fixture(scope="module")
def folder(tmp_path_factory, scorer, reader):
    into = tmp_path_factory.mktemp("compact")
    export(scorer, reader, into, "no training", 0, (49, 81))
    return into


@torch.no_grad()
def test_the_device_gives_what_torch_gives(folder, scorer, reader):
    made, question = scene("test", 5)
    opened = compact.Compact(folder)
    found = opened.ask(made.picture, question.text, 81)
    assert (found.answered.tokens, len(found.allocation)) == (81, 81)
    from edgekiln.arrcoc.information import information
    from edgekiln.arrcoc.texture import texture

    array = texture(made.picture, (224, 224))
    ids, mask = numbers(question.text)
    words = torch.from_numpy(ids)[None], torch.from_numpy(mask).float()[None]
    relevance, maps, weights = scorer(
        torch.from_numpy(array)[None], torch.from_numpy(information(array, 28, 28))[None], *words
    )
    assert np.allclose(found.relevance, relevance[0].numpy(), atol=1e-4)
    assert np.allclose(found.maps, maps[0].numpy(), atol=1e-4)
    assert np.allclose(found.weights, weights[0].numpy(), atol=1e-5)
    whole = torch.from_numpy(made.picture.transpose(2, 0, 1).copy())[None].float() / 255
    full = views.with_relevance(whole, relevance)
    cells = views.cells_by_relevance(relevance, 2)
    tokens = torch.cat(
        [
            reader.encoder(views.uniform(full, 7)),
            reader.encoder(views.windows(full, cells)).reshape(1, 32, -1),
        ],
        1,
    )
    places = torch.cat(
        [views.uniform_positions(relevance, 7, 0.0), views.window_positions(relevance, cells)], 1
    )
    chances = reader(tokens, places, torch.ones(1, 81), relevance, *words).softmax(-1)[0].numpy()
    # The device's pictures are whole numbers: the coarse level and the relevance are rounded to 1/255.
    assert np.allclose(found.answered.chances, chances, atol=5e-3)


def test_the_device_cuts_nothing_out_of_the_texture_array(folder):
    """The channels that are seen come alone, and the positions of every picture are constants."""
    import onnx

    graph = onnx.load(folder / "scorer.onnx").graph
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input}
    assert shapes["coloured"] == [1, 6, 224, 224]
    assert "AveragePool" not in {node.op_type for node in graph.node}


def test_what_does_not_fit_is_told_with_the_least_that_would(folder):
    opened = compact.Compact(folder)
    made, question = scene("test", 5)
    with pytest.raises(BadInput, match="49"):
        opened.ask(made.picture, question.text, 48)
    assert opened.ask(made.picture, question.text, 80).answered.tokens == 49


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (1000, 1000)])
def test_pictures_of_any_size_are_brought_to_the_canvas(folder, shape):
    picture = np.full((*shape, 3), 200, np.uint8)
    found = compact.Compact(folder).ask(picture, "How many red digits are there?", 81)
    assert np.isfinite(found.answered.chances).all()
    assert sum(found.answered.chances) == pytest.approx(1, abs=1e-4)


def test_a_folder_of_another_version_or_half_a_folder_is_refused(folder, tmp_path):
    with pytest.raises(BadInput, match=r"no compact\.json"):
        compact.Compact(tmp_path)
    text = (folder / "compact.json").read_text()
    (tmp_path / "compact.json").write_text(text.replace(f'"version": {compact.VERSION}', '"version": 7'))
    with pytest.raises(BadInput, match="version 7"):
        compact.Compact(tmp_path)
    (tmp_path / "compact.json").write_text(text)
    with pytest.raises(BadInput, match="is missing"):
        compact.Compact(tmp_path)
    (tmp_path / "compact.json").write_text("{")
    with pytest.raises(BadInput, match="Export the checkpoint again"):
        compact.Compact(tmp_path)
