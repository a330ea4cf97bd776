"""``edgekiln bench``: a model or bundle, or two alternated in one run; or a bundle on a device."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from edgekiln.bundle import SUFFIX
from edgekiln.bundle.unpack import opened
from edgekiln.engines.onnxruntime import float_artifact
from edgekiln.errors import BadInput, NotRunnableHere
from edgekiln.intake import random_inputs
from edgekiln.model import signature
from edgekiln.model.importers import import_model
from edgekiln.progress import Progress, Silent
from edgekiln.prove.bench import BenchResult, compare
from edgekiln.prove.fitness import findings, gate
from edgekiln.prove.machine import ROOT
from edgekiln.prove.metering import Meter
from edgekiln.prove.remote.address import parse
from edgekiln.prove.remote.bench import bench_on as on_device
from edgekiln.prove.remote.order import Course
from edgekiln.prove.remote.result import RemoteBench
from edgekiln.prove.timing import Contender, Timing
from edgekiln.records import Signature
from edgekiln.runtime.candidates import arithmetic_emulated
from edgekiln.sensors.energy import Energy

LONGEST_IDLE_SECONDS = 3600.0


def bench(
    first: Path,
    against: Path | None = None,
    *,
    shapes: dict[str, tuple[int, ...]] | None = None,
    threads: int = 2,
    samples: int = 200,
    strict: bool = False,
    progress: Progress | None = None,
    root: Path = ROOT,
) -> BenchResult:
    """Time ``first`` (an ONNX file or a bundle), alone or alternated with ``against``.

    Both get the same seeded random input. Where this machine has a sensor of power, ``first`` alone gets its
    energy per inference too. Raises BadInput where the two take different inputs, or a file can't be read,
    NotRunnableHere for a bundle whose arithmetic this machine only emulates, and, where ``strict``,
    MachineFault for a machine that is not fit to measure on; an engine that does not run here is a failed
    contender of the result. ``root`` is where the machine's files lie.
    """
    with contextlib.ExitStack() as stack:
        a, takes = stack.enter_context(contender(first, shapes or {}, "a"))
        b = None
        if against is not None:
            b, other = stack.enter_context(contender(against, shapes or {}, "b"))
            if other.inputs != takes.inputs:
                raise BadInput(
                    "comparing",
                    f"{first.name} with {against.name}",
                    f"they take different inputs ({_said(takes)} against {_said(other)})",
                    "Compare artifacts of one model, or give --input-shape",
                )
        unfit = fit_to_measure(strict, progress, root)
        meter = Meter(root) if b is None else None
        if progress is not None:
            progress.note(f"timing on {threads} threads, {samples} samples each")
        inputs: dict[str, NDArray[Any]] = random_inputs(takes)
        around = contextlib.nullcontext if meter is None else meter.during
        found = compare(a, b, inputs, threads, min_samples=samples, unfit=unfit, around=around)
        return msgspec.structs.replace(found, energy=_energy(found, meter))


def fit_to_measure(strict: bool, progress: Progress | None, root: Path = ROOT) -> tuple[str, ...]:
    """The gate before a measurement: each shortcoming of this machine is told with its cure, and given back.

    Raises MachineFault with all cures where ``strict`` and there is any.
    """
    found = findings(root)
    gate(found, strict)
    say = progress or Silent()
    for one in found:
        say.note(f"this machine: {one.sentence}")
    return tuple(one.sentence for one in found)


def _energy(found: BenchResult, meter: Meter | None) -> Energy:
    if meter is None:
        return Energy(inferences=0, reason="two that take turns share one meter; time each alone")
    if not isinstance(found.a, Timing):
        return Energy(inferences=0, reason=found.a.reason)
    return meter.of(len(found.a.samples_ms) + found.a.lead_ins)


def bench_on(
    bundle: Path,
    address: str,
    *,
    threads: int = 2,
    samples: int = 200,
    idle_seconds: float = 5.0,
    runner: Path | None = None,
    remote_python: str = "python3",
    accept_new_host_key: bool = False,
    strict: bool = False,
    progress: Progress | None = None,
) -> RemoteBench:
    """Measure ``bundle`` on the device at ``address`` (ssh://[user@]host[:port] or adb://SERIAL).

    It gets the same seeded random input as here. ``strict`` refuses a device that is not fit. Raises BadInput
    for what is no bundle or no address, and as ``prove.remote.bench.bench_on`` does.
    """
    where = parse(address)
    if bundle.suffix != SUFFIX:
        why = "only a bundle can be measured on a device"
        raise BadInput("measuring", bundle, why, f"Build one first: edgekiln build {bundle.name}")
    if not 0 <= idle_seconds <= LONGEST_IDLE_SECONDS:
        why = f"{idle_seconds:g} is no rest of 0 to {LONGEST_IDLE_SECONDS:.0f} seconds"
        raise BadInput("reading", "--idle-seconds", why, "Give seconds, such as 5")
    with opened(bundle) as held:
        course = Course(threads=threads, samples=samples, idle_seconds=idle_seconds)
        return on_device(
            held.manifest.artifact,
            held.model_folder,
            random_inputs(held.manifest.signature),
            where,
            course,
            runner=runner,
            python=remote_python,
            accept_new_host_key=accept_new_host_key,
            strict=strict,
            progress=progress,
        )


@contextlib.contextmanager
def contender(
    path: Path, shapes: dict[str, tuple[int, ...]], prefix: str
) -> Iterator[tuple[Contender, Signature]]:
    """What to time of a model or a bundle, and what it takes; its files lie there while the block lasts.

    Raises BadInput for a file that can't be read or whose inputs are open, NotRunnableHere for a bundle whose
    arithmetic this machine only emulates.
    """
    if path.suffix == SUFFIX:
        with opened(path) as held:
            artifact = held.manifest.artifact
            if arithmetic_emulated(artifact):
                raise NotRunnableHere(
                    "timing",
                    path.name,
                    f"this machine only emulates its {artifact.options.get('arithmetic')} arithmetic",
                    "Time it on the device itself; an emulation's speed says nothing",
                )
            made = Contender(
                id=f"{prefix}: {path.name}",
                folder=str(held.model_folder),
                artifact=artifact,
                engine=artifact.engine,
            )
            yield made, held.manifest.signature
        return
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as scratch:
        model = import_model(str(path), Path(scratch))
        given = signature.fix_shapes(model.signature, shapes)
        static = signature.fix_shapes(given, _batch_of_one(given))
        artifact = float_artifact(model.path, f"{prefix}: {path.name}")
        yield Contender(id=artifact.id, folder=scratch, artifact=artifact, engine=artifact.engine), static


def _batch_of_one(takes: Signature) -> dict[str, tuple[int, ...]]:
    """An open first axis is a batch of one; any other open axis needs --input-shape."""
    shapes = {}
    for spec in takes.inputs:
        shape = tuple(1 if at == 0 and isinstance(n, str) else n for at, n in enumerate(spec.shape))
        numbers = tuple(n for n in shape if isinstance(n, int))
        if len(numbers) != len(shape):
            why = f"input {spec.name} is open: {'x'.join(map(str, spec.shape))}"
            raise BadInput("timing", spec.name, why, "Give --input-shape, such as 1x3x640x640")
        shapes[spec.name] = numbers
    return shapes


def _said(takes: Signature) -> str:
    return ", ".join(f"{i.name} {'x'.join(map(str, i.shape))}" for i in takes.inputs)
