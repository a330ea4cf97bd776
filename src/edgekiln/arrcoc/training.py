"""Staged training of scorer and reader on generated scenes, on a CPU, with fixed seeds.

1. Both networks over pixels, on crops around glyphs: the encoder names the digit, the scorer's features the
   colour of each place.
2. The scorer, on boxes: participatory to the evidence of each question, perspectival to all glyphs, the
   balanced map to the evidence again.
3. The reader, on true windows with relevance made from the boxes, blurred, weakened, with false peaks.
4. Both together: the reader sees what the trained scorer allocates; the scorer keeps its own losses.

Trained jointly from scratch the same networks stay at chance: an allocation that is wrong teaches nothing.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgekiln.arrcoc import crops, views
from edgekiln.arrcoc.information import information
from edgekiln.arrcoc.reader import Reader
from edgekiln.arrcoc.rewording import reworded
from edgekiln.arrcoc.scenes.colours import COLOURS
from edgekiln.arrcoc.scenes.generate import Scene, questions_about, relevance_target, scene
from edgekiln.arrcoc.scenes.questions import Question
from edgekiln.arrcoc.scorers import Scorer, mixed
from edgekiln.arrcoc.texture import texture
from edgekiln.arrcoc.words import LENGTH, TOKENS, tokens
from edgekiln.records import Record

GRID = 28
TEXTURE = 224
LEVEL_OF = {7: 0.0, 14: 1.0, 28: 2.0}
"""Level of detail of a uniform grid by its side; others are -1."""
TOKENS_EACH, BLOCKS_EACH = 12, 8
EASY = 0.4
"""Share of the crops that come first and at full density: with others from the start one of two seeds had
learned no digit when the crops were over."""
Batch: TypeAlias = dict[str, Tensor]
Tell: TypeAlias = Callable[[str], None]


class Course(Record, frozen=True, kw_only=True):
    """How much of what: scenes a stage sees and its batch size; ``kinds`` of questions in turn."""

    crop: int = 7200
    score: int = 9600
    read: int = 2400
    joint: int = 1600
    crop_batch: int = 24
    score_batch: int = 16
    batch: int = 8
    rate: float = 3e-3
    kinds: tuple[str, ...] = ("colour", "colour", "place", "count")
    questions: int = 3
    workers: int = 1
    threads: int = 2


class Crops(torch.utils.data.Dataset[dict[str, NDArray[Any]]]):
    """Scene i of a split as crops for the encoder (``TOKENS_EACH``) and for the scorer (``BLOCKS_EACH``)."""

    def __init__(self, split: str, seed: int, count: int, start: int = 0) -> None:
        self.split, self.seed, self.count, self.start = split, seed, count, start

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, NDArray[Any]]:
        made, _ = scene(self.split, self.start + number, self.seed, ("colour",))
        random = np.random.default_rng([self.seed, self.start + number, 1])
        densities = crops.FULL if number < self.count * EASY else crops.DENSITIES
        seen, digits = crops.tokens(made, TOKENS_EACH, random, densities)
        array = texture(made.picture, (TEXTURE, TEXTURE))
        glyphs, colours, _ = glyphs_of(made)
        corners = crops.corners(made, BLOCKS_EACH, GRID, random)

        def blocks(grid: NDArray[Any], size: int) -> NDArray[Any]:
            side = crops.BLOCK * size
            return np.stack([grid[..., y * size :, x * size :][..., :side, :side] for y, x in corners])

        return {
            "tokens": seen,
            "digits": digits,
            "texture": blocks(array, TEXTURE // GRID),
            "colours": blocks(colours, 1),
            "glyphs": blocks(glyphs, 1),
        }


class Scenes(torch.utils.data.Dataset[dict[str, NDArray[Any]]]):
    """Scene i of a split with ``questions`` questions, as arrays."""

    def __init__(self, split: str, seed: int, count: int, course: Course, start: int = 0) -> None:
        self.split, self.seed, self.count, self.start = split, seed, count, start
        self.kinds, self.questions = course.kinds, course.questions

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, NDArray[Any]]:
        made, own = scene(self.split, self.start + number, self.seed, self.kinds)
        random = np.random.default_rng([self.seed, self.start + number])
        others = [q for q in questions_about(made, _beside(own.kind)) if q.topic != own.topic]
        asked = [own, *(others[i] for i in random.permutation(len(others))[: self.questions - 1])]
        while len(asked) < self.questions:
            asked.append(own)
        array = texture(made.picture, (TEXTURE, TEXTURE))
        words = [tokens(reworded(q.text, random) if self.split == "train" else q.text) for q in asked]
        glyphs, colours, digits = glyphs_of(made)
        return {
            "picture": made.picture.transpose(2, 0, 1).copy(),
            "texture": array,
            "information": information(array, GRID, GRID),
            "glyphs": glyphs,
            "colours": colours,
            "digits": digits,
            "ids": np.stack([w[0] for w in words]),
            "mask": np.stack([w[1] for w in words]).astype(np.float32),
            "target": np.stack([relevance_target(made, q, (GRID, GRID)) for q in asked]),
            "answer": np.array([q.answer for q in asked]),
            "counting": np.array([q.kind == "count" for q in asked]),
        }


def _beside(kind: str) -> tuple[str, ...]:
    return ("count",) if kind == "count" else ("colour", "place")


def batches(
    of: torch.utils.data.Dataset[dict[str, NDArray[Any]]], size: int, workers: int
) -> Iterator[Batch]:
    """Batches in order, made by ``workers`` processes."""
    yield from torch.utils.data.DataLoader(of, size, num_workers=workers, drop_last=True)


def crop_loss(scorer: Scorer, reader: Reader, batch: Batch) -> Tensor:
    """Of naming digits from tokens, colours from features, and of telling glyphs from what is none."""
    tokens = reader.encoder(batch["tokens"].flatten(0, 1).float().div(255))[:, 0]
    digits = functional.cross_entropy(reader.digit(tokens), batch["digits"].flatten())
    features = scorer.features(batch["texture"].flatten(0, 1))
    colours, glyphs = batch["colours"].flatten(0, 1), batch["glyphs"].flatten(0, 1)
    named = functional.cross_entropy(scorer.hue(features), colours, ignore_index=NONE)
    return digits + named + 0.1 * _cross_entropy(scorer.perspectival(features), glyphs)


def score_loss(scorer: Scorer, batch: Batch) -> tuple[Tensor, Tensor]:
    """The scorer's loss, and the balanced relevance (B * Q, R, C)."""
    features = scorer.features(batch["texture"])
    salient = scorer.perspectival(features)
    asked_of_each = batch["ids"].shape[1]
    many = features.repeat_interleave(asked_of_each, 0)
    ids, mask = batch["ids"].flatten(0, 1), batch["mask"].flatten(0, 1)
    words = scorer.words(ids, mask)
    asked = scorer.participatory(many, words, mask)
    weights = scorer.balance(words, mask)
    maps = torch.stack(
        [
            batch["information"].repeat_interleave(asked_of_each, 0),
            salient.sigmoid().repeat_interleave(asked_of_each, 0),
            asked.sigmoid(),
        ],
        1,
    )
    relevance = mixed(maps, weights)
    target = batch["target"].flatten(0, 1)
    hard = batch["glyphs"].repeat_interleave(asked_of_each, 0)
    loss = _cross_entropy(asked, target, HARD * hard) + 0.3 * _cross_entropy(salient, batch["glyphs"])
    ranked = _ranking(asked, target) + 0.3 * _ranking(relevance.clamp(min=1e-5).log(), target)
    named = functional.cross_entropy(scorer.hue(features), batch["colours"], ignore_index=NONE)
    counted = _counting(relevance, target, batch["counting"].flatten())
    return (
        loss + 0.5 * _weighted(relevance, target) + 0.5 * named + RANKED * ranked + COUNTED * counted,
        relevance,
    )


