"""What a job brings: the model, its data, and the questions that must be settled before any work.

Everything that the user did not say and the program assumed becomes a warning of the build.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import site
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekiln.cache import step
from edgekiln.errors import BadInput
from edgekiln.files import sha256_file, sha256_record
from edgekiln.job import Job, MetricOrder, Size, input_shapes, input_sizes, size_text, sizes_text
from edgekiln.labelling import classes_of, labelled, metric_order, read_labels
from edgekiln.model import data, onnx_file, preprocess, signature
from edgekiln.model.importers import import_model
from edgekiln.prove.environment import version_of
from edgekiln.prove.metrics import Metric, metric_of
from edgekiln.records import Dataset, Model, Rejected, Sample, Signature, TensorSpec

RANDOM_SAMPLES = 8
HELD_BACK = 0.25


@dataclass(frozen=True)
class Intake:
    """``model.onnx`` in ``folder`` with a static signature, and its data sets. ``random`` marks that no
    data was given, so that figures rest on seeded random inputs.

    ``sizes`` are the (height, width) asked for where they are more than one, the base first: the model and
    its figures are of the base, and ``at`` gives the others. ``symbolic`` is then the graph's own signature.
    ``truths`` are the labels of the evaluation's samples, in the form of the task's metric. A search for
    mixed precision holds its bound on ``validation``, whose ``validation_truths`` are () without labels.
    """

    folder: Path
    model: Model
    calibration: Dataset | None
    evaluation: Dataset | None
    holdout: Dataset | None
    warnings: tuple[str, ...]
    sizes: tuple[Size, ...] = ()
    symbolic: Signature | None = None
    metric: MetricOrder = dataclasses.field(default_factory=MetricOrder)
    truths: tuple[Any, ...] = ()
    validation: Dataset | None = None
    validation_truths: tuple[Any, ...] = ()

    def at(self, size: Size) -> Intake:
        """The same model and data at one size: its static signature, and the preprocessing to it."""
        if self.symbolic is None:
            return self
        fixed = signature.fix_shapes(self.symbolic, _defaults(self.symbolic, size))
        spec = self.model.preprocess
        sized = None if spec is None else msgspec.structs.replace(spec, height=size[0], width=size[1])
        model = msgspec.structs.replace(self.model, signature=fixed, preprocess=sized)
        return dataclasses.replace(self, model=model, sizes=(), symbolic=None)

    @property
    def graph(self) -> Path:
        return self.folder / self.model.path

    @property
    def random(self) -> bool:
        return self.holdout is None


def take_in(job: Job, cache: Path) -> Intake:
    """Import the model and read the data of ``job``. Raises BadInput naming what can't be used."""
    labels = read_labels(job.path(job.model.labels)) if job.model.labels else ()
    sizes = input_sizes(job)
    folder, model = _imported(job, labels, cache, sizes)
    symbolic = model.signature
    if sizes:
        _check_sizes(sizes, model)
    pictures = None if job.data is None else _scanned(job, job.data, cache)
    warnings: list[str] = []
    model, more = _settled(job, model, pictures, sizes)
    warnings += more
    metric = metric_order(job, folder, model)
    own = metric_of(model.task, metric, model)
    evaluation: Dataset | None = None
    truths: tuple[Any, ...] = ()
    if job.eval is not None:
        evaluation, truths = _labelled(job, job.eval, cache, model, metric, own)
    validation, validation_truths = _validation(job, cache, model, metric, own)
    pictures = None if pictures is None else _fitting(pictures, model)
    calibration, holdout = pictures, pictures
    if job.holdout is not None:
        holdout = _fitting(_scanned(job, job.holdout, cache), model)
    elif pictures is not None and len({s.sha256 for s in pictures.samples}) > 1:
        calibration, holdout = data.split(pictures, 1 - HELD_BACK)
    elif evaluation is not None:
        holdout = evaluation
    warnings += _overlap(calibration, holdout, "holdout", "agreement")
    if evaluation is not None and evaluation is not holdout:
        warnings += _overlap(calibration, evaluation, "labelled", "accuracy")
    for other, name, figure in ((holdout, "holdout", "agreement"), (evaluation, "labelled", "accuracy")):
        if other is not None and other is not calibration:
            warnings += _overlap(validation, other, name, figure, "validation")
    warnings += _overlap(calibration, validation, "validation", "the bound")
    if holdout is None:
        warnings.append(
            f"no data was given: {'' if job.calibration else 'nothing can be calibrated, '}accuracy is not "
            f"known, and parity rests on {RANDOM_SAMPLES} random inputs; give --data with pictures like "
            "those of the field"
        )
    if several := len(sizes) > 1:
        _check_pictures(sizes, (calibration, evaluation, holdout, validation))
    found = (folder, model, calibration, evaluation, holdout, tuple(warnings))
    rest = (metric, truths, validation, validation_truths)
    return Intake(*found, sizes, symbolic, *rest) if several else Intake(*found, (), None, *rest)


