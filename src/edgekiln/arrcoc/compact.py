"""The compact system as it runs on a device: one folder of ONNX files, NumPy and ONNX Runtime.

``scorer.onnx`` gives the relevance from the texture array and the question; ``look_<tokens>.onnx``, one for
each bucket, reads the picture at that many tokens. Shapes are static, so that each file is an artifact that
``edgekiln build`` takes to any target.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekiln.arrcoc.allocate import allocate
from edgekiln.arrcoc.channels import COLOURED
from edgekiln.arrcoc.information import information
from edgekiln.arrcoc.mixed import coarsest, resized
from edgekiln.arrcoc.quadtree import COMPACT, Allocation
from edgekiln.arrcoc.texture import TextureBuffer
from edgekiln.arrcoc.words import tokens as numbers
from edgekiln.errors import BadInput
from edgekiln.records import Record

VERSION = 2
"""Of the folder's form; raised where a file's inputs change their meaning."""
TEXTURE = 224
MARGIN = 12
"""Pixels around a token's square that its vector sees."""
SIDE = 64 + 2 * MARGIN
PEAK = 0.5
"""How much the greatest relevance in a region counts against the mean: a glyph is small."""
DOING = "opening the compact system in"
Array = NDArray[np.float32]


class Manifest(Record, frozen=True, kw_only=True):
    """``compact.json``: what the folder holds, and where its weights come from."""

    version: int
    buckets: tuple[int, ...]
    trained_by: str
    seed: int


class Answered(Record, frozen=True, kw_only=True):
    """``chances`` of the ten answers; ``stages_ms`` what each stage took, in order."""

    answer: int
    chances: tuple[float, ...]
    tokens: int
    stages_ms: dict[str, float]


