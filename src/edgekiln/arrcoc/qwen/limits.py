"""How many visual tokens there may be: a total that was given, or what a latency leaves room for."""

from __future__ import annotations

import math
from collections.abc import Callable

from edgekiln.arrcoc.allocate import BudgetTooSmall
from edgekiln.arrcoc.budget import LatencyModel, LatencyTooShort
from edgekiln.arrcoc.quadtree import Grid
from edgekiln.arrcoc.qwen.cost import Costs
from edgekiln.errors import BadInput
from edgekiln.records import Record


class Limits(Record, frozen=True, kw_only=True):
    """``tokens`` is the total where it was given; else ``costs`` bound what fits into ``latency_ms`` beside
    ``text_tokens`` of text. ``encodes_whole``: the encoder computes every finest token, whatever is kept."""

    tokens: int | None = None
    latency_ms: float = math.inf
    costs: Costs | None = None
    text_tokens: int = 0
    encodes_whole: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What made the machine unfit when the costs were measured."""
        models = () if self.costs is None else (self.costs.encoder, self.costs.decoder)
        return tuple(sorted({f"when costs were measured: {n}" for m in models for n in m.origin.unfit}))

    def before(self, grid: Grid) -> int:
        """The most tokens on ``grid`` that can be expected before anything is looked at; 0 where none fit."""
        if self.costs is None:
            return self.tokens or 0
        return self._most(0.0, grid, looked=grid.levels > 1)

    def after(self, spent_ms: float, grid: Grid) -> int:
        """The total that is left for ``grid`` after ``spent_ms``, in which the relevance was found.

        Where the machine was slower than predicted and not even the regions fit any more, it is the regions:
        the question was taken on, and the coarsest view is the soonest answer."""
        if self.costs is None:
            return self.tokens or 0
        return max(grid.regions, self._most(spent_ms, grid, looked=None))

    def refused(self, grid: Grid) -> BadInput:
        """The error for a grid whose regions do not fit, before anything is looked at."""
        if self.costs is None:
            return BudgetTooSmall(self.tokens or 0, grid)
        least = self._rest_ms(grid.regions, grid, looked=grid.levels > 1)
        if math.isinf(least):
            most = [c.points[-1].tokens for c in (self.costs.encoder, self.costs.decoder)]
            why = f"calls were measured up to {most[0]} tokens in the encoder and {most[1]} in the decoder"
            view = f"the coarsest view of {grid.regions} tokens"
            cure = "Give --tokens in place of --latency-ms, or a smaller picture"
            return BadInput("predicting", view, why, cure)
        return LatencyTooShort(self.latency_ms, grid.regions, least, self.costs.encoder.percentile)

    def bound(self, spent_ms: float, grid: Grid, tokens: int) -> float | None:
        """Upper bound of the whole, where it was predicted at all."""
        return None if self.costs is None else spent_ms + self._rest_ms(tokens, grid, None)

    def _rest_ms(self, tokens: int, grid: Grid, looked: bool | None) -> float:
        """From now to the first token: ``looked`` says whether the regions are yet to be looked at (True) or
        need not be (False); None that they have been, and with ``encodes_whole`` the whole picture."""
        assert self.costs is not None
        decoder = upper_ms(self.costs.decoder, tokens + self.text_tokens)
        if self.encodes_whole:
            encoded = [] if looked is None else [grid.regions * grid.region_cells]
        else:
            encoded = [grid.regions, tokens] if looked else [tokens]
        return decoder + sum(upper_ms(self.costs.encoder, n) for n in encoded)

    def _most(self, spent_ms: float, grid: Grid, looked: bool | None) -> int:
        def fits(tokens: int) -> bool:
            return spent_ms + self._rest_ms(tokens, grid, looked) <= self.latency_ms

        return _last(fits, grid.regions * grid.region_cells)


def upper_ms(model: LatencyModel, tokens: int) -> float:
    """What a call with ``tokens`` tokens stays below; infinite beyond the most that was measured."""
    return model.bound_ms(tokens) if tokens <= model.points[-1].tokens else math.inf


def _last(fits: Callable[[int], bool], most: int) -> int:
    """The largest of 1..most that fits, by halving; 0 where none does. What fits, fits with fewer."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