def _labelled(
    job: Job, given: str, cache: Path, model: Model, order: MetricOrder, own: Metric | None
) -> tuple[Dataset, tuple[Any, ...]]:
    """The samples of ``given`` that fit the model and have a truth, and the truths."""
    names = classes_of(model, job.path(given))
    scanned = _scanned(job, given, cache, names or (), labelled=names is not None)
    return labelled(_fitting(scanned, model), model, order, own)


def _validation(
    job: Job, cache: Path, model: Model, order: MetricOrder, own: Metric | None
) -> tuple[Dataset | None, tuple[Any, ...]]:
    """What a search holds its bound on: labelled as ``eval`` is, or pictures alone."""
    if job.validation is None:
        return None, ()
    root = job.path(job.validation)
    in_classes = model.task in ("classification", "embedding") and bool(data.class_names(root))
    if in_classes or order.labels is not None:
        return _labelled(job, job.validation, cache, model, order, own)
    return _fitting(_scanned(job, job.validation, cache), model), ()


def _scanned(
    job: Job, given: str, cache: Path, labels: tuple[str, ...] = (), labelled: bool = False
) -> Dataset:
    """``data.scan`` without the folders that this program itself may have put below: output and cache."""
    root, out = job.path(given), job.path(job.out)
    if root.is_dir() and out.resolve() == root.resolve():
        why = "it is the output folder as well"
        raise BadInput("reading the data in", root, why, "Give another --out; what is built is no data")
    return data.scan(root, labels=labels, labelled=labelled, skip=(out, cache))


def _overlap(
    calibration: Dataset | None, other: Dataset | None, name: str, figure: str, first: str = "calibration"
) -> list[str]:
    """A warning where artifacts are judged on what they were calibrated on, or chosen by."""
    if calibration is None or other is None:
        return []
    shared = len({s.sha256 for s in calibration.samples} & {s.sha256 for s in other.samples})
    if not shared:
        return []
    many = "1 file is" if shared == 1 else f"{shared} files are"
    return [
        f"{many} both in the {first} and in the {name} data: {figure} on them flatters the quantised "
        "artifacts"
    ]


def samples(intake: Intake, dataset: Dataset | None) -> Iterator[dict[str, NDArray[Any]]]:
    """The model's inputs for each sample of ``dataset``, or seeded random ones where it is None."""
    if dataset is not None:
        yield from data.inputs(dataset, intake.model)
        return
    for seed in range(RANDOM_SAMPLES):
        yield random_inputs(intake.model.signature, seed)


