"""Web: the variant's graph for ONNX Runtime Web, opened once in a real Chromium where there is one."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from edgekiln import files
from edgekiln.compile.targets import Conversion
from edgekiln.engines import npm
from edgekiln.engines.web import PACKAGE, About, require
from edgekiln.engines.web import open as open_page
from edgekiln.errors import ConversionFailed, MachineFault, NotRunnableHere
from edgekiln.records import Artifact, Check, Placement, Resolution, Variant

ENTRY = "model.onnx"
_DOING = "converting for the web"
_WASM = "CPUExecutionProvider"
_PLACED = re.compile(r"placed on \[(\w+)\]\. Number of nodes: (\d+)")
_NOT_ASKED = (
    Placement(
        provider="webgpu", how="measured", detail="not asked: Chromium runs here without a graphics processor"
    ),
    Placement(provider="webnn", how="measured", detail="not asked: Chromium offers it behind a flag only"),
)


def convert(order: Conversion, into: Path) -> Artifact:
    """Copy the variant to ``into/model.onnx`` and open it once in Chromium, tracing where its nodes run.

    The graph must be one file. Without Chromium or onnxruntime-web here the artifact is made all the same,
    and its check says that nothing opened it. Raises ConversionFailed with the runtime's own message, which
    names the operator, where onnxruntime-web refuses the graph.
    """
    import onnx

    variant, recipe = order.variant, order.variant.recipe.name
    data = order.graph(_DOING).read_bytes()
    files.write_bytes(into / ENTRY, data)
    tools = {"onnx": onnx.__version__}
    if package := npm.find(PACKAGE):
        tools[PACKAGE] = npm.version(package)
    artifact = Artifact(
        id=f"{order.device.name}.web.{recipe}",
        target="web",
        recipe=recipe,
        engine="web",
        proof_engine="web",
        entry=ENTRY,
        files=files.entries(into),
        options={},
        tools=tools,
        precisions=variant.precisions,
        passes=variant.passes,
        resolutions=tuple(Resolution(height=h, width=w, entry=ENTRY) for h, w in order.sizes),
    )
    return _tried(artifact, into, min(order.threads, 2), variant)


def _tried(artifact: Artifact, folder: Path, threads: int, variant: Variant) -> Artifact:
    """``artifact`` with what Chromium said of it."""
    try:
        require(ENTRY)
    except NotRunnableHere as error:
        check = Check(name="loads", passed=None, detail=f"not opened: {error.why}. {error.cure}")
        row = Placement(provider="wasm", how="measured", detail=f"not asked: {error.why}")
        return msgspec.structs.replace(artifact, checks=(check,), placement=(row, *_NOT_ASKED))
    try:
        runner = open_page(artifact, folder, threads, trace=True)
    except (NotRunnableHere, MachineFault) as error:
        cure = "Choose another recipe or target, or change the model at that operator"
        raise ConversionFailed(_DOING, variant.path, error.why, cure) from error
    about = runner.about
    runner.close()
    return msgspec.structs.replace(
        artifact, checks=_checks(about), placement=(placement(about.placed), *_NOT_ASKED)
    )


def _checks(about: About) -> tuple[Check, ...]:
    isolated = (
        "the page is cross-origin isolated" if about.isolated else "the page is not isolated: one thread"
    )
    return (
        Check(
            name="loads", passed=True, detail=f"onnxruntime-web {about.runtime} opens it in {about.browser}"
        ),
        Check(name="threads", passed=about.isolated, detail=f"{isolated}; {about.threads} threads were made"),
    )


def placement(lines: tuple[str, ...]) -> Placement:
    """The row of the provider "wasm", from the runtime's own log lines about the nodes it placed.

    The graph counted is the one after the runtime's optimisation. The WebAssembly build names its one
    provider CPUExecutionProvider.
    """
    counts = {name: int(n) for line in lines for name, n in _PLACED.findall(line)}
    if not counts:
        return Placement(provider="wasm", how="measured", detail="the runtime logged no placement")
    taken, everything = counts.get(_WASM, 0), sum(counts.values())
    return Placement(
        provider="wasm",
        how="measured",
        operators=everything,
        taken=taken,
        partitions=1 if taken == everything else None,
        detail="as the runtime logs it, in its own optimised graph",
    )
