"""The preprocessing records that the app code of every language is proved on: each rule at least once."""

from __future__ import annotations

from edgekiln.records import Preprocess

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

PREPROCESSES: dict[str, Preprocess] = {
    "crop-bicubic": Preprocess(
        width=224,
        height=224,
        fit="crop",
        crop=0.875,
        interpolation="bicubic",
        scale=1.0,
        mean=(127.0,) * 3,
        std=(128.0,) * 3,
    ),
    "stretch-bilinear": Preprocess(width=160, height=96, interpolation="bilinear", mean=_MEAN, std=_STD),
    "letterbox-bgr": Preprocess(
        width=320,
        height=256,
        fit="letterbox",
        interpolation="bilinear",
        colour="BGR",
        scale=1.0,
        mean=(103.939, 116.779, 123.68),
        std=(1.0, 1.0, 1.0),
        pad=114,
    ),
    "grey-lanczos": Preprocess(
        width=48,
        height=96,
        fit="letterbox",
        interpolation="lanczos",
        colour="GRAY",
        mean=(0.5,),
        std=(0.25,),
        pad=7,
    ),
    "bytes-nhwc": Preprocess(width=192, height=128, fit="crop", layout="NHWC", scale=1.0, dtype="uint8"),
    "nearest-half": Preprocess(
        width=97, height=131, interpolation="nearest", dtype="float16", mean=_MEAN, std=_STD
    ),
    "box-nhwc": Preprocess(
        width=31, height=57, fit="crop", crop=0.71, interpolation="box", layout="NHWC", colour="BGR"
    ),
    "lanczos-enlarge": Preprocess(width=640, height=640, fit="stretch", interpolation="lanczos"),
}


def step(spec: Preprocess) -> float:
    """One 8-bit step of a pixel in the tensor: the largest difference that is allowed between languages."""
    return max(abs(spec.scale / s) for s in spec.std)
