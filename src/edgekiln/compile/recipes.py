"""Recipes: named, ordered lists of passes. A name decodes to its parameters, and back.

fp32                          the simplified graph as it is
fp16, bf16                    weights and arithmetic in 16 bits, input and output stay float32
int8-static-minmax            static INT8, weights per channel, range = all that was seen
int8-static-percentile-99.99  range = the central 99.99 % of what was seen
int8-static-mse               range = least squared error at 8 bits
int8-static-entropy           range = least loss of information (Kullback-Leibler) at 8 bits
int8-dynamic                  INT8 weights of MatMul and Gemm, activations quantised at run time
a16w8-static-minmax           as int8-static, but activations in 16 bits; also -mse and -percentile-99.99
int8-nncf-mixed               OpenVINO's own quantiser (NNCF), preset mixed; also -performance
int8-litert-dynamic           LiteRT's own (ai-edge-quantizer): INT8 weights, activations at run time
int8-litert-weight            INT8 weights, float arithmetic; also int4-litert-dynamic
int8-litert-static            INT8 weights and activations; also a16w8-litert-static
int8-xnnpack-static           ExecuTorch's own XNNPACK quantiser; also -dynamic
w8-channel                    weights alone: linear, 8 bits, a scale per channel
w4-block32                    weights alone: linear, 4 bits, a scale per block of 32; also w8, other blocks
w4-block32+gptq               decided by the inputs that each product sees; +awq: with levelled inputs;
                              +exact after either, or alone: activations stay as they are, slower;
                              +bf16 in its place: what stays float in bfloat16 where the target can
palette6                      weights alone: a table of 2^6 values per tensor; also 4 and 8 bits
palette-mixed-6               weights alone: each tensor its own table of 4 to 256 values, 6 bits in the mean
palette4-w8                   weights alone: a table of 16 values, itself held in 8 bits

A static INT8 recipe may carry steps after a "+", each of which can be used alone:

int8-static-mse+equalise      channels levelled first (cross-layer equalisation, SmoothQuant)
int8-static-minmax+qat        on the float graph that the job's own trainer fine-tuned (torchao)
int8-static-learned+qat       the same with the activations' ranges that training settled on
int8-static-mse+round         weights rounded by the inputs that their layer sees (as GPTQ does)
int8-static-mse+bias          the mean of each output channel corrected
int8-static-mse+round+bias    both, in one pass; and so on, always in this order
int8-static-mse+layers        only products with constant weights in INT8, all else float (for transformers)
int8-static-mse+bf16          what stays float is computed in bfloat16 where the target can

fp32+align16                  channels padded to a multiple of 16 (or 8), in fp32 and static recipes without
                              other steps; tried only where it is asked for, and measured like any other

int8-mixed-0.01               the fewest, cheapest layers in float so that at most 0.01 of the decisions
change
                              on samples that calibration never saw; takes the same steps

Quantisers of one target (NNCF aside) and weight compression are left to that target: the variant is the
float graph, and ``convert`` reads the recipe's passes.
"""

from __future__ import annotations

import re

from edgekiln.errors import BadInput, did_you_mean
from edgekiln.records import Pass, Recipe, Scalar

KNOWN = (
    "fp32",
    "fp16",
    "bf16",
    "int8-static-minmax",
    "int8-static-percentile-99.99",
    "int8-static-mse",
    "int8-static-entropy",
    "int8-dynamic",
    "a16w8-static-minmax",
    "int8-nncf-performance",
    "int8-nncf-mixed",
    "int8-litert-dynamic",
    "int8-litert-weight",
    "int8-litert-static",
    "a16w8-litert-static",
    "int4-litert-dynamic",
    "int8-xnnpack-static",
    "int8-xnnpack-dynamic",
    "w8-channel",
    "w4-block32",
    "w4-block32+gptq",
    "w4-block32+awq",
    "w8-block32",
    "palette4",
    "palette6",
    "palette8",
    "palette4-w8",
    "palette-mixed-6",
)

QUANTISE_LITERT = {
    "int8-litert-dynamic": "dynamic_wi8_afp32",
    "int4-litert-dynamic": "dynamic_wi4_afp32",
    "int8-litert-weight": "weight_only_wi8_afp32",
    "int8-litert-static": "static_wi8_ai8",
    "a16w8-litert-static": "static_wi8_ai16",
}
"""Recipe to the name of ai-edge-quantizer's own recipe."""

COMPRESS: dict[str, dict[str, Scalar]] = {
    "w8-channel": {"kind": "linear", "bits": 8, "granularity": "per_channel"},
    "w4-block32": {"kind": "linear", "bits": 4, "granularity": "per_block", "block": 32},
    "palette4": {"kind": "palette", "bits": 4},
    "palette6": {"kind": "palette", "bits": 6},
    "palette8": {"kind": "palette", "bits": 8},
    "palette4-w8": {"kind": "palette", "bits": 4, "table_bits": 8},
}

BLOCKS = (16, 32, 64, 128, 256)
"""Weights that share a scale: what MatMulNBits takes."""

