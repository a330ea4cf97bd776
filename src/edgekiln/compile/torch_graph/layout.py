"""Translations of operators that move, repeat, join or pick elements."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgekiln.compile.torch_graph.node import Array, Lowered, Node, Translate


def identity(node: Node) -> Lowered:
    return (lambda x: x.clone()), [node.name(0)]


def dropout(node: Node) -> Lowered:
    """Nothing at inference; the mask is all ones."""
    if node.has(2) and bool(node.needed(2, "training_mode").reshape(-1)[0]):
        node.refuse("it is in training mode")
    return (lambda x: (x.clone(), torch.ones_like(x, dtype=torch.bool))), [node.name(0)]


def reshape(node: Node) -> Lowered:
    """To a shape that is known when the graph is loaded; 0 and -1 are worked out."""
    asked = node.ints(1, "shape", "the shape") or []
    shape = node.shape(0)
    if not node.attribute("allowzero", 0):
        asked = [shape[i] if n == 0 else n for i, n in enumerate(asked)]
    if -1 in asked:
        rest = math.prod(n for n in asked if n != -1)
        asked[asked.index(-1)] = math.prod(shape) // rest if rest else 0
    if math.prod(asked) != math.prod(shape):
        node.refuse(f"{list(shape)} does not reshape to {asked}")
    return (lambda x: x.reshape(asked)), [node.name(0)]


def flatten(node: Node) -> Lowered:
    """To two axes, split at ``axis``."""
    axis = node.attribute("axis", 1)
    shape = node.shape(0)
    axis = axis + len(shape) if axis < 0 else axis
    made = [math.prod(shape[:axis]), math.prod(shape[axis:])]
    return (lambda x: x.reshape(made)), [node.name(0)]


def squeeze(node: Node) -> Lowered:
    """Take out axes of one element: those named, or all."""
    axes = node.ints(1, "axes", "which axes it squeezes")
    shape = node.shape(0)
    gone = {i for i, n in enumerate(shape) if n == 1} if axes is None else {node.axis(a) for a in axes}
    if any(shape[a] != 1 for a in gone):
        node.refuse(f"{list(shape)} has more than one element along an axis that it squeezes")
    made = [n for i, n in enumerate(shape) if i not in gone]
    return (lambda x: x.reshape(made)), [node.name(0)]


def unsqueeze(node: Node) -> Lowered:
    """Put in axes of one element, counted in the result."""
    axes = node.ints(1, "axes", "which axes it adds") or []
    rank = node.rank(0) + len(axes)
    made = list(node.shape(0))
    for axis in sorted(node.axis(a, rank) for a in axes):
        made.insert(axis, 1)
    return (lambda x: x.reshape(made)), [node.name(0)]


def transpose(node: Node) -> Lowered:
    order = [int(i) for i in node.attribute("perm") or range(node.rank(0))[::-1]]
    return (lambda x: x.permute(order)), [node.name(0)]


def concat(node: Node) -> Lowered:
    axis = node.axis(node.attribute("axis", 0))
    return (lambda *given: torch.cat(given, axis)), node.names


def split(node: Node) -> Lowered:
    """By sizes, or into equal parts of which the last may be smaller."""
    axis = node.axis(node.attribute("axis", 0))
    sizes = node.ints(1, "split", "the sizes")
    if sizes is None:
        length, parts = node.shape(0)[axis], node.attribute("num_outputs") or len(node.outputs)
        size = math.ceil(length / parts)
        sizes = [min(size, max(0, length - i * size)) for i in range(parts)]
    return (lambda x: tuple(torch.split(x, sizes, axis))), [node.name(0)]


def cut(node: Node) -> Lowered:
    """Slice. A negative step picks by index."""
    starts = node.ints(1, "starts", "where it starts") or []
    ends = node.ints(2, "ends", "where it ends") or []
    axes = node.ints(3, "axes", "which axes it cuts") or list(range(len(starts)))
    steps = node.ints(4, "steps", "its step") or [1] * len(starts)
    shape = node.shape(0)
    forward: list[slice] = [slice(None)] * len(shape)
    picked: dict[int, Array] = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = node.axis(axis)
        places = slice(start, end, step).indices(shape[axis])
        if step > 0:
            forward[axis] = slice(places[0], max(places[0], places[1]), step)
        else:
            picked[axis] = np.arange(*places, dtype=np.int64)
    whole = all(s == slice(None) or (s.start == 0 and s.stop == n and s.step == 1)
                for s, n in zip(forward, shape, strict=True))  # fmt: skip

    if picked:
        return pick(node, picked, None if whole else tuple(forward))
    return (lambda x: x.clone() if whole else x[tuple(forward)]), [node.name(0)]


def pick(node: Node, places: dict[int, Array], first: tuple[slice, ...] | None = None) -> Lowered:
    """Elements by index along some axes, after a plain slice of the others."""
    axes = list(places)

    def run(x: Tensor, *index: Tensor) -> Tensor:
        x = x if first is None else x[first]
        for axis, one in zip(axes, index, strict=True):
            x = selected(x, axis, one)
        return x

    return run, [node.name(0), *(node.keep(p.astype(np.int64)) for p in places.values())]


def wrapped(index: Tensor, length: int) -> Tensor:
    """Negative indices count from the end.

    The length is a tensor: ExecuTorch's quantiser turns numbers that are added to tensors into floats.
    """
    return torch.where(index < 0, index + torch.full_like(index, length), index)


def selected(x: Tensor, axis: int, places: Tensor) -> Tensor:
    """``torch.index_select``; booleans go as integers, because Core ML gathers none."""
    if x.dtype == torch.bool:
        return torch.index_select(x.to(torch.int32), axis, places) != 0
    return torch.index_select(x, axis, places)


def gathered(x: Tensor, axis: int, places: Tensor) -> Tensor:
    """``torch.gather`` in the same way."""
    if x.dtype == torch.bool:
        return torch.gather(x.to(torch.int32), axis, places) != 0
    return torch.gather(x, axis, places)


def gather(node: Node) -> Lowered:
    """A constant index picks or selects; rows of a table by computed index are an embedding."""
    axis, shape = node.axis(node.attribute("axis", 0)), node.shape(0)
    length, known = shape[axis], node.constant(1)
    made = [*shape[:axis], *node.shape(1), *shape[axis + 1 :]]
    if known is not None:
        places = known.astype(np.int64) % length
        if ((known < -length) | (known >= length)).any():
            node.refuse(f"an index is outside the {length} elements of axis {axis}")
        if known.ndim == 0:
            return (lambda x: x.select(axis, int(places))), [node.name(0)]
        index = node.keep(places.reshape(-1))
        return (lambda x, i: selected(x, axis, i).reshape(made)), [node.name(0), index]
    if axis == 0 and len(shape) == 2 and node.dtype(0).is_floating_point:
        return (lambda x, i: functional.embedding(wrapped(i, length), x)), node.names
    return (lambda x, i: selected(x, axis, wrapped(i, length).reshape(-1)).reshape(made)), node.names


def gather_elements(node: Node) -> Lowered:
    axis = node.axis(node.attribute("axis", 0))
    length = node.shape(0)[axis]
    return (lambda x, i: gathered(x, axis, wrapped(i.to(torch.int64), length))), node.names


def _flat_index(index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Index tuples [..., k] into the leading k axes of ``shape`` as places in those axes flattened."""
    strides = [math.prod(shape[axis + 1 : index.shape[-1]]) for axis in range(index.shape[-1])]
    places = index.new_zeros(index.shape[:-1], dtype=torch.int64)
    for axis, stride in enumerate(strides):
        one = wrapped(index[..., axis].to(torch.int64), shape[axis])
        places = places + one * torch.full_like(one, stride)
    return places


