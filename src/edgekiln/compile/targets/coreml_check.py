"""What is known of a converted Core ML package off a Mac: its outputs, its ranges, its operators.

The outputs come from edgekiln's reference interpreter of the saved file, against ONNX Runtime on the
variant's own graph. Where operators run is not known here: Core ML decides that on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.compile.precision import FP16_MAX
from edgekiln.compile.targets.coreml_package import operators
from edgekiln.engines import Arrays, open_engine
from edgekiln.errors import ConversionFailed, EdgekilnError, MissingExtra, NotRunnableHere
from edgekiln.records import Artifact, Check, Placement

BOUND_DB = {"fp16": 25.0, "fp32": 60.0}
"""Below this ratio of signal to error a conversion counts as wrong. Sound float16 conversions of the
networks tried reach 40 dB and more, float32 ones 90 dB and more; wrong ones stay near or below 0 dB."""

EQUAL_SHARE = 0.9
"""Integer and Boolean outputs (indices, classes) must agree in this share of elements: float16 may break
a tie differently, a wrong program breaks nearly all."""

TYPED_EXECUTION = "https://apple.github.io/coremltools/docs-guides/source/typed-execution-example.html"


def expected(graph: Path, inputs: Arrays, threads: int) -> dict[str, NDArray[Any]]:
    """What ONNX Runtime computes from an ONNX file, by output name. Raises ConversionFailed
    where it can't: then nothing says what the package should give."""
    native = Artifact(
        id="reference", target="onnxruntime", recipe="fp32", engine="onnxruntime",
        proof_engine="onnxruntime", entry=graph.name, files=(), options={}, tools={}, precisions={},
    )  # fmt: skip
    try:
        runner = open_engine("onnxruntime", native, graph.parent, threads)
        try:
            return runner(inputs)
        finally:
            runner.close()
    except NotRunnableHere as error:
        raise ConversionFailed("computing what to expect of", graph.name, error.why, error.cure) from error


def agreement(
    artifact: Artifact,
    folder: Path,
    pairs: Sequence[tuple[Arrays, Arrays]],
    threads: int,
    tried_on: str = "random input",
) -> Check:
    """Whether the package computes what the graph does, on pairs of inputs and outputs: one per size.
    ``tried_on`` says what the inputs are.

    ``passed`` is None where the interpreter can't run the package; ``detail`` names the operator it lacks.
    """
    name = "agreement with ONNX Runtime"
    try:
        runner = open_engine("coreml", artifact, folder, threads)
        try:
            found = [runner(inputs) for inputs, _ in pairs]
        finally:
            runner.close()
    except MissingExtra as error:
        return Check(name=name, passed=None, detail=str(error))
    except EdgekilnError as error:
        return Check(name=name, passed=None, detail=f"not interpreted here: {error.why}")
    bound = BOUND_DB["fp32" if artifact.options.get("compute_precision") == "fp32" else "fp16"]
    rows = []
    for (_, wanted), got in zip(pairs, found, strict=True):
        rows += [_compared(output, value, got.get(output), bound) for output, value in wanted.items()]
    detail = f"{'; '.join(text for _, text in rows)} ({tried_on}, reference interpreter"
    return Check(
        name=name, passed=all(sound for sound, _ in rows), detail=f"{detail}; at least {bound:.0f} dB)"
    )


def _compared(name: str, wanted: NDArray[Any], found: NDArray[Any] | None, bound: float) -> tuple[bool, str]:
    if found is None:
        return False, f"{name}: missing"
    if found.shape != wanted.shape:
        return False, f"{name}: shape {list(found.shape)}, not {list(wanted.shape)}"
    if wanted.dtype.kind != "f":
        share = float(np.mean(found == wanted)) if wanted.size else 1.0
        return share >= EQUAL_SHARE, f"{name}: {share:.1%} equal"
    if not np.array_equal(np.isfinite(found), np.isfinite(wanted)):
        return False, f"{name}: NaN or infinity"
    finite = np.isfinite(wanted)
    sqnr = sqnr_db(wanted[finite], found[finite])
    return sqnr >= bound, f"{name}: {sqnr:.1f} dB"


