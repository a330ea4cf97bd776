"""What visual tokens cost on this machine: measured once for a model, kept, and read back as a bound.

Encoder and decoder are timed apart, warm, each at a few counts of tokens, and fitted by ``arrcoc.budget``.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln import cache, interrupt
from edgekiln.arrcoc import budget
from edgekiln.arrcoc.budget import LatencyModel, Origin
from edgekiln.arrcoc.qwen.encode import Patches, encoded
from edgekiln.arrcoc.qwen.load import Loaded
from edgekiln.arrcoc.qwen.positions import (
    all_cells,
    patch_centres,
    prompt_positions,
    table_taps,
    tensor,
    token_centres,
)
from edgekiln.arrcoc.qwen.reduce import Visual, encoder_outputs
from edgekiln.progress import Progress
from edgekiln.prove.environment import cpu_model, version_of
from edgekiln.records import Record

COUNTS = (4, 16, 49, 113, 256, 576, 1024, 2048, 4096)
LEAST_COUNTS = 4
LONGEST_CALL_MS = 3_000.0
"""No larger count is measured after one that took longer: what is not measured is not predicted."""
SECONDS = 10.0
"""For the samples of encoder and decoder each; the least number of them may take longer."""
LEAST_SAMPLES, MOST_SAMPLES = 5, 20


class Costs(Record, frozen=True, kw_only=True):
    """Of one model on one machine: from tokens of mixed detail to features, and from a prompt to the first
    token of the answer."""

    encoder: LatencyModel
    decoder: LatencyModel


def costs(loaded: Loaded, most: int, text: int, root: Path, progress: Progress) -> Costs:
    """Measured at first use, then from the cache below ``root``: for up to ``most`` visual tokens, and
    ``text`` tokens of text beside them. The key is the model, the counts, the machine's processor, the
    threads, and the versions of torch and transformers."""
    import torch

    encoder, decoder = up_to(most), up_to(most + text)
    key = [
        encoder,
        decoder,
        loaded.identity,
        str(loaded.model.dtype),
        cpu_model() or "",
        torch.get_num_threads(),
        *(version_of(name) or "" for name in ("torch", "transformers")),
    ]

    def produce(_: Path) -> Costs:
        progress.expect(1)
        with progress.step("measure what a token costs here (once for this model)"):
            return measure(loaded, encoder, decoder)

    _, found, _ = cache.step(root, "arrcoc-costs", key, Costs, produce)
    return found


def up_to(tokens: int) -> tuple[int, ...]:
    """The counts of COUNTS below ``tokens``, and the next; at least LEAST_COUNTS, all where there is no
    next."""
    return COUNTS[: max(LEAST_COUNTS, bisect.bisect_left(COUNTS, tokens) + 1)]


def measure(loaded: Loaded, encoder: Sequence[int], decoder: Sequence[int]) -> Costs:
    """Time encoder and decoder at their counts of tokens, as far as LONGEST_CALL_MS goes."""
    import torch

    origin = budget.origin("torch", torch.get_num_threads())
    return Costs(
        encoder=_fitted("encoder", lambda n: _encoder_call(loaded, n), encoder, origin),
        decoder=_fitted("decoder", lambda n: _decoder_call(loaded, n), decoder, origin),
    )


def _fitted(
    what: str, make: Callable[[int], Callable[[], Any]], counts: Sequence[int], origin: Origin
) -> LatencyModel:
    """As many samples as SECONDS hold; n of them reach the percentile 100 * (1 - 1/n), P95 with 20."""
    calls: dict[int, Callable[[], Any]] = {}
    whole_ms = 0.0
    for number, count in enumerate(counts):
        call = calls[count] = make(count)
        call()
        whole_ms += (took := _milliseconds(call))
        if took > LONGEST_CALL_MS and number + 1 >= LEAST_COUNTS:
            break
    samples = max(LEAST_SAMPLES, min(MOST_SAMPLES, int(SECONDS * 1000 / whole_ms)))

    def timed(count: int) -> None:
        interrupt.check()
        calls[count]()

    points = budget.measure(timed, tuple(calls), samples=samples, warmup=0)
    return budget.fit(points, origin, percentile=100 * (1 - 1 / samples), what=what)


def _milliseconds(call: Callable[[], Any]) -> float:
    interrupt.check()
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def _encoder_call(loaded: Loaded, count: int) -> Callable[[], Any]:
    rules, visual = loaded.rules, loaded.model.model.visual
    cells = all_cells(1, count, 0)
    centres = patch_centres(cells, 1, rules.merge)
    rows, cols = rules.merge, rules.merge * count
    indices, weights = table_taps(centres, rows, cols, visual.num_grid_per_side)
    columns = 3 * rules.temporal_patch * rules.patch**2
    pixels = np.random.default_rng(0).uniform(-1, 1, (len(centres), columns)).astype(np.float32)
    patches = Patches(pixels=pixels, centres=centres, indices=indices, weights=weights, rows=rows, cols=cols)
    return lambda: encoded(loaded.model, patches)


def _decoder_call(loaded: Loaded, count: int) -> Callable[[], Any]:
    import torch

    text = loaded.model.config.text_config
    layers = len(loaded.model.model.visual.deepstack_visual_indexes)
    seen = torch.zeros(count, text.hidden_size, dtype=loaded.model.dtype)
    visual = Visual(tokens=seen, deepstack=(seen,) * layers)
    ids = torch.full((1, count), loaded.model.config.image_token_id)
    places = prompt_positions(0, token_centres(all_cells(1, count, 0), 1), 1, count, 0)
    return lambda: prefill(loaded.model, ids, visual, tensor(places))


def prefill(model: Any, ids: Any, visual: Visual, places: Any) -> Any:
    """The model's output for a whole prompt: logits of its last place (1, 1, vocabulary), and the cache.

    ``ids`` int64 (1, L) with as many image tokens as ``visual`` has, ``places`` float32 (3, 1, L)."""
    import torch

    with torch.inference_mode():
        return model(
            input_ids=ids.to(model.device),
            position_ids=places.to(model.device),
            mm_encoder_outputs=encoder_outputs(visual),
            use_cache=True,
            logits_to_keep=1,
        )