def gather_nd(node: Node) -> Lowered:
    """Pick by index tuples, as one row index into the flattened leading axes."""
    batch, shape, index = node.attribute("batch_dims", 0), node.shape(0), node.shape(1)
    depth = index[-1]
    inner, rest = shape[batch : batch + depth], shape[batch + depth :]
    groups = math.prod(shape[:batch])
    made = [*index[:-1], *rest]

    size = math.prod(inner)
    offsets = np.arange(groups, dtype=np.int64)[:, None] * size
    known = node.constant(1)
    if known is not None:
        tuples = np.moveaxis(known.astype(np.int64).reshape(groups, -1, depth), -1, 0)
        if any(((one < -n) | (one >= n)).any() for one, n in zip(tuples, inner, strict=True)):
            node.refuse(f"an index is outside {list(inner)}")
        wrapped_tuples = tuple(one % n for one, n in zip(tuples, inner, strict=True))
        places = (np.ravel_multi_index(wrapped_tuples, inner) + offsets).reshape(-1)
        return (lambda x, i: selected(x.reshape(groups * size, *rest), 0, i).reshape(made)), [
            node.name(0),
            node.keep(places),
        ]

    def run(x: Tensor, i: Tensor, start: Tensor) -> Tensor:
        places = (_flat_index(i, inner).reshape(groups, -1) + start).reshape(-1)
        return selected(x.reshape(groups * size, *rest), 0, places).reshape(made)

    return run, [*node.names, node.keep(offsets)]


REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scatter(x: Tensor, axis: int, places: Tensor, updates: Tensor, how: str) -> Tensor:
    if how == "none":
        return torch.scatter(x, axis, places, updates)
    return torch.scatter_reduce(x, axis, places, updates, REDUCTIONS[how], include_self=True)


def scatter_elements(node: Node) -> Lowered:
    axis, how = node.axis(node.attribute("axis", 0)), node.attribute("reduction", "none")
    length = node.shape(0)[axis]
    return (lambda x, i, u: _scatter(x, axis, wrapped(i.to(torch.int64), length), u, how)), node.names


def scatter_nd(node: Node) -> Lowered:
    """Write by index tuples, as one row index into the flattened leading axes."""
    how, shape, index = node.attribute("reduction", "none"), node.shape(0), node.shape(1)
    depth = index[-1]
    rows, width = math.prod(shape[:depth]), math.prod(shape[depth:])

    def run(x: Tensor, i: Tensor, updates: Tensor) -> Tensor:
        places = _flat_index(i, shape).reshape(-1, 1).expand(-1, width)
        flat = _scatter(x.reshape(rows, width), 0, places, updates.reshape(-1, width), how)
        return flat.reshape(shape)

    return run, node.names


def expand(node: Node) -> Lowered:
    """Broadcast against a known shape."""
    asked = node.ints(1, "shape", "the shape") or []
    made = list(np.broadcast_shapes(node.shape(0), tuple(asked)))
    if made == list(node.shape(0)):
        return identity(node)
    return (lambda x: x.expand(made)), [node.name(0)]


def tile(node: Node) -> Lowered:
    repeats = node.ints(1, "repeats", "how often it repeats") or []
    return (lambda x: x.repeat(repeats) if repeats else x.clone()), [node.name(0)]


def pad(node: Node) -> Lowered:
    """F.pad where it knows the mode for these axes, else elements by index."""
    pads = node.ints(1, "pads", "the padding") or []
    rank, mode = node.rank(0), node.attribute("mode", "constant")
    given = node.ints(3, "axes", "which axes it pads") if node.has(3) else list(range(rank))
    axes = [node.axis(a) for a in given or []]
    before, after = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        before[axis], after[axis] = pads[place], pads[place + len(axes)]
    if mode == "constant":
        value = node.needed(2, "the padding value").reshape(-1)[0].item() if node.has(2) else 0
        flat = flat_pads(before, after)
        return (lambda x: functional.pad(x, flat, value=value)), [node.name(0)]
    padded = [a for a in range(rank) if before[a] or after[a]]
    names = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    if mode not in names:
        node.refuse(f"its mode is '{mode}'")
    shape = node.shape(0)
    fits = all(0 <= p < shape[a] for a in padded for p in (before[a], after[a]))
    if padded and min(padded) >= 2 and rank in {3, 4} and mode != "wrap" and fits:
        flat = flat_pads(before[2:], after[2:])
        return (lambda x: functional.pad(x, flat, mode=names[mode])), [node.name(0)]
    if any(before[a] < 0 or after[a] < 0 for a in padded):
        node.refuse(f"it cuts while its mode is '{mode}'")
    chosen = {a: np.pad(np.arange(shape[a]), (before[a], after[a]), mode=mode) for a in padded}
    return pick(node, chosen)


