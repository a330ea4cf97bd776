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
        model, data_sets = with_constants(case)
        artifact = convert(model, folder)
    except Exception as error:
        return Outcome(case.name, ops, OUTCOMES[3], reason(error))
    names = [value.name for value in model.graph.output]
    try:
        for given, expected in data_sets:
            runner = coreml.open(artifact, folder, 1)
            inputs = dict(zip(graph_inputs(model), given, strict=True))
            found = runner(inputs)
            for name, wanted in zip(names, expected, strict=True):
                compare(name, found[name], wanted, case.rtol, case.atol)
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
    scalars = [n for n in (*given, *results) if _is_scalar(values[n].type.tensor_type)]
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


def _is_scalar(kind: Any) -> bool:
    return bool(kind.HasField("shape") and not kind.shape.dim)


PARAMETERS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2, 3, 4),
    "Clip": (1, 2),
    "ConstantOfShape": (0,),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "CumSum": (1,),
    "Expand": (1,),
    "GRU": (1, 2, 3),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3, 7),
    "LayerNormalization": (1, 2),
    "OneHot": (1, 2),
    "PRelu": (1,),
    "Pad": (1, 2, 3),
    "RNN": (1, 2, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    **{f"Reduce{kind}": (1,) for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min")},
    **{f"Reduce{kind}": (1,) for kind in ("Prod", "Sum", "SumSquare")},
}
"""Places of inputs that exported models hold as constants: weights, axes, shapes."""


def with_constants(case: Any) -> tuple[Any, list[tuple[list[Any], list[Any]]]]:
    """The case's model with its parameters as initializers, and its data sets without them.

    The node tests give axes, shapes and weights as graph inputs, which no exporter does. A case with
    several data sets stays as it is.
    """
    import onnx

    model = onnx.ModelProto.FromString(case.model.SerializeToString())
    names = graph_inputs(model)
    fixed = {
        node.input[place]
        for node in model.graph.node
        for place in PARAMETERS.get(node.op_type, ())
        if place < len(node.input) and node.input[place] in names
    }
    data_sets = [([array(v) for v in given], [array(v) for v in wanted]) for given, wanted in case.data_sets]
    if len(data_sets) != 1 or not fixed or fixed == set(names):
        return model, data_sets
    ((given, wanted),) = data_sets
    for name, value in zip(names, given, strict=True):
        if name in fixed:
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    kept = [v for v in model.graph.input if v.name not in fixed]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    left = [v for name, v in zip(names, given, strict=True) if name not in fixed]
    return model, [(left, wanted)]


def array(value: Any) -> Any:
    """A case's value, which may be a TensorProto."""
    import onnx

    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


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
        "ONNX's own runner. Weights, axes and shapes that the cases give as graph inputs are made constants",
        "first, as exporters write them.",
        "",
        coreml.NOTE,
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
        lines += [f"## {title}", "", "| case | operators | what | found out |", "|---|---|---|---|"]
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
    parser.add_argument("--keep", type=Path, help="write every outcome there, as JSON")
    parser.add_argument("--only", default="", help="operators or case names, separated by commas")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0, help="limit for one case")
    given = parser.parse_args()
    only = tuple(word for word in given.only.split(",") if word)
    begun = time.monotonic()
    outcomes = []
    for outcome in run(cases(only), only, given.workers, given.seconds):
        outcomes.append(outcome)
        if outcome.outcome in OUTCOMES[1:3]:
            print(f"{outcome.outcome}: {outcome.case} ({outcome.ops}): {outcome.reason}", flush=True)
    print(dict(collections.Counter(o.outcome for o in outcomes)))
    if given.keep:
        given.keep.write_text(json.dumps([vars(o) for o in outcomes]), encoding="utf-8")
    if given.out:
        given.out.write_text(page(outcomes, time.monotonic() - begun, fault), encoding="utf-8")
    return 0


# What was found out about each wrong result: a pattern of case names, and the finding.
KNOWN_FAULTS = {
    r"select_last_index": "onnx2coreml ignores `select_last_index`",
    r"pool_.*dilations": "onnx2coreml ignores the dilations of a pool",
    r"ceil_output_size_reduce_by_one": "coremltools' ceil_mode keeps a window that starts in the padding",
    r"gelu_tanh": "onnx2coreml writes mode EXACT whatever `approximate` says",
    r"mod_.*(fmod|mixed_sign_float)": "onnx2coreml ignores `fmod`",
    r"spacetodepth_crd": "onnx2coreml ignores `mode` of SpaceToDepth",
    r"resize_tf_crop": "onnx2coreml ignores the region of `tf_crop_and_resize`",
    r"resize_.*antialias": "onnx2coreml ignores `antialias`",
    r"resize_.*axes_3_2": "onnx2coreml ignores the order of `axes`",
    r"resize_.*not_(larger|smaller)": "onnx2coreml ignores `keep_aspect_ratio_policy`",
    r"resize_.*half_pixel_symmetric": "onnx2coreml takes `half_pixel_symmetric` for `half_pixel`",
    r"resize_.*pytorch_half_pixel": "onnx2coreml takes `pytorch_half_pixel` for `half_pixel`",
    r"resize_.*sizes_nearest": "onnx2coreml ignores `nearest_mode`; MIL rounds down",
    r"resize_downsample_scales_linear": "MIL computes the scale anew from the sizes",
    r"negative_indices": "onnx2coreml writes negative indices, which MIL leaves undefined from iOS 17 on",
    r"matmul_1d_3d": "coremltools declares a wrong shape for a vector times a batch",
    r"nllloss": "coremltools declares a wrong shape for `select` between a vector and a tensor",
}


def fault(outcome: Outcome) -> str:
    """What is known of a wrong or refused case."""
    return next((why for form, why in KNOWN_FAULTS.items() if re.search(form, outcome.case)), "not found out")


if __name__ == "__main__":
    sys.exit(main())
