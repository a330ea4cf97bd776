"""A plan's reader in two halves: the encoder here, what follows on a server; and the whole of it here too.

What leaves the device is what the head of the split model computed (``edgekiln split``, by the plan's
``cuts``), under the privacy rule ``features-only``. Who answers is for ``runtime.hybrid`` to decide.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekiln.arrcoc.plans.execute import Run, chosen, handed, run, started, taken
from edgekiln.arrcoc.plans.records import LAST, Part, Plan, Step
from edgekiln.errors import BadInput
from edgekiln.model.parts import Split, tail_signature
from edgekiln.runtime.hybrid.client import Client, Server
from edgekiln.runtime.hybrid.offload import Offloader, OffloadRules
from edgekiln.runtime.hybrid.privacy import FeatureHead, Privacy, open_head
from edgekiln.runtime.hybrid.remote import connect
from edgekiln.runtime.vocabulary import Answer

DOING = "answering with a server"


class Offloaded:
    """An opened plan with a server beside it; ``offloading`` makes one. One question at a time."""

    def __init__(
        self, plan: Plan, total: int, runners: Mapping[str, Run], head: FeatureHead, offloader: Offloader
    ) -> None:
        self.plan, self.total, self.runners = plan, total, runners
        self.head, self.offloader = head, offloader
        self._step, self._part = _reader(plan, total)

    def ask(self, picture: NDArray[np.uint8], question: str, deadline_ms: float) -> Answer:
        """The answer's ``logits`` (1, 10), who gave them, and how long all of it took, the scorers included.

        Raises BadInput for a question without words; what the device's own reader raised where the server
        gave no answer either.
        """
        began = time.perf_counter()
        known = started(picture, question)
        run(self.plan, self.runners, known, self.total, until=LAST)
        given = handed(self._part, taken(self._step, known))
        spent_ms = (time.perf_counter() - began) * 1e3
        found = self.offloader.answer(
            lambda: self.head(given),
            lambda: self.runners[self._part.name](given),
            max(deadline_ms - spent_ms, 1.0),
        )
        latency_ms = (time.perf_counter() - began) * 1e3
        return Answer(
            outputs=found.outputs,
            rung=found.rung,
            place=found.place,
            latency_ms=latency_ms,
            late=latency_ms > deadline_ms,
            hops=found.hops,
        )


@contextlib.contextmanager
def offloading(
    plan: Plan,
    total: int,
    runners: Mapping[str, Run],
    split: Path,
    server: Server,
    model: str,
    rules: OffloadRules | None = None,
    *,
    threads: int = 1,
) -> Iterator[Offloaded]:
    """``plan`` at ``total`` tokens with ``model`` on ``server``, the tail of the split model in ``split``.

    ``rules.mode`` is one of the plan's ``ways``. Bodies are deflated. Raises BadInput for a plan without such
    a way or cut, for a split model of another reader, and where the server's model is another; ServerFault
    where the server can't be asked.
    """
    given = rules or OffloadRules()
    part = _reader(plan, total)[1]
    known = [way.mode for way in plan.ways]
    if given.mode not in known or not any(cut.part == part.name for cut in plan.cuts):
        why = f"it has {', '.join(known) or 'no ways with a server'}, and was asked for '{given.mode}'"
        raise BadInput(DOING, f"the plan for {plan.title}", why, "Write a plan for android")
    with contextlib.closing(open_head(split, threads)) as head:
        _check_cut(plan, part, head.split, split)
        with contextlib.closing(Client(server)) as client:
            remote = connect(client, model, tail_signature(head.split), compress=True)
            privacy = Privacy(rule="features-only", head_sha256=head.split.head.sha256)
            with contextlib.closing(Offloader(remote, privacy, given)) as offloader:
                yield Offloaded(plan, total, runners, head, offloader)


def _reader(plan: Plan, total: int) -> tuple[Step, Part]:
    """The step that answers, and its part for ``total`` tokens."""
    step = next(s for s in plan.steps if s.name == LAST)
    return step, chosen(plan, step, total)


def _check_cut(plan: Plan, part: Part, split: Split, folder: Path) -> None:
    """Raises BadInput for a split model that is not of this part, cut where the plan says."""
    cut = next(c for c in plan.cuts if c.part == part.name)
    found = tuple(f.tensor for f in split.features), set(split.beside)
    tokens = split.features[0].shape[1]
    if found != (cut.at, set(cut.beside)) or tokens != part.tokens:
        why = f"it is cut at {', '.join(found[0])} with {tokens} tokens"
        cure = f"Cut it as the plan says: {cut.command}"
        raise BadInput("using the split model in", folder, why, cure)
