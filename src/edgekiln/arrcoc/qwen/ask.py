"""One question about one picture, answered by Qwen3-VL with the visual tokens that a latency leaves room
for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from edgekiln import cache, interrupt
from edgekiln.arrcoc import picture as pictures
from edgekiln.arrcoc.quadtree import Grid
from edgekiln.arrcoc.qwen import encode, load, positions, reduce, relevance
from edgekiln.arrcoc.qwen.cost import costs, prefill
from edgekiln.arrcoc.qwen.limits import Limits
from edgekiln.arrcoc.qwen.patches import Frame, frame_size, resized
from edgekiln.arrcoc.qwen.plan import Plan, chosen, plan
from edgekiln.arrcoc.qwen.positions import Cells, tensor
from edgekiln.arrcoc.qwen.prompt import Prompt, check_question, prompt
from edgekiln.arrcoc.qwen.reduce import Visual
from edgekiln.errors import BadInput
from edgekiln.progress import Progress, Silent
from edgekiln.records import Record

Route: TypeAlias = Literal["inside", "after"]
ROUTES: tuple[Route, ...] = get_args(Route)
MOST_TOKENS = 1 << 16
LONGEST_ANSWER = 64


class Stage(Record, frozen=True, kw_only=True):
    name: str
    ms: float


class Reply(Record, frozen=True, kw_only=True):
    """The answer and what it took. ``tokens`` are the visual ones that the language model read, ``by_level``
    how many of each level, the coarsest first; ``standard_tokens`` what Qwen3-VL itself makes of the picture;
    ``encoded_tokens`` what the encoder computed, relevance included. ``frame`` is height and width in pixels.

    ``first_token_ms`` runs from the decoded picture to the first token of the answer, ``stages`` are its
    parts and, before and after it, what does not count to it. ``predicted_ms`` is the upper bound that the
    total was chosen by, None where it was given; ``met`` compares ``first_token_ms`` with ``latency_ms``.
    ``notes`` say what made the machine unfit when costs were measured.
    """

    answer: str
    route: Route
    tokens: int
    standard_tokens: int
    encoded_tokens: int
    by_level: tuple[int, ...]
    text_tokens: int
    answer_tokens: int
    ended: bool
    frame: tuple[int, int]
    stages: tuple[Stage, ...]
    first_token_ms: float
    latency_ms: float | None
    predicted_ms: float | None
    met: bool | None
    notes: tuple[str, ...] = ()


class _Clock:
    """Stages by name, in order; ``counted_ms`` is the time since ``start``."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self._start = 0.0

    def start(self) -> None:
        self._start = time.perf_counter()

    @property
    def counted_ms(self) -> float:
        return (time.perf_counter() - self._start) * 1000

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        interrupt.check()
        began = time.perf_counter()
        yield
        self.stages.append(Stage(name=name, ms=(time.perf_counter() - began) * 1000))


