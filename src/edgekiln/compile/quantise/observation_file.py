"""Observations in one ``.npz``: kept for another recipe, another run, another machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.compile.quantise.histogram import BINS, LOG_BINS, MOST_CHANNELS, Channels, Observation


def save(seen: Mapping[str, Observation], path: Path) -> None:
    """Write observations; the same ones are the same bytes."""
    with path.open("wb") as out:
        np.savez_compressed(out, allow_pickle=False, **to_arrays(seen))


def load(path: Path) -> dict[str, Observation]:
    """Read what ``save`` wrote."""
    with np.load(path, allow_pickle=False) as held:
        return from_arrays({name: held[name] for name in held.files})


def to_arrays(seen: Mapping[str, Observation]) -> dict[str, NDArray[Any]]:
    """All observations as a few arrays: tensors in the order of their names, their channels in a row."""
    names = sorted(seen)
    found = [seen[n] for n in names]
    channels = [o.channels for o in found if o.channels is not None]
    sizes = [0 if o.channels is None else o.channels.lowest.size for o in found]

    def joined(parts: list[NDArray[Any]], kind: Any) -> NDArray[Any]:
        return np.concatenate(parts) if parts else np.zeros(0, kind)

    return {
        "names": np.array(names, np.str_),
        "ends": np.array([[o.lowest, o.highest, o.reach] for o in found]).reshape(-1, 3),
        "counts": np.array([o.counts for o in found], np.int64).reshape(-1, BINS),
        "log_counts": np.array([o.log_counts for o in found], np.int64).reshape(-1, LOG_BINS),
        "halves": np.array([o.halves for o in found]).reshape(-1, 2, 2),
        "axes": np.array([0 if o.axis is None else o.axis for o in found], np.int64),
        "channel_sizes": np.array(sizes, np.int64),
        "channel_n": np.array([0 if o.channels is None else o.channels.n for o in found], np.int64),
        "channel_lowest": joined([c.lowest for c in channels], np.float32),
        "channel_highest": joined([c.highest for c in channels], np.float32),
        "channel_total": joined([c.total for c in channels], np.float64),
        "channel_squares": joined([c.squares for c in channels], np.float64),
    }


def from_arrays(held: Mapping[str, NDArray[Any]]) -> dict[str, Observation]:
    """The inverse of ``to_arrays``. Raises KeyError or ValueError where arrays lack or don't fit together."""
    names = [str(n) for n in held["names"]]
    starts = np.concatenate([[0], np.cumsum(held["channel_sizes"])])
    seen = {}
    for k, name in enumerate(names):
        low, high, reach = (float(v) for v in held["ends"][k])
        axis, part = int(held["axes"][k]), slice(int(starts[k]), int(starts[k + 1]))
        channels = None
        if held["channel_sizes"][k]:
            kinds = ("lowest", "highest", "total", "squares")
            channels = Channels(int(held["channel_n"][k]), *(held[f"channel_{kind}"][part] for kind in kinds))
        seen[name] = Observation(
            lowest=low,
            highest=high,
            reach=reach,
            counts=held["counts"][k],
            log_counts=held["log_counts"][k],
            halves=held["halves"][k],
            axis=axis or None,
            channels=channels,
        )
    return seen


_SHAPES: dict[str, tuple[str, tuple[int, ...]]] = {
    "ends": ("float64", (3,)),
    "counts": ("int64", (BINS,)),
    "log_counts": ("int64", (LOG_BINS,)),
    "halves": ("float64", (2, 2)),
    "axes": ("int64", ()),
    "channel_sizes": ("int64", ()),
    "channel_n": ("int64", ()),
}
_PER_CHANNEL = {
    "channel_lowest": "float32",
    "channel_highest": "float32",
    "channel_total": "float64",
    "channel_squares": "float64",
}


def check_arrays(held: Mapping[str, NDArray[Any]]) -> None:
    """Raise ValueError unless ``held``, from anyone, is what ``to_arrays`` may give: names, types, lengths,
    and figures that can have been observed.
    """
    if set(held) != {"names", *_SHAPES, *_PER_CHANNEL}:
        raise ValueError("other arrays are in it")
    names = held["names"]
    if names.ndim != 1 or names.dtype.kind != "U" or len(set(names.tolist())) != names.size:
        raise ValueError("the tensors' names are no list")
    for key, (kind, shape) in _SHAPES.items():
        _check(key, held[key], kind, (names.size, *shape))
    sizes = held["channel_sizes"]
    if (sizes < 0).any() or (sizes > MOST_CHANNELS).any() or (held["channel_n"][sizes > 0] < 1).any():
        raise ValueError("impossible numbers of channels")
    for key, kind in _PER_CHANNEL.items():
        _check(key, held[key], kind, (int(sizes.sum()),))
        if np.isnan(held[key]).any():
            raise ValueError(f"'{key}' holds NaN")
    low, high, reach = held["ends"].T
    mantissa, _ = np.frexp(reach)
    if not np.isfinite(held["ends"]).all() or (low > high).any() or (reach < 0).any():
        raise ValueError("impossible ranges")
    if ((mantissa != 0.5) & (reach != 0)).any() or (np.maximum(-low, high) > reach).any():
        raise ValueError("ranges that are not those of the histograms")
    if (held["counts"] < 0).any() or (held["log_counts"] < 0).any() or np.isnan(held["halves"]).any():
        raise ValueError("impossible counts")
    if not set(held["axes"].tolist()) <= {-1, 0, 1}:
        raise ValueError("impossible axes")


def _check(key: str, array: NDArray[Any], kind: str, shape: tuple[int, ...]) -> None:
    if array.dtype != np.dtype(kind) or array.shape != shape:
        raise ValueError(f"'{key}' is {array.dtype} {array.shape} instead of {kind} {shape}")