LEFT_TO_TARGET = frozenset({"quantise-litert", "quantise-xnnpack", "compress-weights"})
"""Passes that ``convert`` applies, because their result exists in the target's own format only."""

STEPS = ("equalise", "qat", "round", "bias", "layers", "bf16")
"""What may follow a static recipe after a "+", in this order."""

ALIGN = {"+align8": 8, "+align16": 16}
"""Suffixes that pad channels before the recipe's own passes."""

_PERCENTILE = re.compile(r"percentile-(\d{1,2}(?:\.\d{1,6})?|100)")
_STATIC = re.compile(r"(int8|a16w8)-static-([a-z0-9.-]+)")
_BLOCKS = re.compile(r"w([48])-block(\d{2,3})(?:\+(gptq|awq))?(\+bf16|\+exact)?")
_PALETTES = re.compile(r"palette-mixed-([2-7](?:\.\d{1,2})?|8)")
_MIXED = re.compile(r"int8-mixed-(0(?:\.\d{1,4})?)")
RULES = ("minmax", "mse", "entropy", "learned")
RECOVERABLE = frozenset({"int8-litert-static", "int8-xnnpack-static"})


def recipe(name: str) -> Recipe:
    """Decode ``name``. Raises BadInput with the near names for one that means nothing."""
    if (plain := unaligned(name)) != name:
        return _aligned(name, plain)
    base, *steps = name.split("+")
    if "qat" in steps:
        _check_trainable(name, base, steps)
    if (static := _static_recipe(name, base, steps)) is not None:
        return static
    if name == "fp32":
        return Recipe(name=name, passes=())
    if name in {"fp16", "bf16"}:
        return Recipe(name=name, passes=(Pass(name="precision", params={"type": name}),))
    if name == "int8-dynamic":
        return Recipe(name=name, passes=(Pass(name="quantise-dynamic", params={"per_channel": True}),))
    if (borrowed := _borrowed(name, base, steps)) is not None:
        return borrowed
    if name in COMPRESS:
        return Recipe(name=name, passes=(Pass(name="compress-weights", params=COMPRESS[name]),))
    if (compressed := _compressed(name)) is not None:
        return compressed
    if palettes := _PALETTES.fullmatch(name):
        # What was decided here is found again as repeated values.
        last = Pass(name="compress-weights", params={"kind": "palette", "bits": 0})
        return Recipe(name=name, passes=(Pass(name="palettise", params={"bits": float(palettes[1])}), last))
    if name.startswith("int8-nncf-") and name in KNOWN:
        preset = name.rsplit("-", 1)[1]
        return Recipe(name=name, passes=(Pass(name="quantise-nncf", params={"preset": preset}),))
    raise BadInput("reading the recipe", name, "no recipe has this name", did_you_mean(name, KNOWN))


def _compressed(name: str) -> Recipe | None:
    """Linear weights in blocks; None where ``name`` is none of these."""
    match = _BLOCKS.fullmatch(name)
    if match is None or int(match[2]) not in BLOCKS:
        return None
    params: dict[str, Scalar] = {"kind": "linear", "bits": int(match[1]), "granularity": "per_block"}
    params["block"] = int(match[2])
    if match[3]:
        params["method"] = match[3]
    if match[4] == "+exact":
        params["exact"] = True
    rest = (Pass(name="arithmetic", params={"type": "bf16"}),) if match[4] == "+bf16" else ()
    return Recipe(name=name, passes=(*rest, Pass(name="compress-weights", params=params)))


def unaligned(name: str) -> str:
    """The recipe that ``name`` is without the padding of channels."""
    return next((name.removesuffix(end) for end in ALIGN if name.endswith(end)), name)


def _aligned(name: str, plain: str) -> Recipe:
    """``plain`` on padded channels. Raises BadInput where its passes work on the graph as it was."""
    rest = recipe(plain).passes
    if any(p.name != "quantise-static" for p in rest) or unaligned(plain) != plain:
        why = f"channels are padded for fp32 and for static recipes without other steps, not for {plain}"
        raise BadInput("reading the recipe", name, why, f"Use {plain}")
    multiple = ALIGN[name.removeprefix(plain)]
    return Recipe(name=name, passes=(Pass(name="align", params={"multiple": multiple}), *rest))


def _borrowed(name: str, base: str, steps: list[str]) -> Recipe | None:
    """A recipe of LiteRT's or XNNPACK's own quantiser; a static one may be given a recovered float graph.

    Both take a weight's scale from the largest of its channel, as the recovered weights are laid out.
    """
    if base in QUANTISE_LITERT:
        last = Pass(name="quantise-litert", params={"recipe": QUANTISE_LITERT[base]})
    elif base.startswith("int8-xnnpack-") and base in KNOWN:
        last = Pass(name="quantise-xnnpack", params={"dynamic": base.endswith("-dynamic")})
    else:
        return None
    if not steps:
        return Recipe(name=name, passes=(last,))
    if base not in RECOVERABLE or steps != [s for s in ("equalise", "qat", "round", "bias") if s in steps]:
        return None
    return Recipe(name=name, passes=(*_recovery(steps, {"rule": "minmax"}), last))


