"""A whole build as test data: figures of the size that EfficientNet-Lite0 gave on two cores, and the odd
builds that break pages. Everything is invented, and nothing here is read by the program."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any

import msgspec

from edgekiln.records import (
    Artifact,
    Budget,
    Build,
    Check,
    Choice,
    Dataset,
    Decision,
    Evidence,
    Failure,
    FileEntry,
    How,
    Loser,
    Model,
    PassReport,
    Preprocess,
    Proof,
    Rejected,
    Sample,
    Signature,
    Source,
    TensorSpec,
)

MACHINE = "x86_64, Intel Xeon (Sapphire Rapids), 2 cores, 24 GB, Linux 6.1"
RUN = {"threads": 2, "warm_up": 40, "process": "fresh", "governor": "performance", "onnxruntime": "1.32.0"}
NO_ORIN = "no jetson-orin-nano-8gb is reachable from here, and no rule predicts TensorRT from this machine"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def figure(what: str, unit: str, value: float | None, how: How | None, **more: Any) -> Evidence:
    if value is None:
        return Evidence(what=what, unit=unit, value=None, **{"reason": "not asked for", **more})
    return Evidence(what=what, unit=unit, value=value, how=how, when="2026-11-22T23:50:00Z", **more)


def samples(p50: float, n: int = 200, seed: int = 0) -> tuple[float, ...]:
    """Latencies with a hard lower edge and a long tail, as real ones have."""
    draw = random.Random(seed)
    return tuple(
        round(p50 * (0.96 + 0.055 * draw.gammavariate(1.6, 0.5) + (draw.random() < 0.02) * draw.random()), 4)
        for _ in range(n)
    )


def passes_of(recipe: str) -> tuple[PassReport, ...]:
    if recipe == "fp32":
        return ()
    if not recipe.startswith("int8"):
        ops = {"Conv": 49, "Cast": 0}
        return (
            PassReport(
                name="to-fp16",
                outcome="kept",
                seconds=0.41,
                nodes_before=141,
                nodes_after=143,
                ops_before=ops,
                ops_after={**ops, "Cast": 2},
                parity_max_error=0.0031,
            ),
        )
    return (
        PassReport(
            name="calibrate", outcome="kept", seconds=7.93, nodes_before=141, nodes_after=141,
            note="64 pictures, 190 tensors, streamed in batches of 8",
        ),
        PassReport(
            name="insert-qdq", outcome="kept", seconds=0.88, nodes_before=141, nodes_after=489,
            ops_before={"Conv": 49, "Clip": 35, "QuantizeLinear": 0, "DequantizeLinear": 0},
            ops_after={"Conv": 49, "Clip": 0, "QuantizeLinear": 112, "DequantizeLinear": 271},
            parity_max_error=0.412,
        ),
        PassReport(
            name="correct-bias", outcome="undone", seconds=3.2, nodes_before=489, nodes_after=489,
            note="agreement fell from 0.940 to 0.932, so it was undone", parity_max_error=0.455,
        ),
    )  # fmt: skip


def artifact(target: str, recipe: str, size: int, **changes: Any) -> Artifact:
    suffix = {"openvino": "xml", "tensorrt": "onnx"}.get(target, "onnx")
    name = f"{target}/{recipe}"
    files = [FileEntry(path=f"model.{suffix}", sha256=digest(name), size_bytes=size)]
    if target == "openvino":
        files.append(FileEntry(path="model.bin", sha256=digest(name + "bin"), size_bytes=size * 8))
    whole: dict[str, Any] = {
        "id": f"{name}/{digest(name)[:12]}",
        "target": target,
        "recipe": recipe,
        "engine": target,
        "proof_engine": "onnxruntime" if target == "tensorrt" else target,
        "entry": f"model.{suffix}",
        "files": tuple(files),
        "options": {"threads": 2},
        "tools": {"onnx": "1.23.2", target: "1.32.0"},
        "precisions": {"int8": 112, "float32": 29} if recipe.startswith("int8") else {"float32": 141},
        "passes": passes_of(recipe),
        "checks": (
            Check(name="onnx.checker", passed=True, detail="the graph is valid at opset 20"),
            Check(name="outputs are finite", passed=True, detail="32 pictures, 1,000 logits each"),
        ),
    }
    return Artifact(**{**whole, **changes})


def proof(
    device: str,
    made: Artifact,
    *,
    p50: float | None,
    drop: float | None,
    agreement: float | None = None,
    sqnr: float | None = None,
    memory: float | None = None,
    quality_how: How = "measured",
    latency_how: How = "measured",
    n: int = 200,
    reason: str = NO_ORIN,
) -> Proof:
    """``p50`` None is an artifact whose latency nobody knows on its device, for ``reason``."""
    if n and p50 is not None and latency_how == "measured":
        run = samples(p50, n, seed=len(made.id) + int(p50 * 100))
    else:
        run = ()
    ordered = sorted(run)
    tail = {q: ordered[min(int(len(run) * q / 100), len(run) - 1)] if run else None for q in (50, 95, 99)}
    if p50 is not None and not run:
        tail = {50: p50, 95: p50 * 1.2, 99: None}
    figures = [
        figure(
            "accuracy_drop", "fraction", drop, quality_how, n=20, where=MACHINE, reason="" if drop is not None
            else "the evaluation set has no labels",
            interval=None if drop is None else (round(drop - 0.09, 4), round(drop + 0.13, 4)),
        ),
        figure(
            "agreement", "fraction", agreement, quality_how, n=96, where=MACHINE,
            reason="" if agreement is not None else "the task is not classification",
            interval=None if agreement is None else (max(agreement - 0.06, 0), min(agreement + 0.03, 1)),
        ),
        figure("sqnr_db", "dB", sqnr, quality_how, n=96, where=MACHINE,
               reason="" if sqnr is not None else "not computed"),
        figure("size_bytes", "bytes", float(made.size_bytes), "measured", n=1),
        figure("cosine", "", 0.9973, quality_how, n=96, where=MACHINE),
    ]  # fmt: skip
    for q, value in tail.items():
        bounds = None if latency_how != "predicted" or value is None else (value * 0.6, value * 1.7)
        why = "a prediction gives no 99th percentile" if p50 is not None else reason
        figures.append(
            figure(f"latency_p{q}_ms", "ms", value, latency_how, n=len(run) or None, interval=bounds,
                   where=MACHINE if run else "", environment=RUN if run else {},
                   source="" if run or value is None else "roofline over int8 anchors, see the devices page",
                   reason="" if value is not None else why)
        )  # fmt: skip
    figures.append(
        figure("peak_memory_bytes", "bytes", memory, "measured", n=1, where=MACHINE,
               reason="" if memory is not None else reason)
    )  # fmt: skip
    return Proof(device=device, artifact=made, evidence=tuple(figures), latency_ms=run)


def dataset(root: str, n: int, labelled: bool, rejected: Sequence[Rejected] = ()) -> Dataset:
    return Dataset(
        root=root,
        samples=tuple(
            Sample(
                path=f"{i:04d}.jpg", sha256=digest(f"{root}{i}"), label=i * 37 % 1000 if labelled else None
            )
            for i in range(n)
        ),
        rejected=tuple(rejected),
        sha256=digest(root + str(n)),
    )


def graph_passes() -> tuple[PassReport, ...]:
    source = {"Conv": 49, "BatchNormalization": 49, "Clip": 35, "Constant": 212, "Add": 10, "Shape": 2}
    slim = {"Conv": 49, "Clip": 35, "Add": 10, "Flatten": 1, "Gemm": 1, "GlobalAveragePool": 1}
    return (
        PassReport(
            name="upgrade-opset", outcome="kept", seconds=0.02, nodes_before=403, nodes_after=403,
            ops_before=source, ops_after=source, note="17 to 20", parity_max_error=0.0,
        ),
        PassReport(
            name="onnxslim", outcome="kept", seconds=0.61, nodes_before=403, nodes_after=141,
            ops_before=source, ops_after=slim, parity_max_error=3.6e-6,
        ),
        PassReport(
            name="onnxsim", outcome="undone", seconds=1.34, nodes_before=403, nodes_after=148,
            ops_before=source, ops_after={**slim, "Constant": 7}, parity_max_error=3.6e-6,
            note="148 nodes against onnxslim's 141: the smaller graph was kept",
        ),
    )  # fmt: skip


def model(name: str = "EfficientNet-Lite0", labels: int = 1000) -> Model:
    return Model(
        name=name,
        path="model.onnx",
        sha256=digest(name),
        signature=Signature(
            inputs=(TensorSpec(name="input", dtype="float32", shape=("batch", 3, 224, 224)),),
            outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 1000)),),
        ),
        task="classification",
        source=Source(
            kind="torch",
            files=(FileEntry(path="lite0.pth", sha256=digest("weights"), size_bytes=18_766_321),),
            exporter="torch.onnx dynamo, opset 20",
            parity_max_error=4.7e-6,
        ),
        preprocess=Preprocess(
            width=224, height=224, fit="crop", crop=0.875, interpolation="bicubic",
            mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        ),
        labels=tuple(f"class {i}" for i in range(labels)),
    )  # fmt: skip


HOST = (
    ("openvino", "int8-static-mse", 310_000, 5.12, 0.0, 0.906, 19.6, 96e6),
    ("onnxruntime", "int8-static-percentile", 5_180_000, 5.94, 0.05, 0.885, 18.3, 71e6),
    ("onnxruntime", "int8-static-minmax", 5_180_000, 5.91, 0.05, 0.844, 17.1, 71e6),
    ("openvino", "bf16", 1_040_000, 7.66, 0.0, 0.958, 31.2, 118e6),
    ("onnxruntime", "fp32", 18_600_000, 13.9, 0.0, 1.0, 104.0, 98e6),
    ("openvino", "fp32", 2_070_000, 15.8, 0.0, 1.0, 101.0, 131e6),
    ("onnxruntime", "int8-dynamic", 5_020_000, 111.4, 0.1, 0.792, 14.9, 77e6),
)


def host() -> tuple[tuple[Proof, ...], Choice]:
    proofs = tuple(
        proof("host", artifact(t, r, size), p50=p50, drop=drop, agreement=agree, sqnr=sqnr, memory=memory)
        for t, r, size, p50, drop, agree, sqnr, memory in HOST
    )
    ids = [p.artifact.id for p in proofs]
    losers = (
        (1, f"{ids[0]} is faster (5.11 against 5.92 ms) and drops less"),
        (2, "broke accuracy_drop: 0.050 is over 0.010"),
        (3, "slower than the winner: P50 7.65 against 5.11 ms"),
        (4, "slower than the winner: P50 13.9 against 5.11 ms"),
        (5, "slower than the winner: P50 15.8 against 5.11 ms"),
        (6, "broke accuracy_drop (0.100 is over 0.010) and latency_p95_ms (116 is over 50)"),
    )
    choice = Choice(
        device="host",
        status="proven",
        artifact_id=ids[0],
        basis="every constraint is met, and nothing that meets them is faster",
        front=(ids[0], ids[3], ids[4]),
        losers=tuple(Loser(artifact_id=ids[i], why=why) for i, why in losers),
        bundle="bundles/host.edgekiln",
    )
    return proofs, choice


def jetson() -> tuple[tuple[Proof, ...], Choice]:
    device = "jetson-orin-nano-8gb"
    check = Check(
        name="TensorRT-RTX 1.7.1 builder",
        passed=None,
        detail="it knows no SM87, so the parser alone was asked",
    )
    refused = Check(name="TensorRT parser", passed=False, detail="node Gemm_140: bias must be constant")
    made = [
        artifact("tensorrt", "int8-static-mse", 5_300_000),
        artifact("tensorrt", "fp16", 9_400_000, checks=(check, refused)),
    ]
    made[0] = msgspec.structs.replace(made[0], checks=(*made[0].checks, check))
    proofs = (
        proof(device, made[0], p50=None, drop=0.0, agreement=0.896, sqnr=19.0, quality_how="emulated"),
        proof(device, made[1], p50=None, drop=0.0, agreement=0.99, sqnr=47.7, quality_how="emulated"),
    )
    choice = Choice(
        device=device,
        status="unproven",
        artifact_id=made[0].id,
        basis="the accuracy holds by emulation; the smallest that keeps it, because no latency is known",
        front=(made[0].id, made[1].id),
        losers=(Loser(artifact_id=made[1].id, why="larger than the winner: 9.40 against 5.30 MB"),),
        unproven=("latency_p95_ms",),
        bundle=f"bundles/{device}.edgekiln",
    )
    return proofs, choice


def raspberry() -> tuple[tuple[Proof, ...], Choice]:
    device = "raspberry-pi-5"
    rows = (("int8-static-minmax", 5_180_000, 21.0, 0.0, 0.87), ("fp32", 18_600_000, 58.0, 0.0, 1.0))
    proofs = tuple(
        proof(device, artifact("onnxruntime", r, size), p50=p50, drop=drop, agreement=agree, sqnr=18.0,
              quality_how="emulated", latency_how="predicted", reason="no Raspberry Pi is reachable")
        for r, size, p50, drop, agree in rows
    )  # fmt: skip
    choice = Choice(
        device=device,
        status="unproven",
        artifact_id=proofs[0].artifact.id,
        basis="predicted to be the fastest of those that keep the accuracy",
        front=tuple(p.artifact.id for p in proofs),
        losers=(Loser(artifact_id=proofs[1].artifact.id, why="predicted slower: P50 58.0 against 21.0 ms"),),
        unproven=("latency_p95_ms",),
        bundle=f"bundles/{device}.edgekiln",
    )
    return proofs, choice


FAILURES = (
    Failure(
        device="jetson-orin-nano-8gb", target="tensorrt", recipe="int8-static-percentile", stage="parse",
        kind="failed", reason="TensorRT's parser refused node DequantizeLinear_17: a zero point other than 0",
        cure="Use a symmetric recipe for this target, such as int8-static-mse",
    ),
    Failure(
        device="host", target="openvino", recipe="fp16", stage="compile", kind="skipped",
        reason="the CPU computes float16 in float32, so the recipe would change nothing",
    ),
    Failure(
        device="raspberry-pi-5", target="onnxruntime", recipe="int8-dynamic", stage="recipe", kind="skipped",
        reason="the graph holds 1 matrix product among 51 weighted nodes; the recipe is for transformers",
    ),
)  # fmt: skip


def make_build(**changes: Any) -> Build:
    """A realistic build for three devices; ``changes`` replace its fields, and ``budget`` its budget."""
    parts = (host(), jetson(), raspberry())
    budget = changes.pop("budget", Budget(accuracy_drop=0.01, latency_p95_ms=50.0, size_bytes=20_000_000))
    whole: dict[str, Any] = {
        "edgekiln": "0.1.0",
        "model": model(),
        "graph_passes": graph_passes(),
        "calibration": dataset("photographs", 64, False, [
            Rejected(path="notes.txt", reason="not a picture: the file begins with text"),
            Rejected(path="broken.png", reason="the picture is truncated after 1,024 bytes"),
        ]),
        "evaluation": dataset("imagenet-20", 20, True),
        "holdout": dataset("holdout", 96, False),
        "proofs": tuple(p for proofs, _ in parts for p in proofs),
        "failures": FAILURES,
        "warnings": ("The evaluation set has 20 pictures: one of them is 5 points of accuracy.",),
        "environment": {"python": "3.11.2", "platform": MACHINE, "onnxruntime": "1.32.0", "cores": 2},
        "decision": Decision(model="EfficientNet-Lite0", budget=budget, choices=tuple(c for _, c in parts)),
    }  # fmt: skip
    return Build(**{**whole, **changes})
