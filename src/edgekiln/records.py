"""The vocabulary of the house: frozen records that travel between plain functions.

Paths inside a record are relative to the folder that travels beside it, so a record holds nothing
of the machine it was made on. Every record decodes strictly: an unknown key or a wrong type is an
error, because manifests and job files come from strangers.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import msgspec

How: TypeAlias = Literal["measured", "emulated", "predicted", "published"]
Scalar: TypeAlias = str | int | float | bool
Outcome: TypeAlias = Literal["kept", "undone", "unneeded", "runtime"]
Task: TypeAlias = Literal["classification", "detection", "segmentation", "text", "embedding", "tensors"]
TASKS: tuple[Task, ...] = get_args(Task)


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Strict decoding for all below; frozen and keyword-only are restated, for type checkers."""


# ---------------------------------------------------------------- what comes in


class TensorSpec(Record, frozen=True, kw_only=True):
    """One input or output. A named dynamic axis is a string in ``shape``."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Signature(Record, frozen=True, kw_only=True):
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Preprocess(Record, frozen=True, kw_only=True):
    """From a decoded picture to the input tensor: ``(pixel * scale - mean) / std``.

    ``fit`` says how the picture meets the frame: ``crop`` takes the centred rectangle of the frame's
    aspect whose short side is ``crop`` times the picture's, then resizes; ``stretch`` resizes the whole;
    ``letterbox`` keeps the aspect and fills the rest with ``pad`` (0..255).
    Pixels are 0..255 before ``scale``; ``mean`` and ``std`` are per channel in ``colour`` order.
    """

    width: int
    height: int
    fit: Literal["crop", "stretch", "letterbox"] = "stretch"
    crop: float = 1.0
    interpolation: Literal["nearest", "box", "bilinear", "bicubic", "lanczos"] = "bilinear"
    colour: Literal["RGB", "BGR", "GRAY"] = "RGB"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    pad: int = 0
    dtype: Literal["float32", "float16", "uint8"] = "float32"


class FileEntry(Record, frozen=True, kw_only=True):
    """A file by its path relative to the folder that travels with the record (POSIX separators)."""

    path: str
    sha256: str
    size_bytes: int


class Source(Record, frozen=True, kw_only=True):
    """Where a model came from. ``parity`` is the largest absolute difference to the source at export."""

    kind: Literal["onnx", "torch", "exported-program"]
    files: tuple[FileEntry, ...]
    exporter: str | None = None
    parity_max_error: float | None = None


class Model(Record, frozen=True, kw_only=True):
    """An ONNX graph on disk (``path`` inside its folder) and what is known about it."""

    name: str
    path: str
    sha256: str
    signature: Signature
    task: Task
    source: Source
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Sample(Record, frozen=True, kw_only=True):
    """One picture or tensor file of a data set. ``label`` is an index into the model's outputs."""

    path: str
    sha256: str
    label: int | None = None


class Rejected(Record, frozen=True, kw_only=True):
    """Something that was given and could not be used; the rest went on."""

    path: str
    reason: str


class Dataset(Record, frozen=True, kw_only=True):
    """Files that decode, in a fixed order, and those that did not. ``root`` is where they lie."""

    root: str
    samples: tuple[Sample, ...]
    rejected: tuple[Rejected, ...]
    sha256: str


# ---------------------------------------------------------------- what is made


class Pass(Record, frozen=True, kw_only=True):
    name: str
    params: dict[str, Scalar] = {}


class Recipe(Record, frozen=True, kw_only=True):
    """A named, ordered list of passes; ``compile.recipes.recipe(name)`` decodes the name."""

    name: str
    passes: tuple[Pass, ...]


class LayerLoss(Record, frozen=True, kw_only=True):
    """What 8 bits cost one layer's output, as signal over error in dB on ``n`` samples.

    ``isolated_db``: the layer alone quantised; ``cumulative_db``: everything before it too; None where the
    output is zero throughout. ``output_gain_db`` is what the model's own output gains when this layer stays
    float, and ``cost_ms`` what that costs, where a search found them out. ``in_float``: the artifact
    computes it in float.
    """

    node: str
    op: str
    output: str
    isolated_db: float | None
    cumulative_db: float | None
    n: int
    in_float: bool = False
    output_gain_db: float | None = None
    cost_ms: float | None = None
    note: str = ""