def _recovery(steps: list[str], own: dict[str, Scalar]) -> list[Pass]:
    """The passes on the float graph that ``steps`` ask for."""
    found = []
    if "equalise" in steps:
        found.append(Pass(name="equalise", params={"alpha": 0.5}))
    if "qat" in steps:
        found.append(Pass(name="qat", params={}))
    if {"round", "bias"} & set(steps):
        wanted: dict[str, Scalar] = {"round": "round" in steps, "bias": "bias" in steps}
        found.append(Pass(name="recover", params={**own, **wanted}))
    return found


def _check_trainable(name: str, base: str, steps: list[str]) -> None:
    """Raises BadInput with the reason where fine-tuning does not go together with the rest of ``name``."""
    refused = {
        "equalise": "levelled channels have other grids than those that the weights were trained on",
        "layers": "training simulates the grids of all operators, not of products alone",
    }
    reason = next((why for step, why in refused.items() if step in steps), "")
    if _MIXED.fullmatch(base):
        reason = "the search holds its bound against the graph that it is given, which training has changed"
    elif base.startswith("a16w8"):
        reason = "training simulates activations of 8 bits"
    elif not _STATIC.fullmatch(base) and base not in RECOVERABLE:
        reason = "training simulates static INT8"
    if reason:
        cure = f"Use {base} without +qat, or int8-static-minmax+qat (and +round, +bias)"
        raise BadInput("reading the recipe", name, reason, cure)


def _static_recipe(name: str, base: str, steps: list[str]) -> Recipe | None:
    """A static or mixed recipe with its steps; None where ``name`` is neither, or says a step twice."""
    static, mixed = _STATIC.fullmatch(base), _MIXED.fullmatch(base)
    if steps != [s for s in STEPS if s in steps] or not (static or mixed):
        return None
    # A transformer's few huge values carry its attention: cutting them costs more than the finer grid gains.
    own_rule = "minmax" if "layers" in steps else "mse"
    rule: dict[str, Scalar] | None = {"rule": own_rule} if static is None else _rule(static[2])
    if rule is None or (static is not None and static[1] == "a16w8" and "layers" in steps):
        return None
    if rule["rule"] == "learned" and "qat" not in steps:
        why, cure = "ranges are learned in fine-tuning", f"Use {base}+qat with [qat] in the job file"
        raise BadInput("reading the recipe", name, why, cure)
    if rule["rule"] == "entropy" and static is not None and static[1] == "a16w8":
        return None  # with more levels than the histogram has bins it would be minmax by another name
    bits = 16 if static is not None and static[1] == "a16w8" else 8
    own: dict[str, Scalar] = {**rule, "activation_bits": bits} if bits != 8 else rule
    chosen: dict[str, Scalar] = {"layers": True} if "layers" in steps else {}
    # A search recovers what it quantises itself, on a part of the data.
    before = steps if mixed is None else [s for s in steps if s == "equalise"]
    found = _recovery(before, {**own, **chosen})
    last = "quantise-static" if mixed is None else "quantise-mixed"
    wanted: dict[str, Scalar] = {"round": "round" in steps, "bias": "bias" in steps}
    bound: dict[str, Scalar] = {}
    if mixed is not None:
        bound = {"drop": float(mixed[1]), **_all_unless(steps, wanted)}
    found.append(Pass(name=last, params={**own, "per_channel": True, **chosen, **bound}))
    if "bf16" in steps:
        found.append(Pass(name="arithmetic", params={"type": "bf16"}))
    return Recipe(name=name, passes=tuple(found))


def _all_unless(steps: list[str], wanted: dict[str, Scalar]) -> dict[str, Scalar]:
    """Rounding and bias correction, both where neither was asked for by itself."""
    return wanted if {"round", "bias"} & set(steps) else dict.fromkeys(wanted, True)


def _rule(text: str) -> dict[str, Scalar] | None:
    """``percentile-99.99`` as a range rule and its parameter."""
    match = _PERCENTILE.fullmatch(text)
    if match and 50 < float(match[1]) <= 100:
        return {"rule": "percentile", "percentile": float(match[1])}
    return {"rule": text} if text in RULES else None


def at_drop(name: str, drop: float) -> str:
    """``name`` with the bound of a mixed recipe set to ``drop``; any other name as it is."""
    base, *steps = name.split("+")
    if not _MIXED.fullmatch(base):
        return name
    return "+".join([f"int8-mixed-{min(max(drop, 0.0001), 0.9999):.4f}".rstrip("0").rstrip("."), *steps])


def needs_calibration(which: Recipe) -> bool:
    """Whether any pass finds its ranges on data."""
    return any(
        p.name in {"equalise", "palettise", "recover", "quantise-static", "quantise-mixed", "quantise-nncf"}
        or (p.name == "quantise-litert" and str(p.params["recipe"]).startswith("static"))
        or (p.name == "quantise-xnnpack" and not p.params["dynamic"])
        or (p.name == "compress-weights" and "method" in p.params)
        for p in which.passes
    )
