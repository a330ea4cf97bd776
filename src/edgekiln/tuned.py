"""The station that tunes the host's best artifacts: which ones, for how long, kept in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from edgekiln.cache import step
from edgekiln.choose import choose
from edgekiln.engines import Arrays
from edgekiln.prove.environment import fingerprint
from edgekiln.prove.timing import Contender
from edgekiln.prove.tuning import Found, tune, with_options
from edgekiln.records import Budget, Proof, Trial
from edgekiln.rows import Made, Timings, proofs_of

MOST = 3
"""Artifacts that are tuned: one that is far behind does not overtake by its options."""
WITHIN = 1.3
"""How far behind the fastest that meets the budget an artifact may be and still be tuned."""


def tuned(
    made: Sequence[Made],
    timings: Timings,
    budget: Budget,
    sample: Arrays,
    threads: int,
    seconds: float,
    store: Path,
) -> tuple[list[Made], tuple[Trial, ...]]:
    """``made`` with the options that paid on this machine, and all that was tried.

    Each search samples for ``seconds`` at most; loading its processes comes on top.

    Only artifacts of this machine that meet ``budget`` by the first timing are tuned, the best ``MOST``.
    """
    best = list(_best(made, timings, budget)) if seconds > 0 else []
    trials: list[Trial] = []
    done = list(made)
    for m in best:
        found = _found(m, sample, threads, seconds, store)
        trials += found.trials
        place = next(i for i, other in enumerate(done) if other is m)
        done[place] = replace(m, artifact=with_options(m.artifact, found.options))
    return done, tuple(trials)


def _best(made: Sequence[Made], timings: Timings, budget: Budget) -> Iterator[Made]:
    """The host's artifacts in the order in which they would be chosen."""
    here = [m for m in made if m.device.name == "host" and m.artifact.engine == m.artifact.proof_engine]
    proofs, _ = proofs_of(here, timings, fingerprint())
    by_id = {m.artifact.id: m for m in here}
    fastest: float | None = None
    for _ in range(MOST):
        chosen = choose("host", proofs, budget).artifact_id
        latency = _latency(proofs, chosen)
        if chosen is None or latency is None:
            return
        fastest = latency if fastest is None else fastest
        if latency <= WITHIN * fastest:
            yield by_id[chosen]
        proofs = [p for p in proofs if p.artifact.id != chosen]


def _latency(proofs: Sequence[Proof], name: str | None) -> float | None:
    return next((p.value("latency_p50_ms") for p in proofs if p.artifact.id == name), None)


def _found(m: Made, sample: Arrays, threads: int, seconds: float, store: Path) -> Found:
    contender = Contender(
        id=m.artifact.id, folder=str(m.folder), artifact=m.artifact, engine=m.artifact.engine
    )

    def produce(into: Path) -> Found:
        return tune(contender, sample, threads, seconds)

    key = [m.artifact.id, m.artifact.files, m.artifact.options, threads, seconds, fingerprint()]
    _, found, _ = step(store, "tuning", key, Found, produce)
    return found
