"""Builds that break pages: too many candidates, equal ones, none at all, and strings from strangers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec

from edgekiln.records import (
    Budget,
    Build,
    Check,
    Choice,
    Decision,
    Failure,
    FileEntry,
    How,
    Loser,
    PassReport,
    Placement,
    Proof,
    Rejected,
    Resolution,
    Signature,
    TensorSpec,
)
from fakes.build_record import FAILURES, artifact, dataset, figure, host, make_build, model, proof


def one_device(proofs: Sequence[Proof], choice: Choice, **changes: Any) -> Build:
    changes = {"failures": (), **changes}
    decision = Decision(model="m", budget=changes.pop("budget", Budget()), choices=(choice,))
    return make_build(proofs=tuple(proofs), decision=decision, **changes)


def many(count: int, equal: bool = False, p50: float | None = 8.0, n: int = 60, name: str = "") -> Build:
    """One device with ``count`` candidates; ``equal`` gives all of them the same figures."""
    draw = random.Random(count)
    targets = ("onnxruntime", "openvino", "tensorrt")
    proofs = []
    for i in range(count):
        speed = None if p50 is None else p50 * (1 if equal else draw.lognormvariate(0.3, 0.7))
        agreement = 0.9 if equal else round(min(1.0, 0.75 + 0.25 * draw.random()), 4)
        made = artifact(
            targets[i % 3], name or f"mixed-drop-{i:02d}", 5_000_000 if equal else 10**6 * (1 + i)
        )
        made = msgspec.structs.replace(made, id=f"{made.id}-{i}")
        proofs.append(
            proof("host", made, p50=speed, drop=None, agreement=agreement, sqnr=20.0, memory=9e7, n=n)
        )
    ids = [p.artifact.id for p in proofs]
    losers = tuple(Loser(artifact_id=i, why=f"slower than {ids[0]}") for i in ids[1:])
    choice = Choice(
        device="host",
        status="proven",
        artifact_id=ids[0],
        basis="the fastest",
        front=(ids[0],),
        losers=losers,
    )
    return one_device(proofs, choice)


def no_artifact() -> Build:
    """Two devices: one where everything made breaks the budget, one where nothing could be made."""
    proofs, choice = host()
    none = Choice(
        device="host", status="none", artifact_id=None, basis="every candidate breaks latency_p95_ms",
        front=choice.front,
        losers=tuple(Loser(artifact_id=p.artifact.id, why="broke latency_p95_ms") for p in proofs),
    )  # fmt: skip
    empty = Choice(
        device="jetson-orin-nano-8gb", status="none", artifact_id=None, basis="no artifact was made"
    )
    budget = Budget(latency_p95_ms=1.0, fps=900.0)
    decision = Decision(model="EfficientNet-Lite0", budget=budget, choices=(none, empty))
    return make_build(proofs=proofs, decision=decision, failures=FAILURES[:2])


def bare() -> Build:
    """No data, no labels, no passes, no failures, no warnings: as little as a build can hold."""
    made = artifact("onnxruntime", "fp32", 1_000)
    made = msgspec.structs.replace(made, passes=(), checks=(), options={}, tools={}, precisions={})
    choice = Choice(
        device="host", status="proven", artifact_id=made.id, basis="the only one", front=(made.id,)
    )
    return one_device(
        [Proof(device="host", artifact=made, evidence=(), latency_ms=(4.2,))],
        choice,
        model=msgspec.structs.replace(model(labels=0), preprocess=None, task="tensors"),
        graph_passes=(), calibration=None, evaluation=None, holdout=None, failures=(), warnings=(),
        environment={},
    )  # fmt: skip


def hostile(text: str) -> Build:
    """``text`` wherever a stranger's string can stand."""
    build = make_build()
    proofs, choice = host()
    made = msgspec.structs.replace(
        proofs[0].artifact, id=text, target=text, recipe=text, options={text: text}, tools={text: text},
        precisions={text: 1}, checks=(Check(name=text, passed=False, detail=text),),
        placement=(Placement(provider=text, how="measured", operators=2, taken=1, fallback={text: 1},
                             detail=text),),
        resolutions=(Resolution(height=1, width=1, entry=text), Resolution(height=2, width=2, entry=text)),
        passes=(PassReport(name=text, outcome="kept", seconds=1, nodes_before=1, nodes_after=2, note=text,
                           ops_after={text: 3}),),
    )  # fmt: skip
    evidence = (
        *proofs[0].evidence,
        figure(text, text, 1.0, "published", where=text, source=text, environment={text: text}),
        figure("energy_mj", "mJ", None, None, reason=text),
    )
    bad = Proof(device=text, artifact=made, evidence=evidence, latency_ms=proofs[0].latency_ms)
    failure = Failure(
        device=text, target=text, recipe=text, stage=text, kind="failed", reason=text, cure=text
    )
    choices = (
        Choice(device=text, status="unproven", artifact_id=text, basis=text, front=(text,),
               unproven=(text,), bundle=text, losers=(Loser(artifact_id=text, why=text),)),
        choice,
    )  # fmt: skip
    source = msgspec.structs.replace(build.model.source, exporter=text, files=(
        FileEntry(path=text, sha256=text, size_bytes=1),))  # fmt: skip
    hostile_model = msgspec.structs.replace(
        build.model, name=text, path=text, labels=(text, text), warnings=(text,), source=source,
        signature=Signature(inputs=(TensorSpec(name=text, dtype=text, shape=(text, 3)),), outputs=()),
    )  # fmt: skip
    return make_build(
        edgekiln=text, model=hostile_model, proofs=(bad, *proofs), warnings=(text,), environment={text: text},
        failures=(failure, msgspec.structs.replace(failure, kind="skipped")),
        calibration=dataset(text, 2, False, [Rejected(path=text, reason=text)]),
        decision=Decision(model=text, budget=build.decision.budget, choices=choices),
    )  # fmt: skip