def ask(
    folder: Path,
    image: Path,
    question: str,
    *,
    latency_ms: float | None = None,
    tokens: int | None = None,
    route: Route = "inside",
    longest_answer: int = LONGEST_ANSWER,
    progress: Progress | None = None,
    root: Path | None = None,
) -> Reply:
    """Answer ``question`` about ``image`` with the Qwen3-VL in ``folder``, greedily.

    ``tokens`` is a hard total of visual tokens; without it the total is what ``latency_ms``, from the decoded
    picture to the first token of the answer, leaves after what it took to find out what is relevant.
    ``route`` "inside" mixes the detail inside the encoder, "after" pools its tokens. What tokens cost is
    measured at first use and kept below ``root`` (default: the user's cache folder).

    Raises BadInput for a question, picture or option of no use, BudgetTooSmall or LatencyTooShort where the
    coarsest view of the picture does not fit, and what ``load`` raises.
    """
    words = check_question(question)
    _check(latency_ms, tokens, longest_answer)
    shown = progress or Silent()
    clock = _Clock()
    load.check_packages(folder)
    with clock.stage("read the picture"):
        pixels = pictures.load(image)
    with shown.step("load the model"), clock.stage("load the model"):
        loaded = load.load(folder)
    text = prompt(loaded, words)
    height, width = pixels.shape[:2]
    allowed = _limits(loaded, text, (height, width), latency_ms, tokens, route, root, shown)
    planned = plan(height, width, loaded.rules, allowed)
    _check_length(loaded, text, allowed.before(planned.grid), planned, longest_answer)
    with clock.stage("warm up"):
        _warm_up(loaded, text, planned.grid)

    clock.start()
    with clock.stage("resize"):
        frame = resized(pixels, planned.size, loaded.rules)
    cells, visual, encoded_tokens, predicted = _looked(loaded, text, frame, planned, allowed, route, clock)
    ids, places = _prompt_of(loaded, text, cells, planned.grid)
    with clock.stage("first token"):
        output = prefill(loaded.model, ids, visual, places)
        first = int(output.logits[0, -1].argmax())
    took = clock.counted_ms
    with clock.stage("rest of the answer"):
        answer = _rest(loaded, first, output.past_key_values, places, longest_answer)
    ended = answer[-1] in loaded.ends
    said = loaded.tokenizer.decode(answer[:-1] if ended else answer, skip_special_tokens=True)
    return Reply(
        answer=said.strip(),
        route=route,
        tokens=len(visual),
        standard_tokens=planned.standard,
        encoded_tokens=encoded_tokens,
        by_level=tuple(int(n) for n in np.bincount(cells[:, 0], minlength=planned.grid.levels)),
        text_tokens=text.text_tokens,
        answer_tokens=len(answer),
        ended=ended,
        frame=planned.size,
        stages=tuple(clock.stages),
        first_token_ms=took,
        latency_ms=latency_ms,
        predicted_ms=predicted,
        met=None if latency_ms is None else took <= latency_ms,
        notes=allowed.notes,
    )


def _check(latency_ms: float | None, tokens: int | None, longest_answer: int) -> None:
    doing = "reading the options"
    if latency_ms is None and tokens is None:
        why = "nothing says how many visual tokens there may be"
        raise BadInput(doing, "--latency-ms", why, "Give --latency-ms 100, or --tokens 113")
    if latency_ms is not None and not 0 < latency_ms < float("inf"):
        why = f"{latency_ms:g} ms is no time to answer in"
        raise BadInput(doing, "--latency-ms", why, "Give milliseconds, such as 100")
    if tokens is not None and not 1 <= tokens <= MOST_TOKENS:
        raise BadInput(
            doing, "--tokens", f"{tokens} is not in 1 to {MOST_TOKENS}", "Give a total such as 113"
        )
    if longest_answer < 1:
        why = f"{longest_answer} tokens are no answer"
        raise BadInput(doing, "--answer-tokens", why, "Give at least 1")


def _limits(
    loaded: load.Loaded,
    text: Prompt,
    shape: tuple[int, int],
    latency_ms: float | None,
    tokens: int | None,
    route: Route,
    root: Path | None,
    progress: Progress,
) -> Limits:
    if tokens is not None or latency_ms is None:
        return Limits(tokens=tokens)
    tall, wide = frame_size(*shape, loaded.rules)
    most = tall * wide // loaded.rules.token_pixels**2
    found = costs(loaded, most, text.text_tokens, root or cache.default_root(), progress)
    whole = route == "after"
    return Limits(latency_ms=latency_ms, costs=found, text_tokens=text.text_tokens, encodes_whole=whole)


def _check_length(loaded: load.Loaded, text: Prompt, total: int, planned: Plan, longest: int) -> None:
    cells = planned.grid.regions * planned.grid.region_cells
    whole = text.text_tokens + min(total, cells) + longest
    if whole > loaded.longest:
        why = f"question, picture and answer may take {whole} tokens, the model takes {loaded.longest}"
        raise BadInput("writing", "the prompt", why, "Ask a shorter question, or give fewer --tokens")


# ---------------------------------------------------------------- the picture's tokens


