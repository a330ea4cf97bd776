"""ONNX's own node tests through Core ML: convert, save, interpret the saved package, compare.

    python scripts/coreml_nodes.py [--out docs/coreml-nodes.md] [--only abs,conv] [--workers 2] [--seconds 60]

Each case of ``onnx.backend.test.case.node`` is converted by onnx2coreml in float32, saved as an
``.mlpackage``, interpreted from the saved file by ``edgekiln.engines.coreml`` and compared with the outputs
that ONNX states, within the tolerances of ONNX's own runner. A case runs in a worker process: one that
crashes or takes longer than ``--seconds`` counts as refused, and the next goes on in a new process.
"""

from __future__ import annotations

import argparse
import collections
import importlib.metadata
import json
import logging
import multiprocessing
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.engines import coreml
from edgekiln.errors import EdgekilnError
from edgekiln.records import Artifact, Scalar

TARGET = "ios18"
OUTCOMES = ("passed", "wrong", "refused by the interpreter", "refused by the converter")


@dataclass(frozen=True)
class Outcome:
    case: str
    ops: str
    outcome: str
    reason: str = ""


# ---------------------------------------------------------------- one case


def cases(only: Iterable[str] = ()) -> dict[str, Any]:
    """ONNX's node cases by name; ``only`` keeps the operators named (any case, without ``test_``)."""
    from onnx.backend.test.case.node import collect_testcases

    wanted = {word.lower() for word in only}
    found = {}
    for case in collect_testcases(None):
        ops = {node.op_type.lower() for node in case.model.graph.node}
        if not wanted or wanted & (ops | {case.name.lower()}):
            found[case.name] = case
    return found


def judge(case: Any, folder: Path) -> Outcome:
    """Convert, save, interpret and compare one case; ``folder`` is for its package alone."""
    ops = "+".join(sorted({node.op_type for node in case.model.graph.node}))
    try:
        artifact = convert(case.model, folder)
    except Exception as error:
        return Outcome(case.name, ops, OUTCOMES[3], reason(error))
    names = [value.name for value in case.model.graph.output]
    try:
        for given, expected in case.data_sets:
            runner = coreml.open(artifact, folder, 1)
            inputs = dict(zip(graph_inputs(case.model), (np.asarray(g) for g in given), strict=True))
            found = runner(inputs)
            for name, wanted in zip(names, expected, strict=True):
                compare(name, found[name], np.asarray(wanted), case.rtol, case.atol)
    except AssertionError as error:
        return Outcome(case.name, ops, OUTCOMES[1], str(error))
    except EdgekilnError as error:
        return Outcome(case.name, ops, OUTCOMES[2], error.why)
    return Outcome(case.name, ops, OUTCOMES[0])


def graph_inputs(model: Any) -> list[str]:
    stored = {i.name for i in model.graph.initializer}
    return [value.name for value in model.graph.input if value.name not in stored]


def convert(model: Any, folder: Path) -> Artifact:
    """The saved package of ``model`` and the artifact that names it; raises whatever the converter does."""
    import onnx
    from onnx2coreml import convert as to_coreml

    converted = to_coreml(model, minimum_deployment_target=TARGET, compute_precision="fp32")
    converted.save(str(folder / "model.mlpackage"))
    description = converted.get_spec().description
    given, results = graph_inputs(model), [value.name for value in model.graph.output]
    values = {value.name: value for value in (*model.graph.input, *model.graph.output)}
    scalars = [n for n in (*given, *results) if not values[n].type.tensor_type.shape.dim]
    dtypes = {
        n: str(onnx.helper.tensor_dtype_to_np_dtype(values[n].type.tensor_type.elem_type)) for n in results
    }
    options: dict[str, Scalar] = {
        "input_names": json.dumps(dict(zip((i.name for i in description.input), given, strict=True))),
        "output_names": json.dumps(dict(zip((o.name for o in description.output), results, strict=True))),
        "output_dtypes": json.dumps(dtypes),
        "scalars": json.dumps(scalars),
    }
    return Artifact(
        id="node",
        target="coreml",
        recipe="fp32",
        engine="coreml",
        proof_engine="coreml",
        entry="model.mlpackage",
        files=(),
        options=options,
        tools={},
        precisions={},
    )


def compare(name: str, found: Any, wanted: Any, rtol: float, atol: float) -> None:
    """As ONNX's runner compares. Raises AssertionError with the largest difference."""
    if found.shape != wanted.shape:
        raise AssertionError(f"{name} has shape {list(found.shape)} instead of {list(wanted.shape)}")
    if wanted.dtype.kind in "fiub":
        close = np.isclose(found, wanted, rtol=rtol, atol=atol, equal_nan=True)
        if not close.all():
            difference = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
            raise AssertionError(
                f"{name} differs in {int((~close).sum())} of {close.size} elements, by up to "
                f"{float(np.nanmax(difference)):.3g}"
            )
    elif not np.array_equal(found, wanted):
        raise AssertionError(f"{name} differs")


def reason(error: Exception) -> str:
    """Why a conversion was refused, without what differs from case to case."""
    missing = getattr(error, "missing", None)
    if missing:
        return f"no lowering for {', '.join(sorted(missing))}"
    cause = getattr(error, "cause", error)
    operator = f"{error.op_key}: " if hasattr(error, "op_key") else ""
    text = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    text = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "'...'", text)
    return operator + re.sub(r"\[[^\]]*\]|\([^)]*\)|-?\d+(\.\d+)?", "N", text)[:110]


# ---------------------------------------------------------------- many cases


