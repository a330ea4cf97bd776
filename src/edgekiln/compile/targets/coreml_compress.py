"""Weight compression of an ML Program by coremltools: fewer bits a weight, arithmetic as before.

The passes run at the end of the conversion itself. coremltools' functions over a finished model would read
it back first, and what they read back of a classifier can't be written again (version 9.0).
"""

from __future__ import annotations

from typing import Any

from edgekiln.errors import ConversionFailed
from edgekiln.records import Pass

_LINEAR, _PALETTE = "compression::linear_quantize_weights", "compression::palettize_weights"


def needs_ios18(one: Pass) -> bool:
    """Whether a pass ``compress-weights`` makes operators that iOS 17 lacks: scales per block, or a
    palette whose table is itself held in 8 bits."""
    return one.params.get("granularity") == "per_block" or "table_bits" in one.params


def pipeline(one: Pass | None) -> Any:
    """coremltools' default passes, and behind them those of ``one``, a pass ``compress-weights``.

    Weights of at most 2048 elements stay as they are. Linear weights are symmetric: a scale per output
    channel (8 bits) or per block of inputs (4 bits); palettes are found by k-means, one table per tensor.
    Raises ConversionFailed for an unknown kind.
    """
    import coremltools
    from coremltools.optimize import coreml as tools

    made = coremltools.PassPipeline()
    if one is None:
        return made
    params = one.params
    if params.get("kind") not in {"linear", "palette"}:
        raise ConversionFailed(
            "compressing weights", str(params.get("kind")), "no such kind", "Use 'linear' or 'palette'"
        )
    # Both options each time: a pass is one object for the whole process and remembers the last ones.
    if params["kind"] == "palette":
        palette = tools.OpPalettizerConfig(mode="kmeans", nbits=int(params["bits"]))
        _append(made, _PALETTE, palette, joint=False)
        if "table_bits" in params:
            table = tools.OpLinearQuantizerConfig(
                mode="linear_symmetric", dtype="int8", granularity="per_tensor"
            )
            _append(made, _LINEAR, table, joint=True)
        return made
    dtype = {8: "int8", 4: "int4"}[int(params["bits"])]
    more = {"block_size": int(params["block"])} if "block" in params else {}
    linear = tools.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype=dtype, granularity=str(params["granularity"]), **more
    )
    _append(made, _LINEAR, linear, joint=False)
    return made


def _append(made: Any, name: str, config: Any, joint: bool) -> None:
    from coremltools.optimize.coreml import OptimizationConfig

    made.append_pass(name)
    made.set_options(name, {"config": OptimizationConfig(global_config=config), "joint_compression": joint})
