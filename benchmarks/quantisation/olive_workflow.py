"""Olive as a contender: its workflow for static INT8 with an evaluation, in an environment of its own.

The workflow does what ``edgekiln build`` of one recipe does: quantise an ONNX file, then judge and time the
float and the quantised model. Olive can't share an environment with the rest, so it is told with files.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from edgekiln.errors import EdgekilnError
from edgekiln.records import Artifact
from measuring.process import ROOT
from quantisation.contenders import MATRIX_PRODUCTS, Order, artifact

VENV = ROOT / "build" / "olive-venv"
PYTHON = VENV / "bin" / "python"
HERE = Path(__file__).resolve().parent


def absent() -> str:
    """Why there is no environment to run Olive in; "" where there is one."""
    if PYTHON.is_file():
        return ""
    return "no build/olive-venv: scripts/bench_quantisation.sh makes it where the registry has Olive"


def workflow(order: Order) -> tuple[Artifact, str]:
    """Run the workflow. Raises EdgekilnError with Olive's last words."""
    work = order.into.parent / f"{order.into.name}.olive"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "workflow.json").write_text(json.dumps(config(order, work)))
    pools = {f"{pool}_NUM_THREADS": str(order.threads) for pool in ("OMP", "MKL", "OPENBLAS")}
    done = subprocess.run(
        [str(PYTHON), str(HERE / "olive_run.py"), str(work / "workflow.json")],
        cwd=work,
        env={**os.environ, **pools, "OLIVE_DISABLE_TELEMETRY": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    made = work / "out" / "model.onnx"
    if done.returncode or not made.is_file():
        why = reason(done.stdout + "\n" + done.stderr) or f"exit code {done.returncode} and no model"
        raise EdgekilnError("running", "Olive's workflow", why, "See its log")
    shutil.copyfile(made, order.into / "model.onnx")
    shutil.rmtree(work)
    return artifact(order.into, "olive", "onnxruntime", "model.onnx"), "OnnxStaticQuantization, per channel"


def reason(log: str) -> str:
    """The last exception that Olive's log tells of (it may end with 0 all the same), else its last line; this
    checkout's own path is left out."""
    lines = [line.strip() for line in log.replace(f"{ROOT}/", "").splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception|InvalidGraph|Fail)\b", line)]
    return " ".join((raised or lines)[-1:])[:300]


def config(order: Order, work: Path) -> dict[str, Any]:
    """The workflow as Olive's own JSON: static INT8 per channel, latency always, accuracy of classes."""
    session = {"intra_op_num_threads": order.threads}
    settings = {"inference_settings": {"onnx": {"session_options": session}}}
    metrics = [_metric("latency", "avg", {"user_config": settings})]
    validation = {"folder": str((order.folder / "validation").resolve()), "count": order.scene.validation}
    if order.scene.judge == "classes" and (labelled := _labelled(order)):
        folder, labels = labelled
        validation = {"folder": str(folder), "count": len(labels), "labels": labels}
        classes = {"metric_config": {"task": "multiclass", "num_classes": 1000}}
        metrics.append(_metric("accuracy", "accuracy_score", {}, classes))
    calibration = {"folder": str((order.folder / "calibration").resolve()), "count": order.samples}
    return {
        "input_model": {"type": "ONNXModel", "model_path": str(order.graph.resolve())},
        "systems": {
            "here": {
                "type": "LocalSystem",
                "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
            }
        },
        "data_configs": [_data("calibration", calibration), _data("validation", validation, top_class=True)],
        "evaluators": {"both": {"metrics": _ranked(metrics)}},
        "passes": {
            "quantise": {
                "type": "OnnxStaticQuantization",
                "data_config": "calibration",
                "quant_format": "QDQ",
                "per_channel": True,
                "activation_type": "uint8",  # its default, int8, is slow on x86
                **({"op_types_to_quantize": list(MATRIX_PRODUCTS)} if order.scene.transformer else {}),
            }
        },
        "host": "here",
        "target": "here",
        "evaluator": "both",
        "evaluate_input_model": True,
        "cache_dir": str(work / "cache"),
        "output_dir": str(work / "out"),
    }


def _metric(kind: str, name: str, more: dict[str, Any], sub: dict[str, Any] | None = None) -> dict[str, Any]:
    sub_types = [{"name": name, **(sub or {})}]
    return {"name": kind, "type": kind, "data_config": "validation", "sub_types": sub_types, **more}


def _ranked(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Olive wants each metric's priority, from 1 without a gap."""
    for priority, metric in enumerate(reversed(metrics), start=1):
        metric["sub_types"][0]["priority"] = priority
    return metrics


def _data(name: str, params: dict[str, Any], top_class: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "user_script": str(HERE / "olive_data.py"),
        "load_dataset_config": {"type": "scene_samples", "params": params},
        "dataloader_config": {"batch_size": 1},
        **({"post_process_data_config": {"type": "top_class"}} if top_class else {}),
    }


def _labelled(order: Order) -> tuple[Path, list[int]] | None:
    table = order.folder / "validation.csv"
    if not table.is_file():
        return None
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    folder = (order.folder / rows[0]["path"]).parent.resolve()
    return folder, [int(row["label"]) for row in rows]