def _looked(
    loaded: load.Loaded,
    text: Prompt,
    frame: Frame,
    planned: Plan,
    allowed: Limits,
    route: Route,
    clock: _Clock,
) -> tuple[Cells, Visual, int, float | None]:
    """Cells, their tokens, how many tokens the encoder computed for them, and the predicted bound."""
    grid, model, rules = planned.grid, loaded.model, loaded.rules
    rows, cols = grid.finest
    side = model.model.visual.num_grid_per_side
    with clock.stage("halve"):
        levels = encode.pyramid(frame, grid.levels)
    computed, whole = 0, None
    if route == "after":
        with clock.stage("encode"):
            finest = positions.all_cells(rows, cols, grid.levels - 1)
            whole = encode.encoded(model, encode.gather(levels, finest, rules, side))
            computed += len(finest)
    if grid.levels == 1:
        cells = positions.all_cells(rows, cols, 0)
        predicted = allowed.bound(clock.counted_ms, grid, len(cells))
    else:
        with clock.stage("relevance"):
            maps = [relevance.propositional(frame, rows, cols)]
            if whole is None:
                coarse = positions.all_cells(grid.rows, grid.cols, 0)
                seen = encode.encoded(model, encode.gather(levels, coarse, rules, side))
                computed += len(coarse)
                asked = relevance.participatory(model, seen, text.question, grid.rows, grid.cols)
                maps.append(relevance.spread(asked, rows, cols))
            else:
                maps.append(relevance.participatory(model, whole, text.question, rows, cols))
            found = relevance.mean_of(maps)
        with clock.stage("allocate"):
            total = allowed.after(clock.counted_ms, grid)
            cells = chosen(found, total, grid)
            predicted = allowed.bound(clock.counted_ms, grid, len(cells))
    if whole is not None:
        with clock.stage("pool"):
            return cells, reduce.pooled(whole, cells, rows, cols, grid.levels), computed, predicted
    with clock.stage("encode"):
        visual = encode.encoded(model, encode.gather(levels, cells, rules, side))
    return cells, visual, computed + len(cells), predicted


def _prompt_of(loaded: load.Loaded, text: Prompt, cells: Cells, grid: Grid) -> tuple[Any, Any]:
    import torch

    image = loaded.model.config.image_token_id
    ids = torch.tensor([[*text.before, *[image] * len(cells), *text.after]])
    centres = positions.token_centres(cells, grid.levels)
    places = positions.prompt_positions(len(text.before), centres, *grid.finest, len(text.after))
    return ids, tensor(places)


def _warm_up(loaded: load.Loaded, text: Prompt, grid: Grid) -> None:
    """One pass over an empty picture's regions: the first call of everything is slower than all others."""
    cells = positions.all_cells(grid.rows, grid.cols, 0)
    side, token = loaded.model.model.visual.num_grid_per_side, loaded.rules.token_pixels
    empty = np.zeros((grid.rows * token, grid.cols * token, 3), np.float32)
    visual = encode.encoded(loaded.model, encode.gather([empty], cells, loaded.rules, side))
    one_level = Grid(rows=grid.rows, cols=grid.cols, levels=1)
    ids, places = _prompt_of(loaded, text, cells, one_level)
    prefill(loaded.model, ids, visual, places)


# ---------------------------------------------------------------- the answer


def _rest(loaded: load.Loaded, first: int, kept: Any, places: Any, longest: int) -> list[int]:
    """The most likely token at each step until one ends the answer, or ``longest`` are there."""
    import torch

    answer, at = [first], places[..., -1:]
    with torch.inference_mode():
        while answer[-1] not in loaded.ends and len(answer) < longest:
            interrupt.check()
            at = at + 1
            output = loaded.model(
                input_ids=torch.tensor([[answer[-1]]], device=loaded.model.device),
                position_ids=at.to(loaded.model.device),
                past_key_values=kept,
                use_cache=True,
                logits_to_keep=1,
            )
            kept = output.past_key_values
            answer.append(int(output.logits[0, -1].argmax()))
    return answer
