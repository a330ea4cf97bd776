"""Weight compression of an ML Program by coremltools: fewer bits a weight, arithmetic as before.

The passes run at the end of the conversion itself. coremltools' functions over a finished model would read
it back first, and what they read back of a classifier can't be written again (version 9.0).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import ConversionFailed
from edgekiln.records import Pass

LARGEST_TABLE = 256
_FORBIDDEN = re.compile(r"[^A-Za-z0-9_]")
_LINEAR, _PALETTE = "compression::linear_quantize_weights", "compression::palettize_weights"


def needs_ios18(one: Pass) -> bool:
    """Whether a pass ``compress-weights`` makes operators that iOS 17 lacks: scales per block, or a
    palette whose table is itself held in 8 bits."""
    return one.params.get("granularity") == "per_block" or "table_bits" in one.params


def pipeline(one: Pass | None, whole: Collection[str] = ()) -> Any:
    """coremltools' default passes, and behind them those of ``one``, a pass ``compress-weights``.

    Weights of at most 2048 elements stay as they are. Linear weights are symmetric: a scale per output
    channel (8 bits) or per block of inputs (4 bits); palettes are found by k-means, one table per tensor.
    With 0 bits they are what the weights hold already; constants named in ``whole`` are left alone then.
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
        bits = int(params["bits"])
        # Its mode "unique" counts values with numpy's sort of float16, which numpy 2.4 gets wrong on AVX-512.
        how = {"mode": "kmeans", "nbits": bits} if bits else {"mode": "custom", "lut_function": held_palette}
        palette = tools.OpPalettizerConfig(**how)
        _append(made, _PALETTE, palette, joint=False, whole=whole)
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


def held_palette(weights: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """The values that ``weights`` hold, filled up to a table that iOS 17 takes, and the place of each weight.

    Raises ConversionFailed for more than 256 values.
    """
    flat = np.ascontiguousarray(weights).reshape(-1)
    bits, places = np.unique(flat.view(f"u{flat.itemsize}"), return_inverse=True)
    width = next((w for w in (1, 2, 4, 6, 8) if len(bits) <= 2**w), None)
    if width is None:
        why = f"a weight holds {len(bits)} values where a palette has 256 at most"
        raise ConversionFailed("compressing weights", "the program", why, "Use a palette of one width")
    table = np.zeros(2**width, flat.dtype)
    table[: len(bits)] = bits.view(flat.dtype)
    return table, places.reshape(-1).astype(np.uint8)


def beyond_palettes(folder: Path, entry: str, weights: Iterable[str]) -> tuple[str, ...]:
    """Names of the constants that hold more values than a palette has, as the conversion knows them.

    They are read in the saved package, whose names are made fit for a program; ``weights`` names the graph's.
    """
    from edgekiln.engines.mil.package import read
    from edgekiln.engines.mil.values import decode

    package = read(folder, entry)
    found = []
    for function in package.spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            for op in block.operations:
                if op.type != "const" or not op.attributes["val"].HasField("blobFileValue"):
                    continue
                values = decode(op.attributes["val"], package).numpy()
                if len(np.unique(values.reshape(-1).view(f"u{values.itemsize}"))) > LARGEST_TABLE:
                    found.append(op.outputs[0].name)
    own = {_FORBIDDEN.sub("_", name): name for n in weights for name in (n, f"{n}_to_fp16")}
    return tuple(own.get(name, name) for name in found)


def _append(made: Any, name: str, config: Any, joint: bool, whole: Collection[str] = ()) -> None:
    from coremltools.optimize.coreml import OptimizationConfig

    made.append_pass(name)
    chosen = OptimizationConfig(global_config=config, op_name_configs=dict.fromkeys(whole))
    made.set_options(name, {"config": chosen, "joint_compression": joint})
