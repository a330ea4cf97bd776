"""A build's order: read from a TOML file, or put together by the command line and the Python API.

name = "my-model"
devices = ["host", "jetson-orin-nano-8gb"]
data = "photos/"              # calibration; relative paths are relative to this file
holdout = "more-photos/"      # optional: agreement is judged here; else a quarter of data is kept back
calibration = "calibration.npz"  # optional: ranges of an earlier build, used instead of observing data
eval = "labelled/"            # optional: class folders, or a CSV with path,label
validation = "others/"        # optional: a search holds its bound here; labelled as eval, or not
out = "build/my-model"

[model]
source = "model.onnx"         # or package.module:factory, or program.pt2
weights = "weights.pth"       # for a factory; package:NAME/PATH is a file of an installed package
labels = "labels.txt"         # one class name a line
task = "classification"       # detection, segmentation, text, embedding, tensors; guessed if left out
input_shape = "1x3x224x224"   # or a table: { name = "1x3x224x224" }
sizes = [224, "320x416"]      # several input sizes from one build: HEIGHTxWIDTH, the base first

[qat]                         # the fields of QatOrder: a trainer for recipes with +qat
trainer = "train:fine_tune"   # package.module:function, beside this file or installed

[preprocess]                  # the fields of records.Preprocess
[metric]                      # the fields of MetricOrder: how outputs and labels of the task are read
[budget]                      # max_drop, agreement, sqnr_db, latency_ms, memory_mb, size_mb, ...
[search]                      # targets, recipes, threads, samples
tune_seconds = 20             # search this machine's engine options for so long; 0 (the default) does not
convert_seconds = 1200        # a conversion that takes longer is ended: a row in the report
calibrate_processes = 1       # more observe samples side by side, each with a model of its own in memory
convert_memory_mb = 8000      # and one that takes more; left out: four fifths of the machine's memory
"""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from edgekiln.errors import BadInput, did_you_mean
from edgekiln.records import Budget, Preprocess, Record, Scalar, Task

MAX_JOB_BYTES = 1 << 20
MAX_FIGURE = 1e15
MAX_SIDE = 16384
MAX_SIZES = 16
MAX_TUNE_SECONDS = 3600.0
MAX_PROCESSES = 64
MAX_ALTERNATES = 8

Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""


class ModelOrder(Record, frozen=True, kw_only=True):
    source: str
    weights: str | None = None
    labels: str | None = None
    task: Task | None = None
    input_shape: str | dict[str, str] | None = None
    sizes: tuple[int | str, ...] | None = None


class BudgetOrder(Record, frozen=True, kw_only=True):
    """The budget in the units of the command line."""

    max_drop: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    latency_ms: float | None = None
    memory_mb: float | None = None
    size_mb: float | None = None
    energy_mj: float | None = None
    power_watts: float | None = None
    fps: float | None = None

    def budget(self) -> Budget:
        return Budget(
            accuracy_drop=self.max_drop,
            agreement=self.agreement,
            sqnr_db=self.sqnr_db,
            latency_p95_ms=self.latency_ms,
            memory_bytes=None if self.memory_mb is None else round(self.memory_mb * 1e6),
            size_bytes=None if self.size_mb is None else round(self.size_mb * 1e6),
            energy_mj=self.energy_mj,
            power_watts=self.power_watts,
            fps=self.fps,
        )


class SearchOrder(Record, frozen=True, kw_only=True):
    targets: tuple[str, ...] | None = None
    recipes: tuple[str, ...] | None = None
    threads: int | None = None
    samples: int = 300
    tune_seconds: float = 0.0
    convert_seconds: float = 1200.0
    convert_memory_mb: float | None = None
    calibrate_processes: int = 1
    alternates: int = 2


