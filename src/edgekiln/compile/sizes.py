"""Several input sizes from one build: one flexible artifact, or one file per size put together into one.

A flexible artifact is made from the graph whose height and width are symbolic. Where a target has static
shapes only, or refuses the symbolic graph, every size goes the whole way for itself: graph, ranges, file.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgekiln.cache import step
from edgekiln.compile.isolate import Converters
from edgekiln.compile.make import make
from edgekiln.compile.targets import Target
from edgekiln.compile.workshop import Workshop
from edgekiln.devices import Device
from edgekiln.errors import ConversionFailed
from edgekiln.files import entries
from edgekiln.job import Size, size_text, sizes_text
from edgekiln.records import Artifact, Check, Placement, Resolution, Scalar

CHECK = "resolutions"


@dataclass(frozen=True)
class Workshops:
    """What artifacts of several sizes are made from. ``sizes`` are (height, width), the base first.

    ``flexible`` holds the graph with symbolic height and width; ``at`` gives the workshop of one size, with
    a static graph and its own samples.
    """

    sizes: tuple[Size, ...]
    flexible: Workshop
    at: Callable[[Size], Workshop]


def make_sizes(
    shops: Workshops, device: Device, target: Target, recipe: str, converters: Converters | None = None
) -> tuple[Path, Artifact]:
    """The folder and record of an artifact that takes every size. Raises as ``make`` does.

    A flexible target that refuses the symbolic graph gives one file per size instead, and the check says so;
    where that fails too, what is raised is what it said to the symbolic graph.
    """
    if not target.flexible:
        return _together(shops, device, target, recipe, f"{target.name} takes one static shape", converters)
    try:
        folder, artifact = make(shops.flexible, device, target.name, recipe, converters)
    except ConversionFailed as refused:
        try:
            why = f"the flexible graph was refused: {refused.why}"
            return _together(shops, device, target, recipe, why, converters)
        except ConversionFailed:
            raise refused from None
    detail = f"flexible: one file takes {sizes_text(shops.sizes)}"
    return folder, msgspec.structs.replace(
        artifact,
        resolutions=tuple(Resolution(height=h, width=w, entry=artifact.entry) for h, w in shops.sizes),
        checks=(*artifact.checks, Check(name=CHECK, passed=True, detail=detail)),
    )


def _together(
    shops: Workshops,
    device: Device,
    target: Target,
    recipe: str,
    why: str,
    converters: Converters | None,
) -> tuple[Path, Artifact]:
    """One conversion per size, and their files in a folder per size (``320x416/``) of one artifact."""
    made = [(size, *make(shops.at(size), device, target.name, recipe, converters)) for size in shops.sizes]

    def produce(into: Path) -> Artifact:
        for size, folder, artifact in made:
            for file in artifact.files:
                copy = into / size_text(size) / file.path
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / file.path, copy)
        detail = f"one file per size, for {sizes_text(shops.sizes)}: {why}"
        return joined([(size, artifact) for size, _, artifact in made], into, detail)

    # Not the id: what devices share is put together once.
    key = [[size_text(size), msgspec.structs.replace(artifact, id="")] for size, _, artifact in made]
    folder, artifact, _ = step(shops.flexible.cache, "resolutions", [key, why], Artifact, produce)
    return folder, msgspec.structs.replace(artifact, id=made[0][2].id)


def joined(parts: Sequence[tuple[Size, Artifact]], folder: Path, detail: str) -> Artifact:
    """One record of ``parts``, whose files lie in a folder per size below ``folder``; the first is the base.

    Options, checks and placement are the base's; what another size has otherwise stands beside it, marked
    with that size. Raises ConversionFailed where a part's entry is none of its files.
    """
    base = parts[0][1]
    for size, part in parts:
        if not (folder / size_text(size) / part.entry).exists():
            why = f"the file of {size_text(size)} is missing"
            raise ConversionFailed("putting together", base.id, why, "This is a fault of edgekiln: report it")
    options: dict[str, Scalar] = dict(base.options)
    checks, placement = list(base.checks), list(base.placement)
    for size, part in parts[1:]:
        options |= {f"{size_text(size)}/{k}": v for k, v in part.options.items() if base.options.get(k) != v}
        checks += [_checked_at(c, size) for c in part.checks if c not in base.checks]
        placement += [_placed_at(p, size) for p in part.placement if p not in base.placement]
    return msgspec.structs.replace(
        base,
        entry=f"{size_text(parts[0][0])}/{base.entry}",
        files=entries(folder),
        options=options,
        checks=(*checks, Check(name=CHECK, passed=True, detail=detail)),
        placement=tuple(placement),
        resolutions=tuple(
            Resolution(height=size[0], width=size[1], entry=f"{size_text(size)}/{part.entry}")
            for size, part in parts
        ),
    )


def _checked_at(check: Check, size: Size) -> Check:
    return msgspec.structs.replace(check, name=f"{check.name}@{size_text(size)}")


def _placed_at(placed: Placement, size: Size) -> Placement:
    return msgspec.structs.replace(placed, provider=f"{placed.provider} at {size_text(size)}")