def random_inputs(sig: Signature, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Seeded arrays that fit a static signature: normal floats, zeros and ones for the rest."""
    rng = np.random.default_rng(seed)
    return {spec.name: _random(spec, rng) for spec in sig.inputs}


# ---------------------------------------------------------------- the model


def search_path(job: Job) -> tuple[Path, ...]:
    """Where the modules that a job names are looked for before the installed ones."""
    return Path(job.base).resolve(), Path.cwd()


def source_is_file(job: Job) -> bool:
    """Whether the model's source is a file, and no factory."""
    return ":" not in job.model.source or job.path(job.model.source).exists()


def _imported(job: Job, labels: tuple[str, ...], cache: Path, sizes: tuple[Size, ...]) -> tuple[Path, Model]:
    source, weights = job.model.source, job.model.weights
    search, is_file = search_path(job), source_is_file(job)
    located = str(job.path(source)) if is_file else source
    weights_path = None if weights is None else str(job.path(weights))
    preset = job.preprocess
    shapes = import_shapes(job, sizes, is_file)

    def produce(into: Path) -> Model:
        return import_model(
            located,
            into,
            name=job.name,
            weights=weights_path,
            input_shapes=shapes,
            preprocess=preset,
            labels=labels,
            task=job.model.task,
            search_path=search,
            sizes=sizes,
        )

    code = _code_of(Path(located)) if is_file else factory_code(source, search)
    given = {"weights": weights_path and _hash_of(Path(weights_path)), "code": code, "tools": _versions()}
    key = [job.name, located, given, shapes, preset, labels, job.model.task, [] if is_file else sizes]
    folder, model, _ = step(cache, "import", key, Model, produce)
    return folder, model


def import_shapes(job: Job, sizes: tuple[Size, ...], is_file: bool) -> dict[str, tuple[int, ...]]:
    """What the import fixes: where sizes are asked for nothing in a file, a factory's example at the base."""
    given = input_shapes(job.model)
    if not sizes:
        return given
    doing = "reading the sizes of"
    if given and is_file:
        why = "both sizes and an input shape were given"
        raise BadInput(doing, job.model.source, why, "Leave the input shape out; the sizes say it")
    if not is_file and not given and job.preprocess is None:
        return {"": (1, 3, *sizes[0])}
    for shape in given.values():
        if shape[-2:] != sizes[0] and shape[-3:-1] != sizes[0]:
            why = f"the input shape {shape} is not of the base size, {size_text(sizes[0])}"
            raise BadInput(doing, job.model.source, why, "Give the input shape of the base size")
    return given


def _code_of(path: Path) -> dict[str, str]:
    """Hashes of a model file and of the external weights that it names; empty where it can't be read.

    Whatever is wrong with a file, the importer says it better than a cache key could.
    """
    files = [path] if path.is_file() else []
    if files and path.suffix != ".pt2":
        with contextlib.suppress(BadInput):
            files += onnx_file.data_files(path)
    return {str(p): _hash_of(p) for p in files}


def factory_code(source: str, search: tuple[Path, ...]) -> dict[str, str]:
    """Hashes of what a factory may import: its package or the modules beside it, and every installed version.

    The files that its code reads by itself are not known here.
    """
    top = source.split(":")[0].split(".")[0]
    files: list[Path] = []
    for base in search:
        if (base / top).is_dir() or (base / f"{top}.py").is_file():
            files += sorted(base.glob("*.py"))
            for package in sorted({base / top, *(p.parent for p in base.glob("*/__init__.py"))}):
                files += sorted(package.rglob("*.py"))
    if not files and top:
        spec = importlib.util.find_spec(top)
        for folder in (spec and spec.submodule_search_locations) or ():
            files += sorted(Path(folder).rglob("*.py"))
        if spec is not None and spec.origin is not None and Path(spec.origin).is_file():
            files.append(Path(spec.origin))
    found = {str(p): _hash_of(p) for p in dict.fromkeys(files)}
    return found | _installed()


def _installed() -> dict[str, str]:
    """Versions by name of what is installed. Not by sys.path: libraries add to it while they are imported."""
    folders = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    return {d.name: d.version for d in importlib.metadata.distributions(path=folders)}


def _hash_of(path: Path) -> str:
    return sha256_file(path) if path.is_file() else "missing"


def _versions() -> dict[str, str | None]:
    return {name: version_of(name) for name in ("onnx", "onnxruntime", "torch", "onnxscript")}


# ---------------------------------------------------------------- what was left open


def _settled(
    job: Job, model: Model, pictures: Dataset | None, sizes: tuple[Size, ...] = ()
) -> tuple[Model, list[str]]:
    """Static shapes and a preprocessing, with a warning for each thing that was assumed."""
    warnings: list[str] = []
    given = input_shapes(job.model)
    spec = model.signature.inputs[0]
    takes_pictures = len(model.signature.inputs) == 1 and signature.image_layout(spec) is not None
    size: Size | None = sizes[0] if sizes else None
    if "" in given and takes_pictures and size is None:
        shape = given[""]
        size = (shape[2], shape[3]) if signature.image_layout(spec) == "NCHW" else (shape[1], shape[2])
    if job.preprocess is not None:
        size = (job.preprocess.height, job.preprocess.width)
    open_size = takes_pictures and any(isinstance(n, str) for n in _spatial(spec))
    if open_size and size is None and pictures is not None and _has_pictures(pictures):
        size, warning = data.choose_size(pictures)
        warnings.append(warning)
    fixed = signature.fix_shapes(model.signature, _defaults(model.signature, size))
    left = [i for i in fixed.inputs if any(isinstance(n, str) for n in i.shape)]
    if left:
        names = ", ".join(f"{i.name} {'x'.join(map(str, i.shape))}" for i in left)
        raise BadInput(
            "fixing the shapes of",
            model.name,
            f"some axes are still open: {names}",
            "Give --input-shape NAME=1x…",
        )
    model = msgspec.structs.replace(model, signature=fixed)
    if model.preprocess is None and takes_pictures and (pictures is None or _has_pictures(pictures)):
        chosen, warning = preprocess.default_for(fixed.inputs[0])
        model = msgspec.structs.replace(model, preprocess=chosen)
        warnings.append(warning)
    elif model.preprocess is not None and takes_pictures:
        preprocess.check(model.preprocess, fixed.inputs[0])
    return model, warnings


def _spatial(spec: TensorSpec) -> tuple[int | str, ...]:
    return spec.shape[2:] if signature.image_layout(spec) == "NCHW" else spec.shape[1:3]


def _check_sizes(sizes: tuple[Size, ...], model: Model) -> None:
    """Raises BadInput for a model, as it was imported, that does not take each of them."""
    doing, asked = "taking the sizes of", sizes_text(sizes)
    spec = model.signature.inputs[0]
    if len(model.signature.inputs) != 1 or signature.image_layout(spec) is None:
        why = f"sizes {asked} were asked for, but the model takes no single picture"
        raise BadInput(doing, model.name, why, "Leave the sizes out")
    for axis, name, wanted in zip(_spatial(spec), ("height", "width"), zip(*sizes, strict=True), strict=True):
        if isinstance(axis, int) and set(wanted) != {axis}:
            why = f"its {name} is fixed at {axis}, and {asked} were asked for"
            cure = (
                "Export it with symbolic height and width (torch.onnx.export's dynamic_shapes), or give the "
                "PyTorch factory, which is exported so here"
            )
            raise BadInput(doing, model.name, why, cure)


def _check_pictures(sizes: tuple[Size, ...], data: tuple[Dataset | None, ...]) -> None:
    """Raises BadInput for tensor files: they fit one size of several."""
    if any(is_tensor(s) for held in data if held is not None for s in held.samples):
        why = f"tensor files have one size, and {sizes_text(sizes)} were asked for"
        cure = "Give pictures, which are prepared for each size"
        raise BadInput("taking the sizes of", "the data", why, cure)


def _defaults(sig: Signature, size: Size | None) -> dict[str, tuple[int, ...]]:
    """An open first axis is a batch of one; open height and width become ``size``.

    What --input-shape gave is in the model's signature already.
    """
    shapes = {}
    for spec in sig.inputs:
        shape = list(spec.shape)
        if shape and isinstance(shape[0], str):
            shape[0] = 1
        layout = signature.image_layout(spec)
        if size is not None and layout is not None:
            at = 2 if layout == "NCHW" else 1
            for axis, pixels in zip((at, at + 1), size, strict=True):
                shape[axis] = pixels if isinstance(shape[axis], str) else shape[axis]
        numbers = tuple(n for n in shape if isinstance(n, int))
        if len(numbers) == len(shape):
            shapes[spec.name] = numbers
    return shapes


def _has_pictures(dataset: Dataset) -> bool:
    return any(not is_tensor(s) for s in dataset.samples)


def is_tensor(sample: Sample) -> bool:
    """Whether the sample is a tensor file, which goes past the preprocessing."""
    return Path(sample.path).suffix.lower() in data.TENSORS


def _fitting(dataset: Dataset, model: Model) -> Dataset:
    """``dataset`` without the samples that this model can't take; each of those is a rejected row.

    Every tensor file is read against the signature; of the pictures one stands for all, because the
    preprocessing gives them all one shape. Raises BadInput where nothing fits.
    """
    kept: list[Sample] = []
    rejected, refused = list(dataset.rejected), ""
    for number, sample in enumerate(dataset.samples):
        try:
            if is_tensor(sample) or not kept or is_tensor(kept[-1]):
                next(data.inputs(dataset, model, [number]))
            kept.append(sample)
        except BadInput as error:
            refused = refused or f"{sample.path}: {error.why}"
            rejected.append(Rejected(path=sample.path, reason=error.why))
    if not kept:
        raise BadInput(
            "fitting the data to the model",
            dataset.root,
            f"none of its {len(dataset.samples)} samples fits; {refused}",
            "Give pictures for a model of one picture, else .npz files with one array per input",
        )
    if len(kept) == len(dataset.samples):
        return dataset
    digest = sha256_record(kept)
    return msgspec.structs.replace(dataset, samples=tuple(kept), rejected=tuple(rejected), sha256=digest)


def _random(spec: TensorSpec, rng: np.random.Generator) -> NDArray[Any]:
    shape = tuple(n if isinstance(n, int) else 1 for n in spec.shape)
    kind = np.dtype(spec.dtype)
    if np.issubdtype(kind, np.floating):
        return rng.standard_normal(shape).astype(kind)
    return rng.integers(0, 2, shape).astype(kind)


def dataset_key(dataset: Dataset | None, model: Model) -> str:
    """Names a data set as this model sees it: contents, preprocessing and signature."""
    return sha256_record([dataset and dataset.sha256, model.preprocess, model.signature])
