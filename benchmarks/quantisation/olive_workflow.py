"""Olive as a contender: its workflow for static INT8 with an evaluation, in an environment of its own.

The workflow does what ``edgekiln build`` of one recipe does: quantise an ONNX file, then judge and time the
float and the quantised model. Olive can't share an environment with the rest, so it is told with files.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgekiln.errors import EdgekilnError
from edgekiln.records import Artifact
from measuring.process import ROOT, say
from quantisation.contenders import Order, artifact

VENV = ROOT / "build" / "olive-venv"
PYTHON = VENV / "bin" / "python"
TORCH = "torch==2.13.0"
PACKAGES = ("olive-ai==0.13.0", "onnxruntime==1.32.0", "onnx==1.23.2", "numpy==2.4.6", "requests")
"""The runtime that everyone else has; Olive imports requests and does not name it."""
HERE = Path(__file__).resolve().parent
INSTALL_SECONDS = 900


def ensure() -> str:
    """Make the environment where it is not there; why it can't be, or "" where it stands."""
    if PYTHON.is_file() and (VENV / "whole").is_file():
        return ""
    say("making an environment for Olive")
    uv = [str(Path(sys.executable).parent / "uv"), "pip", "install", "--quiet", "--python", str(PYTHON)]
    steps = (
        [sys.executable, "-m", "venv", "--clear", str(VENV)],
        [str(PYTHON), "-m", "pip", "install", "--quiet", TORCH],  # pip may be configured for a CPU build
        [*uv, TORCH, *PACKAGES],
        [str(PYTHON), "-c", "import olive"],
    )
    try:
        for step in steps:
            subprocess.run(step, capture_output=True, text=True, check=True, timeout=INSTALL_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        last = (str(getattr(error, "stderr", "") or error).strip().splitlines() or ["no reason given"])[-1]
        return f"its environment could not be made: {last[:300]}"
    (VENV / "whole").write_text("")
    return ""


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
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or [f"exit {done.returncode}"]
        raise EdgekilnError("running", "Olive's workflow", last[0][:400], "See its log")
    shutil.copyfile(made, order.into / "model.onnx")
    shutil.rmtree(work)
    return artifact(order.into, "olive", "onnxruntime", "model.onnx"), "OnnxStaticQuantization, per channel"


def config(order: Order, work: Path) -> dict[str, Any]:
    """The workflow as Olive's own JSON: static INT8 per channel, latency always, accuracy of classes."""
    session = {"intra_op_num_threads": order.threads}
    settings = {"inference_settings": {"onnx": {"session_options": session}}}
    metrics = [_metric("latency", "avg", 2, {"user_config": settings})]
    validation = {"folder": str((order.folder / "validation").resolve()), "count": order.scene.validation}
    if order.scene.judge == "classes" and (labelled := _labelled(order)):
        folder, labels = labelled
        validation = {"folder": str(folder), "count": len(labels), "labels": labels}
        classes = {"metric_config": {"task": "multiclass", "num_classes": 1000}}
        metrics.append(_metric("accuracy", "accuracy_score", 1, {}, classes))
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
        "evaluators": {"both": {"metrics": metrics}},
        "passes": {
            "quantise": {
                "type": "OnnxStaticQuantization",
                "data_config": "calibration",
                "quant_format": "QDQ",
                "per_channel": True,
            }
        },
        "host": "here",
        "target": "here",
        "evaluator": "both",
        "evaluate_input_model": True,
        "cache_dir": str(work / "cache"),
        "output_dir": str(work / "out"),
    }


def _metric(
    kind: str, name: str, priority: int, more: dict[str, Any], sub: dict[str, Any] | None = None
) -> dict[str, Any]:
    sub_type = {"name": name, "priority": priority, **(sub or {})}
    return {"name": kind, "type": kind, "data_config": "validation", "sub_types": [sub_type], **more}


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
