"""Every model of this folder on every target, proved, as a table: docs/models.md.

    .venv/bin/python examples/zoo/table.py --write

One float recipe per target (for Hexagon 8-bit weights with 16-bit activations, which is what its compiler
takes), built by the same road as any job. ``passed`` means at least 20 dB of signal to noise against the
float model in ONNX Runtime; every other row gives the stage and the reason.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgekiln import __version__
from edgekiln.files import write_bytes
from edgekiln.job import Job, SearchOrder, load
from edgekiln.progress import shown
from edgekiln.records import Build, Failure, Proof
from edgekiln.road import build

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
FLOOR_DB = 20.0
MODELS = {
    "EfficientNet-Lite0": HERE.parent / "efficientnet_lite0" / "job.toml",
    "MobileNetV3-Large": HERE / "mobilenet_v3.toml",
    "ViT-tiny": HERE / "vit_tiny.toml",
    "BERT, 6 layers": HERE / "bert_six.toml",
    "YOLO11n-shaped": HERE / "detector.toml",
    "PP-OCRv6 detector": HERE.parent / "pp_ocr" / "job.toml",
    "Silero VAD, 16 kHz": HERE / "silero_vad.toml",
}
# Target to the device and the recipe that stand for it, and the column's title.
COLUMNS: dict[str, tuple[str, str, str]] = {
    "onnxruntime": ("pixel-9", "fp32", "ONNX Runtime (.ort)"),
    "openvino": ("intel-n100", "fp32", "OpenVINO"),
    "tensorrt": ("jetson-orin-nano-8gb", "fp32", "TensorRT"),
    "coreml": ("iphone-16-pro", "fp16", "Core ML"),
    "litert": ("pixel-9", "fp32", "LiteRT"),
    "executorch": ("pixel-9", "fp32", "ExecuTorch"),
    "qnn": ("galaxy-s24", "a16w8-static-minmax", "QNN (A16W8)"),
    "web": ("browser", "fp32", "web"),
}


def orders(job: Job, out: Path) -> Iterator[tuple[str, Job]]:
    """One job per target: that target's device and recipe alone."""
    for target, (device, recipe, _) in COLUMNS.items():
        search = SearchOrder(targets=(target,), recipes=(recipe,), threads=2)
        yield target, msgspec.structs.replace(job, devices=(device,), search=search, out=str(out / target))


def cell(found: Build, notes: list[str], model: str, target: str) -> str:
    """What one build says in a few characters; a reason becomes a note below the table."""
    if found.proofs:
        return _passed(found.proofs[0])
    lost = next((f for f in found.failures if f.target == target), None)
    notes.append(f"{model}, {COLUMNS[target][2]}: {_reason(lost)}")
    return f"failed ({len(notes)})"


def _passed(proof: Proof) -> str:
    sqnr = proof.value("sqnr_db")
    if sqnr is None:
        missing = proof.get("sqnr_db")
        return f"no figure: {missing.reason if missing else 'not judged'}"
    return f"{'passed' if sqnr >= FLOOR_DB else 'below the floor'}, {sqnr:.0f} dB"


def _reason(lost: Failure | None) -> str:
    if lost is None:
        return "no row says why: a fault of edgekiln"
    return re.sub(r"\s+", " ", f"{lost.stage}: {lost.reason}")[:400].replace("|", "\\|")


def table(out: Path, only: set[str]) -> str:
    """The Markdown of the whole table with its notes."""
    titles = [title for *_, title in COLUMNS.values()]
    lines = ["| model | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    notes: list[str] = []
    for model, path in MODELS.items():
        if only and model not in only:
            continue
        job = load(path)
        if not job.path(job.model.source).exists() and job.model.source.endswith(".onnx"):
            cells = ["file absent, see examples/zoo/README.md"] * len(COLUMNS)
        else:
            cells = []
            for target, order in orders(job, out / path.parent.name / path.stem):
                with shown(silent=True) as say:
                    cells.append(cell(build(order, say), notes, model, target))
                print(f"{model} · {target}: {cells[-1]}", flush=True)
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, start=1))]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/models.md")
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "build" / "zoo" / "table")
    parser.add_argument("--only", action="append", default=[], help="a model's name as in the table")
    given = parser.parse_args()
    made = table(given.out, set(given.only))
    print(made)
    if given.write:
        page = PAGE.read_text(encoding="utf-8")
        before, rest = page.split(BEGIN)
        _, after = rest.split(END)
        said = f"edgekiln {__version__}\n\n"
        write_bytes(PAGE, f"{before}{BEGIN}\n{said}{made}{END}{after}".encode())


if __name__ == "__main__":
    main()
