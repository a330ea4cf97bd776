"""Passes over weights alone: activations and arithmetic stay as they are."""

from __future__ import annotations

from edgekiln.compile.step import Applied, Step, given, left


def compress(one: Step) -> Applied:
    """Weights alone: decided here for ONNX Runtime and OpenVINO, left to the other targets."""
    if one.form not in {"ort", "openvino"}:
        return left(one)
    from edgekiln.compile.quantise import weight_forms
    from edgekiln.compile.quantise.weight_only import compressed

    method, data = str(one.one.params.get("method", "rtn")), one.shop.calibration
    bits, block = int(one.one.params["bits"]), int(one.one.params["block"])
    samples = None if data is None or data.ranges_alone or method == "rtn" else data.samples
    found, note = compressed(one.path, bits, block, method, samples, one.shop.threads)
    if one.form == "ort":
        exact = bool(one.one.params.get("exact"))
        weight_forms.write_onnx(one.path, found, one.into, weight_forms.EXACT if exact else weight_forms.FAST)
        return Applied(one.into, note)
    return Applied(weight_forms.write_openvino(one.path, found, one.into.parent), note)


def palettise(one: Step) -> Applied:
    """Weights on palettes of their own; the target finds each palette and its width in the values."""
    import onnx

    from edgekiln.compile.quantise.palettes import palettised

    data = given(one)
    made, note = palettised(
        onnx.load(one.path), float(one.one.params["bits"]), data.samples, one.shop.threads
    )
    onnx.save(made, one.into)
    return Applied(one.into, note)