class MetricOrder(Record, frozen=True, kw_only=True):
    """How a task's outputs and labels are read; each task takes some of these and leaves the others.

    ``labels``: COCO JSON (detection), a folder of masks (segmentation), a CSV of path,text (text).
    ``outputs`` names those to read, in the decoder's order. Detection: ``decoder``, the least ``score`` and
    the ``iou`` of the suppression, the ``most`` detections, ``agreement_score`` from which the float model's
    own are the truth; NanoDet's ``strides``, ``bins``, ``offset`` (of cell centres), ``logits``; boxes as
    shares of the frame if ``normalised``. Segmentation: ``classes``, ``ignore``, ``threshold`` of a single
    channel, ``channels_last``. Text: ``charset``, ``blank``, ``unit``; ``characters`` is what was read from
    the charset. Embedding: ``pool`` over tokens.
    """

    labels: str | None = None
    outputs: tuple[str, ...] = ()
    decoder: Literal["yolo", "nanodet", "boxes"] | None = None
    score: float = 0.01
    iou: float = 0.6
    most: int = 100
    agreement_score: float = 0.3
    strides: tuple[int, ...] = (8, 16, 32)
    bins: int = 8
    offset: float = 0.5
    logits: bool = False
    normalised: bool = False
    classes: int | None = None
    ignore: int = 255
    threshold: float = 0.5
    channels_last: bool = False
    charset: str | None = None
    characters: tuple[str, ...] = ()
    blank: int = 0
    unit: Literal["word", "character"] = "word"
    pool: Literal["none", "first", "mean"] = "none"


class QatOrder(Record, frozen=True, kw_only=True):
    """Quantisation-aware fine-tuning of a PyTorch factory's model by ``trainer``, package.module:function.

    It is called as ``trainer(model, **arguments)``, with ``epochs``, ``steps`` and ``data`` (an absolute
    path, whose contents count in the cache) where they are given. ``seconds`` bounds it.
    """

    trainer: str
    epochs: int | None = None
    steps: int | None = None
    data: str | None = None
    seed: int = 0
    seconds: float = 3600.0
    arguments: dict[str, Scalar] = msgspec.field(default_factory=dict)

    def given(self) -> dict[str, Scalar]:
        """All numbers and words that go to the trainer by name."""
        counts = {"epochs": self.epochs, "steps": self.steps}
        return {**self.arguments, **{k: v for k, v in counts.items() if v is not None}}


class Job(Record, frozen=True, kw_only=True):
    """``base`` is the folder that relative paths start from; it is set by ``load``."""

    model: ModelOrder
    devices: tuple[str, ...] = ("host",)
    name: str | None = None
    data: str | None = None
    holdout: str | None = None
    calibration: str | None = None
    eval: str | None = None
    validation: str | None = None
    out: str = "edgekiln-out"
    preprocess: Preprocess | None = None
    metric: MetricOrder = MetricOrder()
    qat: QatOrder | None = None
    budget: BudgetOrder = BudgetOrder()
    search: SearchOrder = SearchOrder()
    base: str = "."

    def path(self, given: str) -> Path:
        """A path of the job: absolute, inside an installed package, or relative to ``base``."""
        return located(given, Path(self.base))


def load(path: Path) -> Job:
    """Read a job file. Raises BadInput for bad TOML, an unknown key (with the near ones), a wrong type."""
    try:
        if path.is_file() and path.stat().st_size > MAX_JOB_BYTES:
            raise BadInput("reading the job file", path, "it is larger than 1 MiB", "Give a job file")
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput("reading the job file", path, "there is no such file", "Check the path") from error
    except OSError as error:
        raise BadInput(
            "reading the job file", path, f"it can't be read ({error.strerror})", "Check the path"
        ) from error
    except (ValueError, RecursionError) as error:  # tomllib lets int()'s and its own recursion's through
        raise BadInput(
            "reading the job file", path, f"it is not valid TOML ({error})", "Mend that line"
        ) from error
    try:
        if "base" in data:
            raise msgspec.ValidationError("Object contains unknown field `base`")
        job = msgspec.convert(data | {"base": str(path.parent)}, type=Job)
    except msgspec.ValidationError as error:
        raise BadInput("reading the job file", path, *_explain(str(error))) from error
    check(job, path)
    return job