class PassReport(Record, frozen=True, kw_only=True):
    """What one pass did, and what became of it; ``note`` says why.

    ``unneeded`` found nothing to do; ``runtime`` is left to the engine, which does it when it loads.
    ``layers`` holds what quantising cost each layer, in graph order, where it was looked at."""

    name: str
    outcome: Outcome
    seconds: float
    nodes_before: int
    nodes_after: int
    note: str = ""
    ops_before: dict[str, int] = {}
    ops_after: dict[str, int] = {}
    parity_max_error: float | None = None
    layers: tuple[LayerLoss, ...] = ()

    @property
    def kept(self) -> bool:
        return self.outcome == "kept"


class Variant(Record, frozen=True, kw_only=True):
    """A model after a recipe, in one dialect. ``precisions`` counts nodes per arithmetic type."""

    model_sha256: str
    recipe: Recipe
    dialect: str
    path: str
    sha256: str
    precisions: dict[str, int]
    passes: tuple[PassReport, ...]


class Check(Record, frozen=True, kw_only=True):
    """A rule or tool that judged an artifact. ``passed`` is None where it could not be asked."""

    name: str
    passed: bool | None
    detail: str


class Placement(Record, frozen=True, kw_only=True):
    """Where a graph's operators run under one provider, delegate or unit, and what falls back.

    ``how`` is ``measured`` where the provider itself partitioned this graph here, ``emulated`` where a
    simulator did or the provider's published rules were applied by a tool, ``predicted`` for rules of
    our own. ``taken`` of ``operators`` run on ``provider`` in ``partitions`` pieces; ``fallback`` counts
    the others by type. Where it could not be asked the counts are None and ``detail`` says why.
    """

    provider: str
    how: How
    operators: int | None = None
    taken: int | None = None
    partitions: int | None = None
    fallback: dict[str, int] = {}
    detail: str = ""


class Resolution(Record, frozen=True, kw_only=True):
    """One input size (pixels) that an artifact takes, and the file that takes it."""

    height: int
    width: int
    entry: str


class Artifact(Record, frozen=True, kw_only=True):
    """A variant in a target's format. ``entry`` is the file an engine opens; ``files`` holds them all.

    ``engine`` runs it on its device; ``proof_engine`` runs it here. Where the two differ, every figure
    that the proof engine gives is ``emulated``. ``resolutions`` are the input sizes where more than one
    was asked for: all with one ``entry`` where the artifact is flexible, else each with its own.
    """

    id: str
    target: str
    recipe: str
    engine: str
    proof_engine: str
    entry: str
    files: tuple[FileEntry, ...]
    options: dict[str, Scalar]
    tools: dict[str, str]
    precisions: dict[str, int]
    passes: tuple[PassReport, ...] = ()
    checks: tuple[Check, ...] = ()
    placement: tuple[Placement, ...] = ()
    resolutions: tuple[Resolution, ...] = ()

    @property
    def flexible(self) -> bool:
        return len({r.entry for r in self.resolutions}) < len(self.resolutions)

    @property
    def size_bytes(self) -> int:
        return sum(f.size_bytes for f in self.files)


# ---------------------------------------------------------------- what is known


class Evidence(Record, frozen=True, kw_only=True):
    """One figure, and how it was obtained. A missing figure is ``value=None`` with a ``reason``. ``where`` is
    the machine that produced it, ``environment`` what it ran with, ``n`` the sample size, ``interval`` the
    95 % interval of ``value`` (for a prediction: the stated one)."""

    what: str
    unit: str
    value: float | None
    how: How | None = None
    where: str = ""
    when: str = ""
    n: int | None = None
    interval: tuple[float, float] | None = None
    environment: dict[str, Scalar] = {}
    reason: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if self.value is None and not self.reason:
            raise ValueError(f"evidence '{self.what}' has neither a value nor a reason for its absence")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"evidence '{self.what}' is not finite: give no value, and the reason")
        if self.value is not None and self.how is None:
            raise ValueError(f"evidence '{self.what}' does not say how its value was obtained")


class Proof(Record, frozen=True, kw_only=True):
    """An artifact for one device with all that is known about it there.

    ``latency_ms`` holds the raw samples of the timing run, in order, or nothing.
    """

    device: str
    artifact: Artifact
    evidence: tuple[Evidence, ...]
    latency_ms: tuple[float, ...] = ()

    def get(self, what: str) -> Evidence | None:
        return next((e for e in self.evidence if e.what == what), None)

    def value(self, what: str) -> float | None:
        found = self.get(what)
        return None if found is None else found.value