class Seen(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """An answer with what led to it: relevance (28, 28), the three maps (3, 28, 28), their weights (3,) and
    the allocation."""

    answered: Answered
    relevance: Array
    maps: Array
    weights: Array
    allocation: Allocation


class Compact:
    """An opened folder. ``ask`` may be called from one thread at a time."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self._folder, self._threads = folder, threads
        self.manifest = _manifest(folder)
        self._scorer = self._open("scorer.onnx")
        self._looks = {n: self._open(f"look_{n}.onnx") for n in self.manifest.buckets}
        self._texture = TextureBuffer((TEXTURE, TEXTURE))

    def _open(self, name: str) -> Any:
        import onnxruntime

        path = self._folder / name
        if not path.is_file():
            raise BadInput(DOING, self._folder, f"'{name}' is missing", "Export the checkpoint again")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        # Six sessions take turns: a pool that spins after its own turn takes the next one's cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def ask(self, picture: NDArray[np.uint8], question: str, total: int = 81) -> Seen:
        """The answer to ``question`` about ``picture`` (H, W, 3) with at most ``total`` tokens.

        Raises BadInput for an empty or enormous question, BudgetTooSmall (naming the least) where ``total``
        does not cover the picture at the coarsest level.
        """
        times = [time.perf_counter()]
        words = question_inputs(question)
        canvas = resized(picture, COMPACT)
        relevance, maps, weights = self._score(canvas, words, times)
        bucket = self.bucket(total)
        allocation = allocate(np.clip(relevance[0], 0, 1), bucket, mode="windows", peak=PEAK)
        inputs = look_inputs(canvas, relevance[0], allocation)
        times.append(time.perf_counter())
        logits = self._looks[bucket].run(None, inputs | words)[0][0]
        times.append(time.perf_counter())
        chances = np.exp(logits - logits.max())
        chances /= chances.sum()
        names = ("texture", "information", "scorers", "allocation", "reader")
        spent = {n: (b - a) * 1e3 for n, a, b in zip(names, times, times[1:], strict=False)}
        answered = Answered(
            answer=int(logits.argmax()),
            chances=tuple(map(float, chances)),
            tokens=len(allocation),
            stages_ms=spent,
        )
        return Seen(
            answered=answered, relevance=relevance[0], maps=maps[0], weights=weights[0], allocation=allocation
        )

    def relevance(self, picture: NDArray[np.uint8], question: str) -> tuple[Array, Array, Array]:
        """What the scorers say alone: relevance (28, 28), the three maps (3, 28, 28) and their weights (3,).

        Raises BadInput as ``ask`` does.
        """
        words = question_inputs(question)
        relevance, maps, weights = self._score(resized(picture, COMPACT), words, [])
        return relevance[0], maps[0], weights[0]

    def _score(
        self, canvas: NDArray[np.uint8], words: dict[str, Any], times: list[float]
    ) -> tuple[Array, Array, Array]:
        """The scorer's outputs with their batch of one; ``times`` gets the end of each stage."""
        array = self._texture.fill(canvas)
        times.append(time.perf_counter())
        given = {
            "coloured": array[None, :COLOURED],
            "information": information(array, 28, 28)[None],
            **words,
        }
        times.append(time.perf_counter())
        relevance, maps, weights = self._scorer.run(None, given)
        times.append(time.perf_counter())
        return relevance, maps, weights

    def bucket(self, total: int) -> int:
        """The largest bucket of the folder within ``total``; the allocation refuses what covers nothing."""
        fits = [b for b in self.manifest.buckets if b <= total]
        if not fits:
            allocate(np.zeros(COMPACT.finest, np.float32), total)  # raises with the least that would do
            raise BadInput(
                "asking with",
                f"{total} tokens",
                "the folder holds no such bucket",
                f"Give at least {min(self.manifest.buckets)}",
            )
        return max(fits)


def question_inputs(question: str) -> dict[str, Any]:
    """What the files take of a question: ids int64 (1, 16) and mask float32 (1, 16). Raises BadInput for one
    without words, and for an enormous one."""
    ids, mask = numbers(question)
    return {"ids": ids[None], "mask": mask[None].astype(np.float32)}


def look_inputs(canvas: NDArray[np.uint8], relevance: Array, allocation: Allocation) -> dict[str, Any]:
    """What ``look_<tokens>.onnx`` takes but the words: coarse uint8 (1, 4, 136, 136), windows uint8
    (K, 4, 88, 88), positions float32 (1, N, 4) and relevance (1, 28, 28)."""
    level = np.rint(np.clip(relevance, 0, 1) * 255).astype(np.uint8)
    cells = regions(allocation)
    windows = np.empty((len(cells), 4, SIDE, SIDE), np.uint8)
    planes = canvas.transpose(2, 0, 1)
    for window, (row, column) in zip(windows, cells, strict=True):
        _cut(planes, level, 16, row * 64 - MARGIN, column * 64 - MARGIN, window)
    coarse = np.empty((1, 4, 136, 136), np.uint8)
    _cut(coarsest(canvas, COMPACT), level, 4, -MARGIN, -MARGIN, coarse[0])
    inputs = {
        "coarse": coarse,
        "positions": positions(relevance, cells)[None],
        "relevance": relevance[None],
    }
    return inputs | ({"windows": windows} if cells else {})


def _cut(
    picture: NDArray[np.uint8],
    level: NDArray[np.uint8],
    size: int,
    top: int,
    left: int,
    into: NDArray[np.uint8],
) -> None:
    """The square of ``into`` (4, n, n) from ``picture`` (3, H, W) and ``level``, of which a cell covers
    ``size`` pixels. Beyond the edge the edge's pixels are repeated."""
    _, height, width = picture.shape
    n = into.shape[1]
    y0, y1 = max(top, 0), min(top + n, height)
    x0, x1 = max(left, 0), min(left + n, width)
    inside = into[:, y0 - top : y1 - top, x0 - left : x1 - left]
    inside[:3] = picture[:, y0:y1, x0:x1]
    row, column = y0 // size, x0 // size
    large = level[row : -(-y1 // size), column : -(-x1 // size)].repeat(size, axis=1).repeat(size, axis=0)
    inside[3] = large[y0 - row * size : y1 - row * size, x0 - column * size : x1 - column * size]
    into[:, : y0 - top] = into[:, y0 - top, None]
    into[:, y1 - top :] = into[:, y1 - top - 1, None]
    into[:, :, : x0 - left] = into[:, :, x0 - left, None]
    into[:, :, x1 - left :] = into[:, :, x1 - left - 1, None]


def regions(allocation: Allocation) -> list[tuple[int, int]]:
    """Row and column of the regions that are refined, in order."""
    fine = allocation.tokens[allocation.tokens[:, 0] > 0]
    refined = np.zeros((allocation.grid.rows, allocation.grid.cols), bool)
    refined[fine[:, 1] >> fine[:, 0], fine[:, 2] >> fine[:, 0]] = True
    return [(int(y), int(x)) for y, x in np.argwhere(refined)]


def positions(relevance: Array, cells: Sequence[tuple[int, int]]) -> Array:
    """Where each token lies, (49 + 16 K, 4): y and x in 0..1, level, greatest relevance; the coarsest level
    row by row, then window after window row by row."""
    found = np.empty((49 + 16 * len(cells), 4), np.float32)
    found[:49, :3] = _COARSE
    found[:49, 3] = relevance.reshape(7, 4, 7, 4).max((1, 3)).ravel()
    for number, (row, column) in enumerate(cells):
        window = found[49 + 16 * number : 65 + 16 * number].reshape(4, 4, 4)
        window[..., 0] = _FINE[row * 4 : row * 4 + 4, None]
        window[..., 1] = _FINE[column * 4 : column * 4 + 4]
        window[..., 3] = relevance[row * 4 : row * 4 + 4, column * 4 : column * 4 + 4]
    found[49:, 2] = 2
    return found


_FINE = ((np.arange(28) + 0.5) / 28).astype(np.float32)
_COARSE = np.zeros((49, 3), np.float32)
_COARSE[:, 0] = ((np.arange(7) + 0.5) / 7).repeat(7)
_COARSE[:, 1] = np.tile((np.arange(7) + 0.5) / 7, 7)


def _manifest(folder: Path) -> Manifest:
    path = folder / "compact.json"
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError as error:
        raise BadInput(
            DOING, folder, "there is no compact.json", "Give a folder that was exported"
        ) from error
    except (msgspec.MsgspecError, OSError) as error:
        raise BadInput(DOING, path, str(error), "Export the checkpoint again") from error
    if found.version != VERSION:
        why = f"it has version {found.version}, this program reads {VERSION}"
        raise BadInput(DOING, path, why, "Export the checkpoint again with this program")
    return found
