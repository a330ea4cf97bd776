"""One question about one picture, answered by the compact system within a latency.

What each bucket of tokens costs on this machine is measured once, whole calls with everything in them, and
kept: so the latency left buys the bucket, and no threshold is fixed anywhere.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekiln import cache, files
from edgekiln.arrcoc import budget, checkpoint
from edgekiln.arrcoc import picture as pictures
from edgekiln.arrcoc.budget import LatencyModel
from edgekiln.arrcoc.compact import TEXTURE, VERSION, Compact, Manifest, Seen, regions
from edgekiln.arrcoc.mixed import overlay, resized
from edgekiln.arrcoc.quadtree import COMPACT
from edgekiln.errors import BadInput
from edgekiln.progress import Progress, Silent
from edgekiln.prove.environment import cpu_model, version_of
from edgekiln.records import Record

SAMPLES = 40
QUESTION = "Which digit is the red one?"
MANIFEST = "compact.json"


class Reply(Record, frozen=True, kw_only=True):
    """The answer, how sure the reader is of it (0..1), and what it took.

    ``took_ms`` runs from the decoded picture to the answer and is the sum of ``stages_ms``. ``predicted_ms``
    is the upper bound that the bucket was chosen by, None where the tokens were given; ``met`` compares
    ``took_ms`` with ``latency_ms``. ``windows`` are row and column of the regions that were read closely, of
    7x7. ``notes`` say what made the machine unfit when costs were measured.
    """

    answer: int
    sure: float
    tokens: int
    windows: tuple[tuple[int, int], ...]
    weights: dict[str, float]
    stages_ms: dict[str, float]
    took_ms: float
    latency_ms: float | None
    predicted_ms: float | None
    met: bool | None
    trained_by: str
    notes: tuple[str, ...] = ()


def is_compact(folder: Path) -> bool:
    """Whether a folder holds an exported compact system, and no other model."""
    return (folder / MANIFEST).is_file()


def ask(
    folder: Path | None,
    image: Path,
    question: str,
    *,
    latency_ms: float | None = None,
    tokens: int | None = None,
    threads: int = 1,
    drawing: Path | None = None,
    root: Path | None = None,
    progress: Progress | None = None,
) -> Reply:
    """Answer ``question`` about ``image`` with the compact system in ``folder``, or with the one that comes
    with this program (exported at first use; that takes the extra ``torch``).

    ``tokens`` is a hard total; without it the total is the largest bucket that ``latency_ms`` leaves room
    for, or the largest there is. ``drawing`` gets a PNG of picture, relevance and what was read closely.
    ``root`` holds what is kept (default: the user's cache folder).

    Raises BadInput for a question, picture or folder of no use, BudgetTooSmall or LatencyTooShort where the
    coarsest view does not fit.
    """
    if latency_ms is not None and tokens is not None:
        why = "the tokens are what the latency would choose"
        raise BadInput("asking with", "--latency-ms and --tokens", why, "Give one of them")
    shown = progress or Silent()
    pixels = pictures.load(image)
    kept = root or cache.default_root()
    where = folder if folder is not None else _exported(kept, shown)
    system = Compact(where, threads)
    system.relevance(pixels, question)  # refuses a question of no use before anything is measured
    predicted: float | None = None
    notes: tuple[str, ...] = ()
    total = max(system.manifest.buckets) if tokens is None else tokens
    if latency_ms is not None:
        model = _costs(system, where, threads, kept, shown)
        choice = budget.bucket_for(latency_ms, model, system.manifest.buckets, elsewhere=True)
        total, predicted = choice.bucket, choice.bound_ms
        notes = choice.notes + tuple(f"when costs were measured: {u}" for u in model.origin.unfit)
    system.ask(pixels, question, total)  # the first call of an engine is slower than all others
    began = time.perf_counter()
    seen = system.ask(pixels, question, total)
    took = (time.perf_counter() - began) * 1e3
    if drawing is not None:
        files.write_bytes(drawing, _png(overlay(resized(pixels, COMPACT), seen.allocation, seen.relevance)))
    return _reply(seen, system.manifest, took, latency_ms, predicted, notes)


def _reply(
    seen: Seen,
    manifest: Manifest,
    took: float,
    latency_ms: float | None,
    predicted: float | None,
    notes: tuple[str, ...],
) -> Reply:
    names = ("propositional", "perspectival", "participatory")
    return Reply(
        answer=seen.answered.answer,
        sure=seen.answered.chances[seen.answered.answer],
        tokens=seen.answered.tokens,
        windows=tuple(regions(seen.allocation)),
        weights={n: float(w) for n, w in zip(names, seen.weights, strict=True)},
        stages_ms=seen.answered.stages_ms,
        took_ms=took,
        latency_ms=latency_ms,
        predicted_ms=predicted,
        met=None if latency_ms is None else took <= latency_ms,
        trained_by=manifest.trained_by,
        notes=notes,
    )


def _exported(root: Path, progress: Progress) -> Path:
    """The folder of the checkpoint that comes with this program, exported once."""
    digest = hashlib.sha256(checkpoint.TRAINED.read_bytes()).hexdigest()

    def produce(into: Path) -> Manifest:
        from edgekiln.arrcoc.exporting import export

        with progress.step("export the compact system (once)"):
            scorer, reader, about = checkpoint.load(checkpoint.TRAINED)
            return export(scorer, reader, into, about.command, about.seed)

    key = [digest, VERSION, version_of("torch") or ""]
    path, _, _ = cache.step(root, "arrcoc-compact", key, Manifest, produce)
    return path


def _costs(system: Compact, folder: Path, threads: int, root: Path, progress: Progress) -> LatencyModel:
    """Of whole calls at each bucket; measured at first use, then from the cache below ``root``."""
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    looks = [(folder / f"look_{n}.onnx").stat().st_size for n in system.manifest.buckets]
    key = [digest, looks, cpu_model() or "", threads, version_of("onnxruntime") or "", version_of("edgekiln")]

    def produce(_: Path) -> LatencyModel:
        progress.expect(1)
        with progress.step("measure what a token costs here (once for this system)"):
            picture = _noise()
            points = budget.measure(
                lambda n: system.ask(picture, QUESTION, n), system.manifest.buckets, samples=SAMPLES, warmup=3
            )
            return budget.fit(points, budget.origin("onnxruntime", threads), what="from picture to answer")

    _, found, _ = cache.step(root, "arrcoc-compact-costs", key, LatencyModel, produce)
    return found


def _noise() -> NDArray[np.uint8]:
    side = 2 * TEXTURE
    return np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    import io

    from PIL import Image

    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "png")
    return held.getvalue()