def check(job: Job, where: object) -> None:
    """Raises BadInput for figures that no job can mean."""
    numbers = {f: getattr(job.budget, f) for f in job.budget.__struct_fields__}
    for key, value in numbers.items():
        if value is not None and not abs(value) < MAX_FIGURE:
            why = f"{key} = {value} is no number to compare with"
            raise BadInput("reading the budget of", where, why, "Give a finite number, or leave it out")
        if value is not None and key not in {"max_drop", "sqnr_db"} and not value > 0:
            raise BadInput(
                "reading the budget of", where, f"{key} = {value} is not positive", "Give a positive one"
            )
    drop = numbers["max_drop"]
    if drop is not None and not 0 <= drop < 1:
        why = f"max_drop = {drop} is not a share between 0 and 1"
        raise BadInput("reading the budget of", where, why, "0.01 means one percent point")
    if numbers["agreement"] is not None and numbers["agreement"] > 1:
        raise BadInput("reading the budget of", where, "agreement is above 1", "Give a share, such as 0.97")
    if not job.devices:
        raise BadInput(
            "reading", where, "it names no device", "Give --device NAME; edgekiln devices lists them"
        )
    input_sizes(job)
    _check_metric(job.metric, where)
    _check_qat(job.qat, where)
    if job.search.threads is not None and job.search.threads < 1:
        raise BadInput("reading", where, "threads must be at least 1", "Give --threads 1 or more")
    for key in ("convert_seconds", "convert_memory_mb"):
        limit = getattr(job.search, key)
        if limit is not None and not 0 < limit < MAX_FIGURE:
            raise BadInput("reading", where, f"{key} = {limit} is no limit", "Give a positive number")
    if not 0 <= job.search.tune_seconds <= MAX_TUNE_SECONDS:
        why = f"tune_seconds = {job.search.tune_seconds} is not from 0 to {MAX_TUNE_SECONDS:g}"
        raise BadInput("reading", where, why, "20 is enough for most; 0 switches tuning off")
    if not 1 <= job.search.calibrate_processes <= MAX_PROCESSES:
        why = f"calibrate_processes must be 1 to {MAX_PROCESSES}"
        raise BadInput("reading", where, why, "Leave it out, or give the number of spare cores")
    if not 0 <= job.search.alternates <= MAX_ALTERNATES:
        why = f"alternates = {job.search.alternates} is not from 0 to {MAX_ALTERNATES}"
        raise BadInput("reading", where, why, "2 is enough for most; 0 ships the chosen artifact alone")
    if job.search.samples < 1:
        raise BadInput("reading", where, "samples must be at least 1", "Give --samples 1 or more")


def _check_metric(order: MetricOrder, where: object) -> None:
    """Raises BadInput for options of [metric] that nothing can mean."""
    sound = {
        "score": 0 <= order.score < 1,
        "iou": 0 < order.iou <= 1,
        "most": 1 <= order.most <= 100,
        "agreement_score": 0 < order.agreement_score < 1,
        "strides": bool(order.strides) and all(1 <= s <= 1024 for s in order.strides),
        "bins": 2 <= order.bins <= 256,
        "offset": 0 <= order.offset <= 1,
        "classes": order.classes is None or 2 <= order.classes <= 255,
        "ignore": 0 <= order.ignore <= 255,
        "threshold": abs(order.threshold) < MAX_FIGURE,
        "characters": not order.characters,
    }
    wrong = next((key for key, good in sound.items() if not good), None)
    if wrong == "characters":
        cure = 'Give charset = "characters.txt", one a line'
        raise BadInput("reading [metric] of", where, "characters are read from the charset", cure)
    if wrong is not None:
        why = f"{wrong} = {getattr(order, wrong)} is out of its range"
        raise BadInput("reading [metric] of", where, why, "See docs/job.md for what it takes")


def _check_qat(order: QatOrder | None, where: object) -> None:
    """Raises BadInput for figures of [qat] that no training can mean."""
    if order is None:
        return
    doing = "reading [qat] of"
    twice = {"epochs", "steps", "data"} & set(order.arguments)
    if twice:
        why = f"{min(twice)} stands in [qat.arguments]"
        raise BadInput(doing, where, why, f"Write it in [qat] itself: {min(twice)} = ...")
    for key, least in (("epochs", 1), ("steps", 1), ("seed", 0)):
        value = getattr(order, key)
        if value is not None and not least <= value < 1 << 32:
            raise BadInput(doing, where, f"{key} = {value} is out of its range", f"Give {least} or more")
    if not 0 < order.seconds < MAX_FIGURE:
        raise BadInput(doing, where, f"seconds = {order.seconds} is no limit", "Give a positive number")


