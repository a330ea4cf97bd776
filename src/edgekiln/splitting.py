"""``edgekiln split``: where a model can be cut in two, and the two parts: a head here, a tail on a server."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from edgekiln.compile.cuts import Cut, activations, cuts
from edgekiln.compile.split import split_model
from edgekiln.errors import BadInput, ConversionFailed, did_you_mean
from edgekiln.intake import Intake, samples, take_in
from edgekiln.job import Job
from edgekiln.model import data
from edgekiln.model.cost import cost
from edgekiln.model.parts import Split
from edgekiln.records import Record
from edgekiln.rows import provenance

OUT = "edgekiln-split"
SAMPLES = 32
"""So many samples, evenly taken, are run to compare head and tail with the whole."""
LISTED = "Run it without --at for the places where it can be cut"


class Places(Record, frozen=True, kw_only=True):
    """Where ``model`` can be cut at one tensor, from the front to the back."""

    model: str
    places: tuple[Cut, ...]
    warnings: tuple[str, ...] = ()


class Parted(Record, frozen=True, kw_only=True):
    """``split`` as it lies in the folder ``out``. ``sent_bytes`` leave the device for each frame, before the
    protocol's own words; ``macs_share`` is the head's part of all multiply-accumulates."""

    model: str
    out: str
    split: Split
    sent_bytes: int
    macs_share: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Whole:
    """A model as a build would take it: static, optimised."""

    intake: Intake
    graph: Path


def places(job: Job) -> Places:
    """Where ``job.model`` can be cut. Raises BadInput for a model or data that can't be used."""
    with _whole(job) as whole:
        found = cuts(whole.graph)
        return Places(model=whole.intake.model.name, places=found, warnings=whole.intake.warnings)


def split(job: Job, tensors: Sequence[str], beside: Sequence[str] = ()) -> Parted:
    """Cut ``job.model`` at ``tensors`` into the folder ``job.out``, compared on samples of ``job.data``.
    Inputs named ``beside`` go to the tail as they are.

    Raises BadInput for a tensor that does not exist (with the near names) and for a folder that holds
    something, ConversionFailed where the tensors are no cut, or one that hides nothing.
    """
    out = job.path(job.out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BadInput("splitting into", out, "something is there already", "Give another folder with --out")
    with _whole(job) as whole:
        found = whole.intake
        known = activations(whole.graph)
        for name in tensors:
            if name not in known:
                near = did_you_mean(name, known)
                cure = near if near.startswith("Did") else LISTED
                raise BadInput("cutting at", name, f"no tensor of {found.model.name} has this name", cure)
        pictures = found.calibration and data.subset(found.calibration, SAMPLES)
        probes = list(samples(found, pictures))
        try:
            made = split_model(whole.graph, tensors, probes, out, provenance(found), beside)
        except ConversionFailed as error:
            cure = f"{error.cure}. {LISTED}"
            raise ConversionFailed("splitting", job.model.source, error.why, cure) from error
        share = cost(out / made.head.path).macs / max(1, cost(whole.graph).macs)
        return Parted(
            model=found.model.name,
            out=job.out,
            split=made,
            sent_bytes=_sent_bytes(made),
            macs_share=share,
            warnings=found.warnings,
        )


def _sent_bytes(made: Split) -> int:
    """Features in 8 bits, a scale and an offset for each channel, and what goes beside them."""
    whole = made.features_elements + sum(8 * f.shape[1] for f in made.features)
    beside = (math.prod(map(int, s.shape)) * np.dtype(s.dtype).itemsize for s in made.beside_specs)
    return whole + sum(beside)


@contextlib.contextmanager
def _whole(job: Job) -> Iterator[_Whole]:
    """The job's model in a scratch folder. What it is judged on in a build is no matter here."""
    from edgekiln.compile.graph import optimise

    own = msgspec.structs.replace(job, holdout=None, eval=None, validation=None, calibration=None)
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as scratch:
        found = take_in(own, Path(scratch) / "cache")
        first = found.calibration and data.subset(found.calibration, 1)
        shapes = {s.name: s.shape for s in found.model.signature.inputs}
        graph = Path(scratch) / "graph" / "graph.onnx"
        optimise(found.graph, shapes, next(samples(found, first)), graph)
        yield _Whole(found, graph)