SIZES = ((224, 224), (320, 320), (320, 416))
PLACED = {
    "openvino": Placement(
        provider="OpenVINO CPU", how="measured", operators=98, taken=98, partitions=1, detail="the CPU plugin"
    ),
    "tensorrt": Placement(
        provider="TensorRT (GPU)",
        how="emulated",
        operators=98,
        taken=91,
        partitions=4,
        fallback={"Resize": 5, "NonMaxSuppression": 2},
        detail="the parser of TensorRT-RTX",
    ),
}
NOT_ASKED = Placement(provider="NNAPI", how="emulated", detail="the checker was not installed")


def several_sizes(drop: float = 0.006) -> Build:
    """The whole build for three sizes: OpenVINO flexible, the others a file per size, worst at 320x416."""
    whole = make_build()
    proofs = []
    for one in whole.proofs:
        made = one.artifact
        flexible = made.target == "openvino"
        entries = [made.entry if flexible else f"{h}x{w}/{made.entry}" for h, w in SIZES]
        artifact = msgspec.structs.replace(
            made,
            placement=(PLACED.get(made.target, NOT_ASKED),),
            resolutions=tuple(
                Resolution(height=h, width=w, entry=e) for (h, w), e in zip(SIZES, entries, strict=True)
            ),
        )
        how: How = "measured" if one.device == "host" else "emulated"
        more = [
            figure(f"{what}@{at}", unit, value, how, n=400)
            for at, lost, agreed in (("320x320", 0.001, 0.95), ("320x416", drop, 0.71))
            for what, unit, value in (
                ("accuracy_drop", "fraction", lost),
                ("agreement", "fraction", agreed),
                ("sqnr_db", "dB", 12.5),
            )
        ]
        proofs.append(msgspec.structs.replace(one, artifact=artifact, evidence=(*one.evidence, *more)))
    return msgspec.structs.replace(whole, proofs=tuple(proofs))