def flat_pads(before: list[int], after: list[int]) -> list[int]:
    """Per axis before and after, to F.pad's order: the last axis first; leading axes of zero left out."""
    pairs = list(zip(before, after, strict=True))
    while len(pairs) > 1 and pairs[0] == (0, 0):
        pairs.pop(0)
    return [n for pair in reversed(pairs) for n in pair]


def depth_to_space(node: Node) -> Lowered:
    """Channels to blocks of pixels: CRD is F.pixel_shuffle, DCR a permutation."""
    size = node.attribute("blocksize")
    n, c, h, w = node.shape(0)
    if node.attribute("mode", "DCR") == "CRD":
        return (lambda x: functional.pixel_shuffle(x, size)), [node.name(0)]
    split_up, order = [n, size, size, c // size**2, h, w], [0, 3, 4, 1, 5, 2]
    made = [n, c // size**2, h * size, w * size]
    return (lambda x: x.reshape(split_up).permute(order).reshape(made)), [node.name(0)]


def space_to_depth(node: Node) -> Lowered:
    """Blocks of pixels to channels: CRD is F.pixel_unshuffle, DCR a permutation."""
    size = node.attribute("blocksize")
    n, c, h, w = node.shape(0)
    if node.attribute("mode", "DCR") == "CRD":
        return (lambda x: functional.pixel_unshuffle(x, size)), [node.name(0)]
    split_up, order = [n, c, h // size, size, w // size, size], [0, 3, 5, 1, 2, 4]
    made = [n, c * size**2, h // size, w // size]
    return (lambda x: x.reshape(split_up).permute(order).reshape(made)), [node.name(0)]


def triangle(node: Node) -> Lowered:
    k = int(node.needed(1, "k").reshape(-1)[0]) if node.has(1) else 0
    call = torch.triu if node.attribute("upper", 1) else torch.tril
    return (lambda x: call(x, k)), [node.name(0)]


def one_hot(node: Node) -> Lowered:
    """Compare with the places 0 .. depth - 1; negative indices count from the end."""
    depth = int(node.needed(1, "the depth").reshape(-1)[0])
    off, on = node.needed(2, "the pair of values")
    dtype, rank = node.dtype(2), node.rank(0) + 1
    axis = node.axis(node.attribute("axis", -1), rank)
    shape = [-1] + [1] * (rank - 1 - axis)

    def run(index: Tensor) -> Tensor:
        index = wrapped(index.to(torch.int64), depth).unsqueeze(axis)
        hit = index == torch.arange(depth).reshape(shape)
        return torch.where(hit, on.item(), off.item()).to(dtype)

    return run, [node.name(0)]


def compress(node: Node) -> Lowered:
    """Elements where a constant condition is true."""
    chosen = np.flatnonzero(node.needed(1, "which elements it takes"))
    axis = node.attribute("axis")
    if axis is None:
        return (lambda x, i: selected(x.reshape(-1), 0, i)), [node.name(0), node.keep(chosen)]
    return pick(node, {node.axis(axis): chosen})


OPS: dict[str, Translate] = {
    "Compress": compress,
    "Concat": concat,
    "DepthToSpace": depth_to_space,
    "Dropout": dropout,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Identity": identity,
    "OneHot": one_hot,
    "Pad": pad,
    "Reshape": reshape,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Slice": cut,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": triangle,
    "Unsqueeze": unsqueeze,
}