POSITIVE = 12.0
"""Weight of a relevant place: about one in five hundred is."""


HARD = 4.0
"""Weight of a place with a glyph that was not asked for: what has to be told from the one that was."""
RANKED = 0.5
"""Weight of a place's rank: which glyph is leftmost is no property of its own place alone."""
COUNTED = 0.1
"""Weight of the relevance's sum being the number of glyphs that are counted."""
NONE = -1
"""Where no glyph is."""


def glyphs_of(made: Scene) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Where glyphs are, as ``relevance_target`` has it; and the number of the colour and the digit of the
    glyph that has most of a cell, ``NONE`` where none has a fifth of itself there. All (28, 28)."""
    shares = np.zeros((len(made.glyphs), GRID, GRID), np.float32)
    for index, glyph in enumerate(made.glyphs):
        one = Question(text="", kind="colour", topic="", answer=glyph.digit, evidence=(index,))
        shares[index] = relevance_target(made, one, (GRID, GRID))
    most, empty = shares.argmax(0), shares.max(0) < 0.2
    names = list(COLOURS)
    colours = np.array([names.index(g.colour) for g in made.glyphs])[most]
    digits = np.array([g.digit for g in made.glyphs])[most]
    where = np.minimum(shares.sum(0), np.float32(1))
    return where, np.where(empty, NONE, colours), np.where(empty, NONE, digits)


def _cross_entropy(logits: Tensor, target: Tensor, more: Tensor | float = 0.0) -> Tensor:
    weight = 1 + POSITIVE * target + more
    return functional.binary_cross_entropy_with_logits(logits, target, weight) * 30


def _ranking(scores: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the places by their scores to the share of the target that each has (ListNet, Cao et
    al. 2007), over the questions that have a target."""
    wanted = target.flatten(1)
    total = wanted.sum(1, keepdim=True)
    lost = -(wanted / total.clamp(min=1e-6) * scores.flatten(1).log_softmax(1)).sum(1)
    found: Tensor = lost.sum() / (total > 0).sum().clamp(min=1)
    return found


