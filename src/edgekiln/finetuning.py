"""What a job's [qat] table comes to for this build: the training to run, or why none can."""

from __future__ import annotations

from edgekiln.compile.finetune.order import NoTraining, Training
from edgekiln.compile.workshop import NO_TRAINING
from edgekiln.errors import BadInput
from edgekiln.files import entries, sha256_file, sha256_record
from edgekiln.intake import factory_code, import_shapes, search_path, source_is_file
from edgekiln.job import Job, QatOrder, input_sizes
from edgekiln.records import Model


def training(job: Job, model: Model) -> Training | NoTraining:
    """The training that recipes with ``+qat`` share, named by all code and data that it follows from.

    Raises BadInput where [qat] names data that aren't there. The files that the trainer reads by itself are
    not known here.
    """
    order, sizes = job.qat, input_sizes(job)
    if order is None:
        return NO_TRAINING
    if source_is_file(job):
        why = f"fine-tuning needs a PyTorch source, and {job.model.source} is a graph without training code"
        cure = "Give the model as package.module:factory with its weights, or leave +qat out"
        return NoTraining(why=why, cure=cure)
    if len(sizes) > 1:
        why = "fine-tuning is for one input size, and several were asked for"
        return NoTraining(why=why, cure="Build each size on its own, or leave +qat out")
    search = search_path(job)
    weights = None if job.model.weights is None else job.path(job.model.weights).resolve()
    shapes = import_shapes(job, sizes, False)
    code = [factory_code(name, search) for name in (job.model.source, order.trainer)]
    data = _hash_of_data(job, order)
    limits = [order.seed, order.given(), data]
    made_from = [code, weights and sha256_file(weights), shapes, job.preprocess, model.task]
    return Training(
        trainer=order.trainer,
        source=job.model.source,
        weights=None if weights is None else str(weights),
        search_path=tuple(map(str, search)),
        shapes=shapes,
        preprocess=job.preprocess,
        labels=model.labels,
        task=model.task,
        arguments=order.given(),
        data=None if order.data is None else str(job.path(order.data).resolve()),
        seed=order.seed,
        seconds=order.seconds,
        memory_bytes=_memory(job),
        sha256=sha256_record([order.trainer, job.model.source, limits, made_from]),
    )


def _memory(job: Job) -> int | None:
    limit = job.search.convert_memory_mb
    return None if limit is None else round(limit * 1e6)


def _hash_of_data(job: Job, order: QatOrder) -> str:
    """Names the contents of the trainer's data; an empty text where [qat] gives none."""
    if order.data is None:
        return ""
    path = job.path(order.data)
    if path.is_dir():
        return sha256_record(entries(path))
    if not path.is_file():
        raise BadInput(
            "reading the trainer's data", path, "there is no such file or folder", "Check the path"
        )
    return sha256_file(path)
