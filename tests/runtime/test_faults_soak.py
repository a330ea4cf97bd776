"""A hundred thousand calls through a chain whose engines keep failing: nothing grows, nobody waits."""

import itertools
import os
import signal
import time
from functools import partial

import numpy as np
import pytest

from edgekiln.errors import DeadlineMissed, NoAnswer
from edgekiln.runtime.degrade import Chain, open_candidate
from edgekiln.runtime.isolated import Isolated
from edgekiln.runtime.standing import Rules
from fakes.guarded import candidate, eventually, held, nothing_more, picture
from fakes.runtime_bundle import least

CALLS = 100_000
EVERY = 23
KILL_EVERY = 20_000
GROWTH_BYTES = 16 << 20
RULES = Rules(first_s=0.002, most_s=0.02, flaps=10**9, files_every_s=0.2)


class Failing:
    """A real engine that fails at every 23rd call, each time in another way."""

    ways = itertools.cycle(["raise", "nan", "memory"])

    def __init__(self, one):
        self._runner, self._calls = open_candidate(one), 0

    def __call__(self, inputs):
        self._calls += 1
        outputs = self._runner(inputs)
        if self._calls % EVERY:
            return outputs
        way = next(self.ways)
        if way == "raise":
            raise RuntimeError("a kernel failed")
        if way == "memory":
            raise MemoryError
        return {name: value * np.nan for name, value in outputs.items()}

    def close(self):
        self._runner.close()


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("direct", [False, True])
def test_a_hundred_thousand_calls_with_failures_leave_nothing_behind(tmp_path, direct):
    before = held()
    candidates = [candidate(tmp_path, n, graph=least((1, 3, 32, 32))) for n in ("first", "second", "third")]
    kinds = {}

    def tell(event):
        kinds[event.kind] = kinds.get(event.kind, 0) + 1

    def open_first(one):
        return Failing(one) if one.rung.id == "first" else partial(Isolated, limit_s=5.0)(one)

    rules = RULES
    chain = Chain(candidates, open=open_first, rules=rules, tell=tell, direct=direct)
    eventually(lambda: chain.answer(lambda c: picture(), 5000, "second").rung == "second")
    inputs, answers, errors, slowest = picture(), {}, 0, 0.0
    calls = CALLS // 4 if direct else CALLS - CALLS // 4
    for number in range(calls):
        if number == calls // 4:
            settled, resident = held(), resident_bytes()
        if number % KILL_EVERY == KILL_EVERY // 2 and (seat := chain._post["second"].seat) and seat.ready:
            os.kill(seat._runner.pid, signal.SIGKILL)
        began = time.monotonic()
        try:
            rung = chain.answer(lambda c: inputs, 2000).rung
            answers[rung] = answers.get(rung, 0) + 1
        except (NoAnswer, DeadlineMissed):
            errors += 1
        slowest = max(slowest, time.monotonic() - began)
    eventually(lambda: sum(held().values()) <= sum(settled.values()) + 4)
    assert resident_bytes() - resident < GROWTH_BYTES
    assert slowest < 2.0 + 1.0
    assert answers["first"] > calls / 3
    assert min(answers.get("second", 0), kinds["memory"], kinds["not-finite"], kinds["refused"]) > 100
    assert kinds["recovered"] > 300
    assert errors < calls / 100
    chain.close()
    eventually(lambda: nothing_more(before))