def sqnr_db(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    """10 log10 of the reference's energy over the error's; infinite where both are equal."""
    noise = float(((wanted.astype(np.float64) - found) ** 2).sum())
    signal = float((wanted.astype(np.float64) ** 2).sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def half_range(model: Any) -> Check:
    """Whether every float constant of an ``onnx.ModelProto`` fits float16; those beyond are clamped."""
    from onnx import numpy_helper

    beyond, vanish = [], 0
    constants = [(i.name, i) for i in model.graph.initializer]
    constants += [
        (node.output[0], a.t) for node in model.graph.node for a in node.attribute if a.HasField("t")
    ]
    for name, tensor in constants:
        value = numpy_helper.to_array(tensor)
        if value.dtype.kind != "f" or not value.size:
            continue
        size = np.abs(value[np.isfinite(value)])
        if size.size < value.size or size.max() > FP16_MAX:
            beyond.append(name)
        vanish += int(np.count_nonzero((size > 0) & (size < 2.0**-25)))
    detail = f"constants beyond {FP16_MAX:.0f}: {', '.join(beyond[:5]) or 'none'}"
    if len(beyond) > 5:
        detail += f" and {len(beyond) - 5} more"
    detail += f"; elements that become zero: {vanish}"
    return Check(name="float16 range of the constants", passed=not beyond, detail=detail)


def compressed(spec: Any, chosen: int = 0) -> Check:
    """How many weight tensors of a package are held in fewer than 16 bits, and what was left.

    ``chosen`` is how many the recipe itself left in float16.
    """
    few, left, elements = 0, 0, 0
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            few += sum(op.type in _DENSE for op in block.operations)
            sizes = [_elements(op) for op in block.operations if op.type == "const" and _in_file(op)]
            left += sum(size > LEAST_ELEMENTS for size in sizes)
            elements += sum(sizes)
    left -= chosen
    by_recipe = f" {chosen} stay in float16 by the recipe's choice," if chosen else ""
    detail = (
        f"{few} weight tensors compressed;{by_recipe} {left} of more than {LEAST_ELEMENTS} elements could "
        f"not be (their axes are no whole number of blocks); {elements} elements in all stay in float16"
    )
    return Check(name="compressed weights", passed=few > 0 and left == 0, detail=detail)


LEAST_ELEMENTS = 2048
"""coremltools leaves weights of at most this many elements alone: its own default."""

_DENSE = {"constexpr_affine_dequantize", "constexpr_blockwise_shift_scale", "constexpr_lut_to_dense"}


def _in_file(op: Any) -> bool:
    return bool(op.attributes["val"].HasField("blobFileValue"))


def _elements(op: Any) -> int:
    return math.prod(d.constant.size for d in op.outputs[0].type.tensorType.dimensions)


def placement(spec: Any, half: bool, flexible: bool) -> tuple[Placement, ...]:
    """What is known off a Mac of where the operators of a package run: nobody asked the device."""
    counts = [sum(kinds.values()) for kinds in operators(spec).values()]
    total = sum(counts)
    ask = "on a Mac, coremltools' MLComputePlan says it for this package"
    rows = [
        Placement(
            provider="Core ML (some unit)",
            how="predicted",
            operators=total,
            taken=total,
            detail="every operator of an ML Program runs at least on the CPU; which unit takes it is decided "
            f"when the package is loaded; {ask}",
        )
    ]
    if not half:
        rows.append(
            Placement(
                provider="Neural Engine",
                how="published",
                operators=total,
                taken=0,
                partitions=0,
                detail=f"float32 programs run on the GPU and the CPU only ({TYPED_EXECUTION})",
            )
        )
    else:
        more = "; of a range of sizes, only the default one may run there" if flexible else ""
        rows.append(
            Placement(
                provider="Neural Engine", how="predicted", detail=f"the device was not asked; {ask}{more}"
            )
        )
    gpu = Placement(provider="GPU", how="predicted", detail=f"the device was not asked; {ask}")
    return (*rows, gpu)
