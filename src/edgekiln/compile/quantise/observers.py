"""Streaming observers of activation ranges: one pass over the data, memory bounded by the graph.

Each tensor keeps its exact minimum and maximum and a histogram of fixed size. The histogram spans
[-R, R) with R a power of two times its first value: when a value falls outside, R doubles and pairs
of bins merge, so no second pass is needed and nothing grows with the number of samples. Several range
rules (min-max, percentile, MSE) then read the same observation.

The histogram takes at most ``POINTS`` values of a tensor per sample, at a stride that shares no factor
with common channel counts; minimum and maximum always see every value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Arrays
from edgekiln.errors import ConversionFailed
from edgekiln.records import Record, Scalar

BINS = 8192
POINTS = 32768
GROUP_BYTES = 256 << 20  # activations held at once while observing

Ranges: TypeAlias = dict[str, tuple[float, float]]


@dataclass
class Observation:
    """What was seen of one tensor. ``reach`` is R of the histogram; 0 until a non-zero value came."""

    lowest: float = math.inf
    highest: float = -math.inf
    reach: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: NDArray[Any]) -> None:
        """Take in one sample's values. Raises ValueError on NaN or infinity."""
        flat = values.reshape(-1)
        if flat.size == 0:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("NaN or infinity")
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)
        if flat.size > POINTS:
            flat = flat[:: _coprime_stride(flat.size // POINTS)]
        self._widen(max(abs(low), abs(high)))
        if self.reach == 0.0:
            self.counts[BINS // 2] += flat.size
            return
        # float64: for the smallest magnitudes the factor is beyond float32.
        index = np.floor(flat.astype(np.float64) * (BINS / 2 / self.reach)).astype(np.int32) + BINS // 2
        self.counts += np.bincount(np.clip(index, 0, BINS - 1), minlength=BINS)

    def _widen(self, largest: float) -> None:
        if largest == 0.0 or largest < self.reach:
            return
        if self.reach == 0.0:
            # All before were zeros: they stay in the bin that begins at zero, whatever its width.
            self.reach = 2.0 ** math.frexp(largest)[1]
            return
        while largest >= self.reach:
            self.reach *= 2
            merged = np.zeros(BINS, np.int64)
            merged[BINS // 4 : 3 * BINS // 4] = self.counts.reshape(-1, 2).sum(1)
            self.counts = merged

    def centres(self) -> NDArray[np.float64]:
        """Bin centres, shape (BINS,); the outermost seen values bound them."""
        reach = self.reach or 1.0
        middles = (np.arange(BINS) + 0.5 - BINS / 2) * (2 * reach / BINS)
        return np.clip(middles, self.lowest, self.highest)


def _coprime_stride(stride: int) -> int:
    """The next odd stride that shares no factor with channel counts (multiples of 2, 3, 5, 7)."""
    while stride > 1 and math.gcd(stride, 210) != 1:
        stride += 1
    return max(stride, 1)


# ---------------------------------------------------------------- from an observation to a range


def minmax_range(seen: Observation, symmetric: bool) -> tuple[float, float]:
    """The whole range seen, widened to hold zero."""
    low, high = min(seen.lowest, 0.0), max(seen.highest, 0.0)
    if symmetric:
        high = max(-low, high)
        low = -high
    return low, high


def percentile_range(seen: Observation, symmetric: bool, percentile: float) -> tuple[float, float]:
    """The range that holds ``percentile`` % of the values, half of the rest cut on either side.

    Symmetric: the magnitude that holds ``percentile`` %.
    """
    counts, half = seen.counts, BINS // 2
    width = (seen.reach or 1.0) / half
    if symmetric:
        folded = np.cumsum(counts[half:] + counts[:half][::-1])
        last = int(np.searchsorted(folded, percentile / 100 * folded[-1]))
        reach = min((min(last, half - 1) + 1) * width, minmax_range(seen, symmetric=True)[1])
        return -reach, reach
    tail = (100 - percentile) / 200
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])
    # The outer edges of the bins, so that what they hold is inside.
    first = int(np.searchsorted(below, tail * below[-1], side="right"))
    last = BINS - 1 - int(np.searchsorted(above, tail * above[-1], side="right"))
    low, high = (first - half) * width, (last + 1 - half) * width
    return min(max(low, seen.lowest), 0.0), max(min(high, seen.highest), 0.0)


def mse_range(seen: Observation, symmetric: bool, bits: int = 8) -> tuple[float, float]:
    """The range whose uniform quantisation to ``bits`` has the least squared error on the histogram.

    Grid search over the share of each end that is kept, upper end first, then the lower (OMSE of
    Choukroun et al. 2019, with both ends free).
    """
    used = np.flatnonzero(seen.counts)
    if used.size == 0:
        return minmax_range(seen, symmetric)
    centres, weights = seen.centres()[used], seen.counts[used].astype(np.float64)
    low, high = minmax_range(seen, symmetric)
    shares: list[float] = np.linspace(1.0, 0.2, 65).tolist()

    def error(ends: tuple[float, float]) -> float:
        return _error(centres, weights, *ends, bits, symmetric)

    if symmetric:
        return min(((-high * s, high * s) for s in shares), key=error)
    for _ in range(2):
        low, high = min(((low, high * s) for s in shares), key=error)
        low, high = min(((low * s, high) for s in shares), key=error)
    return low, high


def _error(
    centres: NDArray[np.float64],
    weights: NDArray[np.float64],
    low: float,
    high: float,
    bits: int,
    symmetric: bool,
) -> float:
    """Weighted squared error of quantising ``centres`` onto [low, high]."""
    steps = 2**bits - (2 if symmetric else 1)
    scale = (high - low) / steps
    if scale <= 0:
        return float((weights * centres**2).sum())
    zero = np.round(low / scale)
    levels = np.clip(np.round(centres / scale), zero, zero + steps)
    return float((weights * (centres - levels * scale) ** 2).sum())


def ranges(
    seen: dict[str, Observation], rule: str, symmetric: bool, params: dict[str, Scalar] | None = None
) -> Ranges:
    """The range of every tensor by ``rule``: ``minmax``, ``percentile`` (param), or ``mse``."""
    params = params or {}
    if rule == "minmax":
        return {name: minmax_range(o, symmetric) for name, o in seen.items()}
    if rule == "percentile":
        share = float(params["percentile"])
        return {name: percentile_range(o, symmetric, share) for name, o in seen.items()}
    if rule == "mse":
        return {name: mse_range(o, symmetric) for name, o in seen.items()}
    raise ValueError(f"no range rule '{rule}'")


# ---------------------------------------------------------------- watching a graph


class _Watched(Record, frozen=True, kw_only=True):
    name: str
    size_bytes: int


def observe(
    graph: Path, samples: Iterable[Arrays], threads: int, group_bytes: int = GROUP_BYTES
) -> dict[str, Observation]:
    """Run ``samples`` through the ONNX graph and observe every float activation.

    Peak memory is the float run plus ``group_bytes``, whatever the number of samples: where a sample's
    activations are larger together, they are watched in several runs of that sample.
    Raises ConversionFailed where an activation is NaN or infinite, naming the tensor.
    """
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(graph))
    groups = _groups(_watchable(model), group_bytes)
    constant = {i.name for i in model.graph.initializer}  # older graphs list them as inputs too
    floats = [i for i in model.graph.input if i.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
    inputs = [i.name for i in floats if i.name not in constant]
    seen = {w.name: Observation() for group in groups for w in group} | {n: Observation() for n in inputs}
    sessions = [(group, _session(model, group, threads)) for group in groups]
    count = 0
    for sample in samples:
        count += 1
        for name, value in _values(sample, inputs, sessions):
            try:
                seen[name].add(value)
            except ValueError as error:
                raise ConversionFailed(
                    "calibrating",
                    graph.name,
                    f"tensor '{name}' holds {error} on sample {count}",
                    "The float model itself overflows there: mend the model or its preprocessing",
                ) from error
    if count == 0:
        raise ConversionFailed("calibrating", graph.name, "there is no sample", "Give --data with pictures")
    return {name: o for name, o in seen.items() if math.isfinite(o.lowest)}


def _values(
    sample: Arrays, inputs: Sequence[str], sessions: Sequence[tuple[list[_Watched], Any]]
) -> Iterator[tuple[str, NDArray[Any]]]:
    """The inputs of one sample, then its activations, one group in memory at a time."""
    for name in inputs:
        yield name, np.asarray(sample[name])
    for group, session in sessions:
        names = [w.name for w in group]
        yield from zip(names, session.run(names, dict(sample)), strict=True)


def _watchable(model: Any) -> list[_Watched]:
    """Float activations in graph order; a symbolic axis counts as 1."""
    import onnx

    sizes: dict[str, int] = {}
    for info in [*model.graph.value_info, *model.graph.output]:
        tensor = info.type.tensor_type
        if tensor.elem_type == onnx.TensorProto.FLOAT:
            sizes[info.name] = 4 * math.prod(max(d.dim_value, 1) for d in tensor.shape.dim)
    produced = [name for node in model.graph.node if node.op_type != "Constant" for name in node.output]
    return [_Watched(name=n, size_bytes=sizes[n]) for n in produced if n in sizes]


def _groups(watched: Sequence[_Watched], group_bytes: int) -> list[list[_Watched]]:
    groups: list[list[_Watched]] = [[]]
    held = 0
    for one in watched:
        if groups[-1] and held + one.size_bytes > group_bytes:
            groups.append([])
            held = 0
        groups[-1].append(one)
        held += one.size_bytes
    return [g for g in groups if g]


def _session(model: Any, group: Sequence[_Watched], threads: int) -> Any:
    import onnx
    import onnxruntime as ort

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {o.name for o in watched.graph.output}
    watched.graph.output.extend(
        onnx.helper.make_tensor_value_info(w.name, onnx.TensorProto.FLOAT, None)
        for w in group
        if w.name not in known
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])


# ---------------------------------------------------------------- kept for another run


def save(seen: dict[str, Observation], path: Path) -> None:
    """Write observations to one ``.npz``: they can be carried to another run, recipe or machine."""
    names = sorted(seen)
    with path.open("wb") as out:
        np.savez_compressed(
            out,
            names=np.array(names),
            ends=np.array([[seen[n].lowest, seen[n].highest, seen[n].reach] for n in names]),
            counts=np.array([seen[n].counts for n in names]),
        )


def load(path: Path) -> dict[str, Observation]:
    """Read what ``save`` wrote."""
    with np.load(path, allow_pickle=False) as held:
        rows = zip(held["names"], held["ends"], held["counts"], strict=True)
        return {
            str(name): Observation(float(low), float(high), float(reach), counts)
            for name, (low, high, reach), counts in rows
        }
