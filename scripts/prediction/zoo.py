"""Rebuild the architectures of published measurements and count their layers: zoo.json beside this file.

A published latency names a model and nothing of its layers. Here each of those models that a public package
(or a definition of a few lines below) can build is built without weights, exported to ONNX, and counted
by the same ``edgekiln.model.workload`` that counts a user's model. ``expected`` is the number of
parameters that the publisher states, in millions: a model that is off by more than 3 % is another one,
and is left out and named. Nothing is downloaded but the packages, which no part of edgekiln needs:

    pip install torch torchvision timm transformers segmentation-models-pytorch ultralytics onnx
    PYTHONPATH=src python scripts/prediction/zoo.py [NAME ...]

ultralytics (AGPL) serves here as a description of the published models alone; only counts leave it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import architectures
import borrowed
import msgspec
import torch

from edgekiln.model.workload import Workload, workload

ZOO = Path(__file__).with_name("zoo.json")
TOLERANCE = 0.03


class Entry(NamedTuple):
    """A model of the table by its published name; ``family`` is what is held out together."""

    name: str
    family: str
    make: Callable[[], torch.nn.Module]
    inputs: tuple[Any, ...]
    expected: float | None = None


def exported(module: torch.nn.Module, inputs: tuple[Any, ...], into: Path) -> Path:
    """``module`` as ONNX, through tracing: the graph that exporters of the published tables make, too."""
    path = into / "model.onnx"
    module.eval()
    with torch.no_grad():
        torch.onnx.export(module, inputs, str(path), opset_version=17, dynamo=False, verbose=False)
    return path


def counted(entry: Entry) -> Workload:
    """Raises ValueError where the model is not the published one."""
    torch.manual_seed(0)
    module = entry.make()
    stated = entry.expected
    have = sum(p.numel() for p in module.parameters()) / 1e6
    if stated is not None and abs(have - stated) > max(TOLERANCE * stated, 0.006):
        raise ValueError(f"{have:.3f} M parameters, the publisher states {stated} M")
    with tempfile.TemporaryDirectory() as scratch:
        return workload(exported(module, entry.inputs, Path(scratch)))


def entries(sources: Path | None) -> Iterator[Entry]:
    for row in architectures.table():
        yield Entry(*row)
    if sources is not None:
        for row in borrowed.table(sources.resolve()):
            yield Entry(*row)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="*", help="only these; the others stay as they are")
    parser.add_argument("--sources", type=Path, help="checked-out repositories for borrowed.py")
    parser.add_argument("--out", type=Path, default=ZOO)
    given = parser.parse_args()
    wanted = set(given.name)
    found: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    left_out = []
    for entry in entries(given.sources):
        if wanted and entry.name not in wanted:
            continue
        try:
            made = counted(entry)
        except Exception as error:
            left_out.append(f"{entry.name}: {type(error).__name__}: {str(error)[:200]}")
            if wanted:
                traceback.print_exc()
            found.pop(entry.name, None)
            continue
        if made.unresolved:
            print(f"  {entry.name}: {made.unresolved} of {made.nodes} nodes not counted")
        found[entry.name] = {"family": entry.family, "workload": msgspec.to_builtins(made)}
        print(f"{entry.name}: {made.macs / 1e9:.3f} GMAC, {made.weights / 1e6:.2f} M weights", flush=True)
    lines = [f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in sorted(found.items())]
    given.out.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(
        f"{len(found)} models in {given.out.name}; left out:",
        *left_out or ["none"],
        sep="\n  ",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