def work(pipe: Connection, only: tuple[str, ...]) -> None:
    """A worker: takes names of cases, gives outcomes, until the pipe closes."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    # The converter is slow to import, which is no case's fault.
    import coremltools  # noqa: F401
    import onnx2coreml  # noqa: F401

    known = cases(only)
    pipe.send(None)
    while True:
        try:
            name = pipe.recv()
        except EOFError:
            return
        with tempfile.TemporaryDirectory() as folder:
            pipe.send(judge(known[name], Path(folder)))


class _Worker:
    def __init__(self, only: tuple[str, ...]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=work, args=(there, only), daemon=True)
        self.process.start()
        there.close()
        self.case: str | None = None
        self.since = time.monotonic()
        self.ready = False


def run(known: dict[str, Any], only: tuple[str, ...], workers: int, seconds: float) -> Iterator[Outcome]:
    """Outcomes as they come; a crash or a timeout is one too."""
    pending = list(known)[::-1]
    pool = [_Worker(only) for _ in range(min(workers, len(pending)))]
    while pool:
        wait([w.pipe for w in pool], timeout=1.0)
        for place, worker in enumerate(list(pool)):
            lost = ""
            try:
                if worker.pipe.poll():
                    outcome = worker.pipe.recv()
                    if outcome is not None:
                        yield outcome
                    worker.ready, worker.case = True, None
            except (EOFError, ConnectionError):
                lost = "the process died"
            if worker.case and not lost and time.monotonic() - worker.since > seconds:
                lost = f"it took longer than {seconds:g} s"
            if lost:
                worker.process.kill()
                if worker.case is None:
                    raise RuntimeError("a worker died before it was given a case")
                ops = "+".join(sorted({n.op_type for n in known[worker.case].model.graph.node}))
                yield Outcome(worker.case, ops, OUTCOMES[3], lost)
                pool[place] = _Worker(only)
            elif worker.ready and worker.case is None and pending:
                worker.case, worker.since = pending.pop(), time.monotonic()
                worker.pipe.send(worker.case)
        if not pending and all(w.case is None for w in pool if w.ready):
            for worker in pool:
                worker.process.kill()
            return


# ---------------------------------------------------------------- the page


def page(outcomes: list[Outcome], seconds: float, notes: Callable[[Outcome], str]) -> str:
    """The report as Markdown."""
    counts = collections.Counter(o.outcome for o in outcomes)
    converted = len(outcomes) - counts[OUTCOMES[3]]
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("onnx", "onnx2coreml", "coremltools", "torch")
    )
    lines = [
        "# Core ML against ONNX's node tests",
        "",
        "Written by `python scripts/coreml_nodes.py`; do not edit by hand.",
        "",
        f"Every case of `onnx.backend.test.case.node` ({len(outcomes)} of them) was converted by onnx2coreml",
        f"(float32, {TARGET}), saved as an `.mlpackage`, interpreted from the saved file by",
        "`edgekiln.engines.coreml` and compared with the outputs that ONNX states, within the tolerances of",
        f"ONNX's own runner. {coreml.NOTE}",
        "",
        f"Versions: {versions}. It took {seconds:.0f} s.",
        "",
        "| | cases |",
        "|---|---|",
        f"| cases | {len(outcomes)} |",
        f"| refused by the converter | {counts[OUTCOMES[3]]} |",
        f"| converted | {converted} |",
        f"| of these passed | {counts[OUTCOMES[0]]} |",
        f"| of these wrong | {counts[OUTCOMES[1]]} |",
        f"| of these refused by the interpreter | {counts[OUTCOMES[2]]} |",
        "",
    ]
    for outcome, title in ((OUTCOMES[1], "Wrong"), (OUTCOMES[2], "Refused by the interpreter")):
        lines += [f"## {title}", "", "| case | operators | what | whose fault |", "|---|---|---|---|"]
        chosen = sorted((o for o in outcomes if o.outcome == outcome), key=lambda o: o.case)
        lines += [f"| `{o.case}` | {o.ops} | {cell(o.reason)} | {notes(o)} |" for o in chosen] or [
            "| none | | | |"
        ]
        lines.append("")
    reasons = collections.Counter(o.reason for o in outcomes if o.outcome == OUTCOMES[3])
    lines += ["## Refused by the converter, by reason", "", "| cases | reason |", "|---|---|"]
    lines += [
        f"| {n} | {cell(why)} |" for why, n in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    ]
    passed = collections.Counter(op for o in outcomes if o.outcome == OUTCOMES[0] for op in o.ops.split("+"))
    lines += ["", "## Operators that passed, with the number of cases", ""]
    lines += [", ".join(f"{op} {n}" for op, n in sorted(passed.items())), ""]
    return "\n".join(lines)


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the page there; else print the counts alone")
    parser.add_argument("--only", default="", help="operators or case names, separated by commas")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0, help="limit for one case")
    given = parser.parse_args()
    only = tuple(word for word in given.only.split(",") if word)
    begun = time.monotonic()
    outcomes = list(run(cases(only), only, given.workers, given.seconds))
    for outcome in sorted(outcomes, key=lambda o: o.case):
        if outcome.outcome in OUTCOMES[1:3]:
            print(f"{outcome.outcome}: {outcome.case} ({outcome.ops}): {outcome.reason}")
    print(dict(collections.Counter(o.outcome for o in outcomes)))
    if given.out:
        given.out.write_text(page(outcomes, time.monotonic() - begun, fault), encoding="utf-8")
    return 0


KNOWN_FAULTS: dict[str, str] = {}
"""Operator or case to what was found out about a wrong result."""


def fault(outcome: Outcome) -> str:
    return KNOWN_FAULTS.get(outcome.case) or KNOWN_FAULTS.get(outcome.ops) or "not found out"


if __name__ == "__main__":
    sys.exit(main())