class Trial(Record, frozen=True, kw_only=True):
    """Engine options that were tried on this machine, against the artifact's own in one alternated run.

    ``ratio`` is the median latency with them over that without, below 1 is faster; ``interval`` its 95 %
    interval. ``stage``: ``screen`` looks for candidates, ``confirm`` decides on fresh samples, ``loaded`` is
    the same beside a process that keeps a core busy. ``note`` says why they were taken, or why not.
    """

    artifact_id: str
    options: dict[str, Scalar]
    stage: Literal["screen", "confirm", "loaded"]
    ratio: float | None
    interval: tuple[float, float] | None = None
    taken: bool = False
    note: str = ""


class Failure(Record, frozen=True, kw_only=True):
    """An artifact that is not there, and why. ``skipped`` means the recipe does not apply."""

    device: str
    target: str
    recipe: str
    stage: str
    kind: Literal["failed", "skipped"]
    reason: str
    cure: str = ""


class Budget(Record, frozen=True, kw_only=True):
    """The user's constraints; None is no constraint. ``agreement`` and ``sqnr_db`` are lower bounds."""

    accuracy_drop: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    latency_p95_ms: float | None = None
    memory_bytes: int | None = None
    size_bytes: int | None = None
    energy_mj: float | None = None
    power_watts: float | None = None
    fps: float | None = None


class Loser(Record, frozen=True, kw_only=True):
    artifact_id: str
    why: str


class Choice(Record, frozen=True, kw_only=True):
    """What was decided for one device.

    ``status`` is ``proven`` when for every constraint a figure for this device, its 95 % interval
    included, is within the limit. ``unproven`` names the budget fields for which that is not so: the
    figure is missing, or its interval reaches past the limit. ``none``: nothing fits.
    ``cost`` and ``quality`` are the kinds of evidence that ``front`` was drawn over: the least cost and
    the most quality win.
    """

    device: str
    status: Literal["proven", "unproven", "none"]
    artifact_id: str | None
    basis: str
    cost: str = "latency_p50_ms"
    quality: str = "sqnr_db"
    front: tuple[str, ...] = ()
    losers: tuple[Loser, ...] = ()
    unproven: tuple[str, ...] = ()
    bundle: str | None = None


class Decision(Record, frozen=True, kw_only=True):
    """The answer of a build. ``bundle`` and ``report`` are paths relative to the output folder."""

    model: str
    budget: Budget
    choices: tuple[Choice, ...]
    report: str = "report.html"

    @property
    def met(self) -> bool:
        return all(c.artifact_id is not None for c in self.choices)


class Build(Record, frozen=True, kw_only=True):
    """Everything a build found out: ``evidence.json``, and all that the report shows.

    ``calibration_checks`` are of the data and activations that ranges were found on; failures warn too.
    """

    edgekiln: str
    model: Model
    graph_passes: tuple[PassReport, ...]
    calibration: Dataset | None
    evaluation: Dataset | None
    holdout: Dataset | None
    proofs: tuple[Proof, ...]
    failures: tuple[Failure, ...]
    warnings: tuple[str, ...]
    environment: dict[str, Scalar]
    decision: Decision
    tuning: tuple[Trial, ...] = ()
    calibration_checks: tuple[Check, ...] = ()
    validation: Dataset | None = None


# ---------------------------------------------------------------- what ships


class Golden(Record, frozen=True, kw_only=True):
    """Recorded inputs and outputs (``.npz`` paths). ``atol`` is the absolute tolerance per output name that a
    re-run must keep; it covers the spread between machines of one arithmetic."""

    inputs: str
    outputs: str
    engine: str
    atol: dict[str, float]


class Alternate(Record, frozen=True, kw_only=True):
    """Another artifact of the model, for when the chosen one fails or is too slow. Its files lie below
    ``alternates/FOLDER/`` of the bundle; ``evidence`` is what was found out about it."""

    artifact: Artifact
    folder: str
    evidence: tuple[Evidence, ...] = ()


class Manifest(Record, frozen=True, kw_only=True):
    """``manifest.json`` of a bundle. ``files`` names every other file of the zip except signatures.
    ``alternates`` take over from ``artifact`` in their order; ``evidence`` is of ``artifact``."""

    schema: int
    edgekiln: str
    device: str
    model: str
    task: Task
    signature: Signature
    preprocess: Preprocess | None
    labels: str | None
    artifact: Artifact
    golden: Golden | None
    choice: Choice
    provenance: dict[str, Scalar]
    files: tuple[FileEntry, ...]
    signatures: tuple[str, ...] = ()
    alternates: tuple[Alternate, ...] = ()
    evidence: tuple[Evidence, ...] = ()
