"""Frames with a deadline over good and bad networks: is each answered, in time, and how well.

A server in a process of its own holds the better model; a TCP proxy between (in this process) makes the
network good, slow, broken, flapping or mute. Frames come at a fixed rate, one at a time. The contenders take
turns in rounds over the same course of the network:
- the edge only;
- the server only, as a client with a timeout of the deadline has it;
- edgekiln's offload in its modes cloud (the server first) and adaptive.

Late is what took over 105 % of the deadline; without an answer, what had none at all. Quality is the share of
frames that got the right digit, a frame without an answer counting as wrong.

Goal: edgekiln leaves no frame without an answer and none late by more than 5 %.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.engines import Runner, open_engine
from edgekiln.engines.onnxruntime import float_artifact
from edgekiln.errors import ServerFault
from edgekiln.prove.environment import fitness
from edgekiln.records import Record, TensorSpec
from edgekiln.runtime.hybrid.client import Client, Server
from edgekiln.runtime.hybrid.offload import Offloader, OffloadRules
from edgekiln.runtime.hybrid.privacy import Privacy, Raw
from edgekiln.runtime.hybrid.remote import RemoteModel, ready
from edgekiln.runtime.vocabulary import Mode
from measuring.chaos_proxy import ChaosProxy, Condition, Schedule, chaos_proxy
from measuring.process import ROOT, environment, say
from measuring.table import Table, arguments, publish
from runtime.offloading.digits import Digits, digits

ALLOWED_LATE = 1.05
GOOD = Condition(latency_ms=4.0, jitter_ms=4.0)
SLOW = Condition(latency_ms=25.0, jitter_ms=40.0, bytes_per_s=2e6)
_BAD = tuple(Condition(fault=f) for f in ("refuse", "stall", "reset", "half-close"))
TRACES: dict[str, Schedule] = {
    "good": ((1.0, GOOD),),
    "slow": ((1.0, SLOW),),
    "broken": ((4.0, GOOD), (3.0, _BAD[0]), (4.0, GOOD), (3.0, _BAD[2])),
    "flapping": tuple((seconds, c) for bad in _BAD for seconds, c in ((0.9, GOOD), (0.6, bad))),
    "mute": ((1.0, Condition(fault="stall")),),
}
EDGE, CLOUD = "edge only", "server only"
OURS: dict[str, Mode] = {"edgekiln, cloud": "cloud", "edgekiln, adaptive": "adaptive"}
CONTENDERS = (EDGE, CLOUD, *OURS)
_SPECS = (TensorSpec(name="scores", dtype="float32", shape=(1, 10)),)
Answerer = Callable[[Any], tuple[str, Any]]


class Frame(Record, frozen=True, kw_only=True):
    """One frame: who answered it (empty: nobody), whether that was right, after how long."""

    place: str
    right: bool
    latency_ms: float


class Round(Record, frozen=True, kw_only=True):
    trace: str
    contender: str
    frames: tuple[Frame, ...]


def main() -> None:
    """See the module."""
    parser = arguments(__doc__)
    parser.add_argument("--deadline-ms", type=float, default=100.0)
    parser.add_argument("--fps", type=float, default=8.0)
    parser.add_argument("--seconds", type=float, default=14.0, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    seconds, rounds = (0.6, 1) if given.quick else (given.seconds, given.rounds)
    unfit = fitness()
    found: list[Round] = []
    with tempfile.TemporaryDirectory() as scratch:
        data = digits(Path(scratch))
        with _server(data.cloud) as port, chaos_proxy(("127.0.0.1", port)) as proxy:
            for turn in range(rounds):
                for trace in TRACES:
                    for contender in _turned(CONTENDERS, turn):
                        say(f"round {turn + 1} of {rounds}: {trace}, {contender}")
                        frames = _round(proxy, trace, contender, data, given, seconds)
                        found.append(Round(trace=trace, contender=contender, frames=frames))
            proxy.set(Condition())
    tables = [_table(trace, found, given.deadline_ms) for trace in TRACES]
    tables.append(_goal(found, given.deadline_ms, given.fps, seconds, rounds))
    publish("offload", tables, found, quick=given.quick, out=given.out, unfit=unfit)


def _turned(names: Sequence[str], turn: int) -> Sequence[str]:
    """The same names, beginning with another each turn."""
    at = turn % len(names)
    return [*names[at:], *names[:at]]


@contextlib.contextmanager
def _server(model: Path) -> Iterator[int]:
    """The port of a server of ``model``, once it is ready."""
    command = [sys.executable, "-m", "measuring.model_server", f"digits={model}"]
    with subprocess.Popen(
        command, cwd=ROOT / "benchmarks", env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            client = Client(Server(url=f"http://127.0.0.1:{port}"))
            assert ready(client, "digits", 30.0)
            client.close()
            yield port
        finally:
            process.kill()


def _round(
    proxy: ChaosProxy, trace: str, contender: str, data: Digits, given: Any, seconds: float
) -> tuple[Frame, ...]:
    """Play the trace from its start, and ask the contender at the rate of the frames."""
    runner = open_engine("onnxruntime", float_artifact(data.edge.name, "edge"), data.edge.parent, 1)
    runner({"image": data.frames[:1]})
    client = Client(Server(url=proxy.url))
    frames = []
    with _contender(contender, client, runner, given.deadline_ms) as answer:
        proxy.play(TRACES[trace], again=True)
        started_s = time.monotonic()
        for number in range(int(seconds * given.fps)):
            time.sleep(max(0.0, started_s + number / given.fps - time.monotonic()))
            at = number % len(data.frames)
            asked_s = time.monotonic()
            place, scores = answer(data.frames[at : at + 1])
            latency_ms = (time.monotonic() - asked_s) * 1e3
            right = scores is not None and int(np.argmax(scores)) == data.labels[at]
            frames.append(Frame(place=place, right=bool(right), latency_ms=latency_ms))
    client.close()
    runner.close()
    proxy.set(Condition())
    return tuple(frames)


@contextlib.contextmanager
def _contender(name: str, client: Client, runner: Runner, deadline_ms: float) -> Iterator[Answerer]:
    """A function from a frame to who answered and the scores, None where nobody did."""
    remote = RemoteModel(client, "digits", _SPECS)
    if name == EDGE:
        yield lambda frame: ("edge", runner({"image": frame})["scores"])
    elif name == CLOUD:

        def ask(frame: Any) -> tuple[str, Any]:
            try:
                return "cloud", remote.infer({"image": frame}, deadline_ms / 1e3)["scores"]
            except ServerFault:
                return "", None

        yield ask
    else:
        rules = OffloadRules(mode=OURS[name], gain=0.1)
        offloader = Offloader(remote, Privacy(rule="raw"), rules)

        def best(frame: Any) -> tuple[str, Any]:
            raw = Raw({"image": frame})
            answer = offloader.answer(raw, lambda: runner({"image": frame}), deadline_ms)
            return answer.place, answer.outputs["scores"]

        yield best
        offloader.close()


# ---------------------------------------------------------------- figures


def frames_of(found: Sequence[Round], contender: str, trace: str | None = None) -> list[Frame]:
    """All frames of a contender, in one trace or in all."""
    return [f for r in found if r.contender == contender and trace in (None, r.trace) for f in r.frames]


def late(frames: Sequence[Frame], deadline_ms: float) -> int:
    """How many were answered, after more than ALLOWED_LATE of the deadline."""
    return sum(bool(f.place) and f.latency_ms > ALLOWED_LATE * deadline_ms for f in frames)


def _table(trace: str, found: Sequence[Round], deadline_ms: float) -> Table:
    rows = []
    for contender in CONTENDERS:
        frames = frames_of(found, contender, trace)
        answered = [f.latency_ms for f in frames if f.place]
        rows.append(
            (
                contender,
                str(len(frames)),
                str(sum(not f.place for f in frames)),
                str(late(frames, deadline_ms)),
                f"{np.mean([f.right for f in frames]):.3f}",
                f"{np.mean([f.place == 'cloud' for f in frames]):.0%}",
                *(f"{np.percentile(answered, q):.1f}" if answered else "—" for q in (50, 99)),
            )
        )
    columns = (
        "contender",
        "frames",
        "without an answer",
        "late",
        "quality",
        "by the server",
        "p50 ms",
        "p99 ms",
    )
    steps = "; ".join(f"{seconds:g} s {_words(c)}" for seconds, c in TRACES[trace])
    return Table(
        title=f"Network: {trace}",
        columns=columns,
        rows=tuple(rows),
        note=f"Over and over: {steps}. p50 and p99 are of answered frames.",
    )


def _words(condition: Condition) -> str:
    if condition.fault:
        return condition.fault
    narrow = f", {condition.bytes_per_s / 1e6:g} MB/s" if condition.bytes_per_s else ""
    return f"{condition.latency_ms:g} ms and up to {condition.jitter_ms:g} ms more each way{narrow}"


def _goal(found: Sequence[Round], deadline_ms: float, fps: float, seconds: float, rounds: int) -> Table:
    rows = []
    for contender in OURS:
        frames = frames_of(found, contender)
        lost, slow = sum(not f.place for f in frames), late(frames, deadline_ms)
        rows.append(
            (contender, str(len(frames)), str(lost), str(slow), "met" if lost + slow == 0 else "missed")
        )
    return Table(
        title="Goal: no frame without an answer, none late by more than 5 %",
        columns=("contender", "frames", "without an answer", "late", "goal"),
        rows=tuple(rows),
        note=(
            f"Deadline {deadline_ms:g} ms, {fps:g} frames a second, {rounds} round(s) of {seconds:g} s "
            "for each network and contender."
        ),
    )