def _counting(relevance: Tensor, target: Tensor, counting: Tensor) -> Tensor:
    """How far the sums are from one another where the question is one that counts; 0 where none is."""
    if not bool(counting.any()):
        return torch.zeros(())
    return functional.smooth_l1_loss(relevance.sum((1, 2))[counting], target.sum((1, 2))[counting])


def _weighted(value: Tensor, target: Tensor) -> Tensor:
    value = value.clamp(1e-4, 1 - 1e-4)
    return functional.binary_cross_entropy(value, target, 1 + POSITIVE * target) * 30


def answer(
    reader: Reader, batch: Batch, relevance: Tensor, count: int | None, side: int | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (B * Q, 10) with the coarsest level and ``count`` windows, or uniform at ``side`` tokens; and
    the loss of naming the digits that the tokens of the finest level lie on, 0 where there are none."""
    asked = batch["ids"].shape[1]
    pictures = batch["picture"].float().div(255).repeat_interleave(asked, 0)
    digits = batch["digits"].repeat_interleave(asked, 0)
    full = views.with_relevance(pictures, relevance)
    named = torch.zeros(())
    if side is not None:
        tokens = reader.encoder(views.uniform(full, side))
        positions = views.uniform_positions(relevance, side, LEVEL_OF.get(side, -1.0))
        if side == GRID:
            named = _naming(reader, tokens, digits.flatten(1))
    else:
        assert count is not None
        tokens = reader.encoder(views.uniform(full, 7))
        positions = views.uniform_positions(relevance, 7, 0.0)
        if count:
            cells = views.cells_by_relevance(relevance, count)
            fine = reader.encoder(views.windows(full, cells)).reshape(len(full), count * 16, -1)
            named = _naming(reader, fine, views.in_windows(digits, cells))
            tokens = torch.cat([tokens, fine], 1)
            positions = torch.cat([positions, views.window_positions(relevance, cells)], 1)
    held = torch.ones(tokens.shape[:2])
    ids, mask = batch["ids"].flatten(0, 1), batch["mask"].flatten(0, 1)
    return reader(tokens, positions, held, relevance, ids, mask), named


def _naming(reader: Reader, tokens: Tensor, digits: Tensor) -> Tensor:
    if not bool((digits != NONE).any()):
        return torch.zeros(())
    return functional.cross_entropy(reader.digit(tokens).transpose(1, 2), digits, ignore_index=NONE)


def disturbed(target: Tensor, counting: Tensor, random: torch.Generator) -> Tensor:
    """The true relevance (N, R, C) as a scorer might have it: blurred, weaker, with false peaks and noise;
    where it is for ``counting`` (N,) nearly as it is, since a blur or a false peak changes the number."""
    blurred = functional.avg_pool2d(target[:, None], 3, 1, 1)[:, 0] * 2
    keep = torch.rand(len(target), 1, 1, generator=random)
    base = torch.maximum(target * (0.5 + 0.5 * keep), blurred * keep).clamp(0, 1)
    noise = torch.rand(target.shape, generator=random)
    false = (noise > 0.997) * torch.rand(target.shape, generator=random) * 0.8
    read = torch.maximum(base, false + 0.03 * noise).clamp(0, 1)
    counted = (target * (0.85 + 0.3 * keep) + 0.001 * noise).clamp(0, 1)
    return torch.where(counting[:, None, None], counted, read)


def train(seed: int, course: Course, tell: Tell) -> tuple[Scorer, Reader]:
    """Scorer and reader after the four stages.

    The same seed and course give the same scenes, order and first weights; sums of floats may round otherwise
    from run to run, so that weights drift apart slowly: equal to about 1e-4 after a few steps."""
    torch.manual_seed(seed)
    torch.set_num_threads(course.threads)
    scorer, reader = Scorer(TOKENS, LENGTH), Reader(TOKENS, LENGTH)
    for module in (scorer, reader):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast
    random = torch.Generator().manual_seed(seed)
    start = 0

    def stage(name: str, loss_of: Callable[[Batch], Tensor], count: int, size: int, rate: float) -> None:
        nonlocal start
        of = Crops if name == "crops" else functools.partial(Scenes, course=course)
        given = batches(of("train", seed, count, start=start), size, course.workers)
        apart: dict[str, list[nn.Module]] = {"score": [scorer], "read": [reader]}
        trained = apart.get(name, [scorer, reader])
        descend(name, trained, loss_of, given, count // size, rate, tell)
        start += count

    def reading(batch: Batch) -> Tensor:
        target, counting = batch["target"].flatten(0, 1), batch["counting"].flatten()
        relevance = disturbed(target, counting, random)
        return read_loss(reader, batch, relevance, random)

    def both(batch: Batch) -> Tensor:
        loss, relevance = score_loss(scorer, batch)
        return loss * 0.3 + read_loss(reader, batch, relevance.detach(), random)

    stage("crops", lambda b: crop_loss(scorer, reader, b), course.crop, course.crop_batch, course.rate)
    # Levels and windows pass through the encoder apart: statistics of each batch would part them.
    reader.encoder.eval()
    stage("score", lambda b: score_loss(scorer, b)[0], course.score, course.score_batch, course.rate)
    stage("read", reading, course.read, course.batch, course.rate / 3)
    stage("joint", both, course.joint, course.batch, course.rate / 6)
    return scorer.eval(), reader.eval()


def read_loss(reader: Reader, batch: Batch, relevance: Tensor, random: torch.Generator) -> Tensor:
    """The reader's loss at windows mostly, now and then at a uniform density: one reader for all that the
    evaluation compares. To name the digit under each fine token is learned beside the answer."""
    draw = float(torch.rand((), generator=random))
    count, side = None, None
    if draw < 0.10:
        side = (7, 9, 14, 14)[int(torch.randint(4, (), generator=random))]
    elif draw < 0.13:
        side = GRID
    else:
        count = (1, 2, 2, 4)[int(torch.randint(4, (), generator=random))]
    logits, named = answer(reader, batch, relevance, count, side)
    return functional.cross_entropy(logits, batch["answer"].flatten()) + named


def descend(
    name: str,
    modules: list[nn.Module],
    loss_of: Callable[[Batch], Tensor],
    given: Iterator[Batch],
    steps: int,
    rate: float,
    tell: Tell,
) -> None:
    """Trains ``modules`` over ``given``, which has ``steps`` batches: AdamW, the rate ``rate`` at most."""
    if not steps:
        return
    parameters = [p for m in modules for p in m.parameters()]
    optimiser = torch.optim.AdamW(parameters, rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.15)
    began, recent = time.monotonic(), 0.0
    for step, batch in enumerate(given):
        loss = loss_of(batch)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for module in modules:
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        recent += (loss.item() - recent) * (0.05 if step else 1)
        if step % 50 == 49 or step == steps - 1:
            tell(f"{name} {step + 1}/{steps}: loss {recent:.3f}, {time.monotonic() - began:.0f} s")