def input_shapes(order: ModelOrder) -> dict[str, tuple[int, ...]]:
    """``{"": (1, 3, 224, 224)}`` for a bare shape, by name for a table; empty where none was given."""
    given = order.input_shape
    if given is None:
        return {}
    table = given if isinstance(given, dict) else {"": given}
    return {name: parse_shape(text) for name, text in table.items()}


def parse_shape(text: str) -> tuple[int, ...]:
    """``1x3x224x224`` (or with commas) as numbers. Raises BadInput for anything else."""
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}([x,]0*[1-9][0-9]{0,8}){0,9}", text):
        raise BadInput(
            "reading the input shape", text, "it is not like 1x3x224x224", "Give --input-shape 1x3x224x224"
        )
    return tuple(int(n) for n in re.split("[x,]", text))


def input_sizes(job: Job) -> tuple[Size, ...]:
    """The (height, width) asked for, each once, the base first: the preprocessing's, else the first given.

    Empty where none was given. Raises BadInput for what is no size, for more than MAX_SIZES, and where the
    preprocessing's size is none of them.
    """
    found = tuple(dict.fromkeys(_size(given) for given in job.model.sizes or ()))
    doing = "reading the sizes of"
    if len(found) > MAX_SIZES:
        why = f"{len(found)} sizes are more than {MAX_SIZES}"
        raise BadInput(doing, job.model.source, why, "Ask for fewer: each is proved on its own")
    if not found or job.preprocess is None:
        return found
    base = (job.preprocess.height, job.preprocess.width)
    if base not in found:
        why = f"[preprocess] says {size_text(base)}, which is none of {sizes_text(found)}"
        raise BadInput(doing, job.model.source, why, f'Add "{size_text(base)}" to them; it is the base')
    return base, *(size for size in found if size != base)


def _size(given: int | str) -> Size:
    text = str(given)
    parts = text.split("x") if re.fullmatch(r"[0-9]{1,5}(x[0-9]{1,5})?", text) else ["0"]
    height, width = int(parts[0]), int(parts[-1])
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        why = f"it is neither a side (224) nor HEIGHTxWIDTH (320x416) of 1 to {MAX_SIDE} pixels"
        raise BadInput("reading the input size", text, why, "Give --size 224 or --size 320x416")
    return height, width


def size_text(size: Size) -> str:
    """``320x416``: height, then width, as job files and evidence names write it."""
    return f"{size[0]}x{size[1]}"


def sizes_text(sizes: Iterable[Size]) -> str:
    return ", ".join(size_text(s) for s in sizes)


def located(given: str, base: Path) -> Path:
    """Resolve ``package:NAME/PATH`` to a file of an installed package, anything else against ``base``."""
    if not given.startswith("package:"):
        return base / given
    package, _, inner = given.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:  # a module without a specification, such as __main__
        spec = None
    if spec is None or not spec.submodule_search_locations:
        why = f"no package '{package}' is installed"
        raise BadInput("looking for", given, why, "Install it, or give a path")
    if ".." in Path(inner).parts or Path(inner).is_absolute():
        raise BadInput("looking for", given, "the path leaves the package", "Give a path inside it")
    return Path(next(iter(spec.submodule_search_locations))) / inner


_UNKNOWN = re.compile(r"unknown field `(?P<key>[^`]*)`(?: - at `\$\.?(?P<at>[\w.]*)`)?")


def _explain(message: str) -> tuple[str, str]:
    """msgspec's message as why and cure."""
    match = _UNKNOWN.search(message)
    if not match:
        return message.replace("`", "'"), "Mend that value"
    kind: Any = Job
    for part in (match["at"] or "").split("."):
        field = next((f for f in msgspec.structs.fields(kind) if f.name == part), None)
        if field is not None:  # a key may itself look like msgspec's words
            options = (field.type, *getattr(field.type, "__args__", ()))
            kind = next(t for t in options if isinstance(t, type) and issubclass(t, msgspec.Struct))
    known = [f.name for f in msgspec.structs.fields(kind) if f.name != "base"]
    where = f" in [{match['at']}]" if match["at"] else ""
    return f"unknown key '{match['key']}'{where}", did_you_mean(match["key"], known)
