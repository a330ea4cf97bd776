"""Recipes: named, ordered lists of passes. A name decodes to its parameters, and back.

fp32                          the simplified graph as it is
fp16, bf16                    weights and arithmetic in 16 bits, input and output stay float32
int8-static-minmax            static INT8, weights per channel, range = all that was seen
int8-static-percentile-99.99  range = the central 99.99 % of what was seen
int8-static-mse               range = least squared error at 8 bits
int8-dynamic                  INT8 weights of MatMul and Gemm, activations quantised at run time
int8-nncf-mixed               OpenVINO's own quantiser (NNCF), preset mixed; also -performance
"""

from __future__ import annotations

import re

from edgekiln.errors import BadInput, did_you_mean
from edgekiln.records import Pass, Recipe

KNOWN = (
    "fp32",
    "fp16",
    "bf16",
    "int8-static-minmax",
    "int8-static-percentile-99.99",
    "int8-static-mse",
    "int8-dynamic",
    "int8-nncf-performance",
    "int8-nncf-mixed",
)

_PERCENTILE = re.compile(r"int8-static-percentile-(\d{1,2}(?:\.\d{1,6})?|100)")


def recipe(name: str) -> Recipe:
    """Decode ``name``. Raises BadInput with the near names for one that means nothing."""
    match = _PERCENTILE.fullmatch(name)
    if match and 50 < float(match[1]) <= 100:
        return Recipe(name=name, passes=(_static("percentile", percentile=float(match[1])),))
    if name in {"int8-static-minmax", "int8-static-mse"}:
        return Recipe(name=name, passes=(_static(name.rsplit("-", 1)[1]),))
    if name == "fp32":
        return Recipe(name=name, passes=())
    if name in {"fp16", "bf16"}:
        return Recipe(name=name, passes=(Pass(name="precision", params={"type": name}),))
    if name == "int8-dynamic":
        return Recipe(name=name, passes=(Pass(name="quantise-dynamic", params={"per_channel": True}),))
    if name.startswith("int8-nncf-") and name in KNOWN:
        preset = name.rsplit("-", 1)[1]
        return Recipe(name=name, passes=(Pass(name="quantise-nncf", params={"preset": preset}),))
    raise BadInput("reading the recipe", name, "no recipe has this name", did_you_mean(name, KNOWN))


def _static(rule: str, **params: float) -> Pass:
    return Pass(name="quantise-static", params={"rule": rule, "per_channel": True, **params})


def needs_calibration(which: Recipe) -> bool:
    return any(p.name in {"quantise-static", "quantise-nncf"} for p in which.passes)
