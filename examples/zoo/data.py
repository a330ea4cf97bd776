"""Make the data of the models that take no pictures, and Silero's 16 kHz branch as a graph of its own.

    build/zoo/
    ├── bert-data/          32 seeded token sequences with masks of different lengths (.npz)
    ├── silero-data/        32 seeded half-seconds of voiced-like sound with running state (.npz)
    └── silero_vad_16k.onnx   only with --silero: the file's branch for 16000 samples a second

The models of pictures use the photographs of ``examples/efficientnet_lite0/data.py``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.files import write_bytes
from edgekiln.prove.arrays import npz_bytes

HERE = Path(__file__).resolve().parent
DEFAULT_OUT = HERE.parents[1] / "build" / "zoo"
SEQUENCE, VOCABULARY = 128, 30522
SAMPLES_PER_SECOND, WINDOW = 16000, 576
COUNT = 32


def sentences(rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Token ids (int64), their tail masked out (float32: 1 is seen, 0 is not): (1, 128) each."""
    length = int(rng.integers(SEQUENCE // 4, SEQUENCE + 1))
    seen = (np.arange(SEQUENCE) < length)[None]
    ids = rng.integers(1, VOCABULARY, (1, SEQUENCE), dtype=np.int64) * seen
    return {"input_ids": ids, "attention_mask": seen.astype(np.float32)}


def sound(rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """A window of harmonics of a speaking voice's pitch in noise, and a state as the network leaves it."""
    time = np.arange(WINDOW) / SAMPLES_PER_SECOND
    pitch, loud = rng.uniform(90, 260), rng.uniform(0, 0.2)
    wave = sum(loud / k * np.sin(2 * np.pi * k * pitch * time + rng.uniform(0, 6)) for k in range(1, 12))
    noisy = wave + rng.normal(0, 0.01, WINDOW)
    state = np.tanh(rng.normal(0, 0.5, (2, 1, 128)))
    return {"input": noisy.astype(np.float32)[None], "state": state.astype(np.float32)}


def branch_16k(source: Path, target: Path) -> None:
    """Write ``source`` with its input ``sr`` fixed at 16000: simplifying then leaves one branch of its If."""
    import onnx

    model = onnx.load(source)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(SAMPLES_PER_SECOND, np.int64), "sr"))
    kept = [i for i in model.graph.input if i.name != "sr"]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    write_bytes(target, model.SerializeToString())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--silero", type=Path, help="silero_vad_op18_ifless.onnx of the package silero-vad")
    given = parser.parse_args()
    for name, make in (("bert-data", sentences), ("silero-data", sound)):
        rng = np.random.default_rng(0)
        for number in range(COUNT):
            write_bytes(given.out / name / f"{number:02d}.npz", npz_bytes(make(rng)))
    if given.silero:
        branch_16k(given.silero, given.out / "silero_vad_16k.onnx")
    print(f"made the data in {given.out}")


if __name__ == "__main__":
    main()
