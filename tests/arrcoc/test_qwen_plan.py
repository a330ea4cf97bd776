"""Which frame, grid and tokens a total or a latency gives; and which places a picture's question is about."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from edgekiln.arrcoc import budget
from edgekiln.arrcoc.allocate import BudgetTooSmall
from edgekiln.arrcoc.budget import LatencyTooShort, Point
from edgekiln.arrcoc.quadtree import Grid
from edgekiln.arrcoc.qwen import positions, relevance
from edgekiln.arrcoc.qwen.cost import Costs, up_to
from edgekiln.arrcoc.qwen.limits import Limits
from edgekiln.arrcoc.qwen.patches import PatchRules
from edgekiln.arrcoc.qwen.plan import chosen, leaves, plan
from edgekiln.arrcoc.qwen.reduce import Visual
from edgekiln.errors import BadInput
from fakes import tiny_qwen

RULES = PatchRules()


# ---------------------------------------------------------------- the grid


@pytest.mark.parametrize(
    ("tokens", "size", "grid"),
    [
        (196, (448, 448), Grid(rows=14, cols=14, levels=1)),  # all that Qwen3-VL itself takes
        (195, (448, 448), Grid(rows=7, cols=7, levels=2)),
        (98, (448, 448), Grid(rows=7, cols=7, levels=2)),
        (97, (512, 512), Grid(rows=4, cols=4, levels=3)),
        (20, (512, 512), Grid(rows=2, cols=2, levels=4)),
        (8, (512, 512), Grid(rows=2, cols=2, levels=4)),
        (7, (256, 256), Grid(rows=1, cols=1, levels=4)),
        (1, (256, 256), Grid(rows=1, cols=1, levels=4)),
    ],
)
def test_the_less_tokens_the_coarser_the_coarsest_level(
    tokens: int, size: tuple[int, int], grid: Grid
) -> None:
    found = plan(448, 448, RULES, Limits(tokens=tokens))
    assert (found.size, found.grid, found.standard) == (size, grid, 196)


def test_a_large_picture_is_made_smaller_rather_than_seen_without_detail() -> None:
    found = plan(3000, 4000, RULES, Limits(tokens=113))
    assert found.grid.levels == 4
    assert 28 <= found.grid.regions <= 56
    assert found.size[0] / found.size[1] == pytest.approx(0.75, rel=0.1)
    assert found.standard > 11_000


def test_less_than_the_coarsest_view_is_an_error_with_the_least() -> None:
    with pytest.raises(BudgetTooSmall) as told:
        plan(32, 6400, RULES, Limits(tokens=7))  # a row of regions, which can't be shorter
    least = told.value.least
    assert plan(32, 6400, RULES, Limits(tokens=least)).grid.regions == least
    assert least > 7


@pytest.mark.parametrize(("height", "width"), [(1, 1), (10_000, 10_000), (37, 4000), (200, 1)])
@pytest.mark.parametrize("tokens", [30, 300])
def test_pictures_of_any_size_have_a_grid_within_the_models_pixels(
    height: int, width: int, tokens: int
) -> None:
    found = plan(height, width, RULES, Limits(tokens=tokens))
    rows, cols = found.grid.finest
    assert found.size == (rows * 32, cols * 32)
    assert found.size[0] * found.size[1] <= RULES.most_pixels
    assert found.grid.regions <= tokens


# ---------------------------------------------------------------- the tokens


@given(
    seed=st.integers(0, 1000),
    grid=st.builds(Grid, rows=st.integers(1, 4), cols=st.integers(1, 4), levels=st.integers(1, 4)),
    extra=st.integers(0, 300),
)
@settings(deadline=None, max_examples=60)
def test_tokens_cover_the_picture_once_within_the_total_and_use_it_up(
    seed: int, grid: Grid, extra: int
) -> None:
    map_ = np.random.default_rng(seed).random(grid.finest, np.float32)
    total = grid.regions + extra
    cells = chosen(map_, total, grid)
    assert len(cells) <= total
    assert len(cells) > total - 3 or len(cells) == grid.regions * grid.region_cells
    covered = np.zeros(grid.finest, int)
    for side, (_, row, col) in zip(positions.spans(cells, grid.levels), cells, strict=True):
        covered[row * side : (row + 1) * side, col * side : (col + 1) * side] += 1
    assert (covered == 1).all()


def test_the_relevant_place_gets_the_finest_tokens() -> None:
    grid = Grid(rows=7, cols=7, levels=2)
    map_ = np.zeros(grid.finest, np.float32)
    map_[6:8, 2:4] = 1
    cells = chosen(map_, 52, grid)
    assert cells[cells[:, 0] == 1].tolist() == [[1, 6, 2], [1, 6, 3], [1, 7, 2], [1, 7, 3]]
    with pytest.raises(BudgetTooSmall):
        chosen(map_, 48, grid)


def test_a_total_for_everything_is_every_finest_token_in_the_models_own_order() -> None:
    grid = Grid(rows=2, cols=3, levels=3)
    cells = chosen(np.zeros(grid.finest, np.float32), 96, grid)
    assert np.array_equal(cells, positions.all_cells(8, 12, 2))


def test_leaves_of_leaves_are_the_same() -> None:
    grid = Grid(rows=2, cols=2, levels=2)
    tokens = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 2], [1, 0, 3], [1, 1, 2], [1, 1, 3]], np.int32)
    once = leaves(tokens, grid)
    assert once.tolist() == [[0, 0, 0], [1, 0, 2], [1, 0, 3], [1, 1, 2], [1, 1, 3]]
    assert np.array_equal(leaves(once, grid), once)


# ---------------------------------------------------------------- the latency


def limits(latency_ms: float, route: str = "inside") -> Limits:
    """An encoder of 10 ms + 1 ms a token and a decoder of 5 ms + 0.5 ms a token, measured to 256 tokens."""

    def linear(first: float, slope: float) -> budget.LatencyModel:
        points = [Point(tokens=n, latency_ms=(first + slope * n,) * 5) for n in (4, 16, 64, 256)]
        return budget.fit(points, budget.origin("torch", 1, unfit=()), percentile=80)

    costs = Costs(encoder=linear(10, 1), decoder=linear(5, 0.5))
    return Limits(latency_ms=latency_ms, costs=costs, text_tokens=20, encodes_whole=route == "after")


GRID = Grid(rows=7, cols=7, levels=2)


def test_the_total_is_what_encoder_and_decoder_leave_after_the_look_at_the_regions() -> None:
    # 10 + 49 to look, 10 + n to encode, 5 + 0.5 * (n + 20) to the first token: n = 100 takes 234 ms.
    assert limits(234.001).before(GRID) == 100
    assert limits(233.9).before(GRID) == 99
    assert limits(234.001).after(59.0, GRID) == 100
    assert limits(234.001).bound(59.0, GRID, 100) == pytest.approx(234)
    # Nothing is looked at where everything is taken; and the way after the encoder pays for all at once.
    assert limits(319.001).before(Grid(rows=14, cols=14, levels=1)) == 196
    assert limits(10 + 196 + 5 + 60.001, "after").before(GRID) == 100
    assert limits(300.001, "after").after(206.0 + 20, GRID) == 118


def test_what_was_not_measured_is_not_promised() -> None:
    many = Grid(rows=10, cols=10, levels=2)
    assert limits(1e6).before(many) == 236  # 256 in the decoder, 20 of them text
    more = Grid(rows=20, cols=20, levels=2)
    assert limits(1e6).before(more) == 0
    with pytest.raises(BadInput, match=r"400 tokens: .* up to 256 tokens in the encoder and 256 in"):
        raise limits(1e6).refused(more)


def test_a_latency_for_less_than_the_coarsest_view_names_what_would_do() -> None:
    with pytest.raises(LatencyTooShort) as told:
        plan(448, 448, RULES, limits(30))
    # One region counts as 4 tokens, the least that was measured: 14 to look, 14 to encode, 15.5 to decode.
    assert told.value.needs_ms == pytest.approx(43.5, rel=0.01)
    assert plan(448, 448, RULES, limits(44)).grid.regions == 1
    assert plan(448, 448, RULES, limits(52)).grid.regions == 4


def test_a_look_that_took_too_long_leaves_the_coarsest_view_and_a_bound_above_the_latency() -> None:
    late = limits(200)
    assert late.after(190.0, GRID) == 49
    bound = late.bound(190.0, GRID, 49)
    assert bound is not None
    assert bound > 200


def test_more_is_measured_for_larger_pictures_only() -> None:
    assert up_to(10) == (4, 16, 49, 113)
    assert up_to(256) == (4, 16, 49, 113, 256)
    assert up_to(257) == (4, 16, 49, 113, 256, 576)
    assert up_to(99_999)[-1] == 4096


# ---------------------------------------------------------------- relevance


def test_what_there_is_to_see_is_where_the_picture_is_not_flat() -> None:
    frame = np.full((128, 192, 3), 200, np.uint8)
    frame[32:64, 64:96] = data.page()[100:132, 100:132, None]
    found = relevance.propositional(frame, 4, 6)
    assert found.shape == (4, 6)
    assert found.dtype == np.float32
    assert np.unravel_index(found.argmax(), found.shape) == (1, 2)
    assert found[3, 5] == 0
    assert 0 <= found.min() <= found.max() <= 1


def test_a_cells_value_depends_on_no_other_cell_but_its_neighbours() -> None:
    frame = np.ascontiguousarray(data.astronaut()[:128, :128])
    changed = frame.copy()
    changed[96:, 96:] = 0
    before, after = relevance.propositional(frame, 4, 4), relevance.propositional(changed, 4, 4)
    assert np.array_equal(before[:2, :2], after[:2, :2])
    assert before[3, 3] != after[3, 3]


def test_a_place_whose_token_is_a_word_of_the_question_is_the_most_relevant() -> None:
    import torch

    model = tiny_qwen.model()
    tokens = torch.randn(12, 64, generator=torch.Generator().manual_seed(0))
    question = [20, 21, 22]
    words = model.get_input_embeddings()(torch.tensor(question)).detach()
    tokens[7] = 10 * (words[1] - words.mean(0))
    found = relevance.participatory(model, Visual(tokens=tokens, deepstack=()), question, 3, 4)
    assert found.shape == (3, 4)
    assert np.unravel_index(found.argmax(), found.shape) == (1, 3)
    assert found[1, 3] > 0.9
    assert found.max() <= 1


def test_a_question_of_one_word_and_a_picture_of_one_place_have_a_map_too() -> None:
    import torch

    found = relevance.participatory(
        tiny_qwen.model(), Visual(tokens=torch.ones(1, 64), deepstack=()), [20], 1, 1
    )
    assert found.tolist() == [[0.5]]


def test_a_coarse_map_is_spread_over_its_children() -> None:
    coarse = np.array([[0.25, 0.75]], np.float32)
    assert relevance.spread(coarse, 2, 4).tolist() == [[0.25, 0.25, 0.75, 0.75]] * 2
    assert relevance.mean_of([coarse, coarse * 0]).tolist() == [[0.125, 0.375]]
