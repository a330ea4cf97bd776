"""A graph run piece by piece over many samples: what a piece leaves for the next lies on disk.

A method that changes layer after layer, each on the inputs that the changed layers before it give, would run
the beginning of the graph once per layer. A relay runs every node once or twice per sample in all, with one
sample's tensors in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.compile.quantise.simulate import part, session
from edgekiln.engines import Arrays
from edgekiln.files import disk_errors


class Relay:
    """The runs of ``samples`` through a graph, as far as they have come.

    ``folder`` is scratch; the tensors that are still to be read lie there, a file per sample and tensor.
    ``graph`` gives the model as it is now: its weights may change between calls, its nodes may not.
    """

    def __init__(
        self, graph: Callable[[], Any], samples: Iterable[Arrays], folder: Path, threads: int
    ) -> None:
        self._graph, self._folder, self._threads = graph, folder, threads
        model = graph()
        self._nodes = list(model.graph.node)
        self._constants = {i.name for i in model.graph.initializer}
        self._makers = {out: k for k, node in enumerate(self._nodes) for out in node.output if out}
        self._done: set[int] = set()
        self._live: dict[str, np.dtype[Any]] = {}
        self._numbers: dict[str, int] = {}
        self.count = 0
        wanted = [i.name for i in model.graph.input if i.name not in self._constants]
        for sample in samples:
            for name in wanted:
                value = np.asarray(sample[name])
                self._live[name] = value.dtype
                self._keep(self.count, name, value)
            self.count += 1

    def reach(self, name: str) -> Iterator[NDArray[Any]]:
        """Run every sample as far as tensor ``name``, and give its values sample by sample."""
        if name not in self._live:
            self._advance(name)
        for number in range(self.count):
            yield self._kept(number, name)

    def outputs(self, name: str) -> Iterator[NDArray[Any]]:
        """Values of ``name`` by the graph as it is now, without going on: nothing is kept of this run."""
        runner = session(part(self._graph(), [name], self._live), self._threads)
        inputs = [i.name for i in runner.get_inputs()]
        for number in range(self.count):
            (value,) = runner.run([name], {i: self._kept(number, i) for i in inputs})
            yield value

    def _advance(self, name: str) -> None:
        fresh = self._needed(name) - self._done
        done = self._done | fresh
        open_inputs = self._open_inputs(done)
        made = [o for k in sorted(fresh) for o in self._nodes[k].output if o in open_inputs]
        keep = list(dict.fromkeys([*made, name]))
        runner = session(part(self._graph(), keep, self._live), self._threads)
        inputs = [i.name for i in runner.get_inputs()]
        kinds: dict[str, np.dtype[Any]] = {}
        for number in range(self.count):
            values = runner.run(keep, {i: self._kept(number, i) for i in inputs})
            for out, value in zip(keep, values, strict=True):
                self._keep(number, out, value)
                kinds[out] = value.dtype
        self._done = done
        for old in [n for n in self._live if n not in open_inputs]:
            del self._live[old]
            for number in range(self.count):
                self._path(number, old).unlink()
        self._live |= kinds

    def _needed(self, name: str) -> set[int]:
        """Places of the nodes that ``name`` depends on and that are not behind a tensor at hand."""
        found: set[int] = set()
        left = [name]
        while left:
            one = left.pop()
            place = self._makers.get(one)
            if place is None or place in found or one in self._live:
                continue
            found.add(place)
            left += [i for i in self._nodes[place].input if i]
        return found

    def _open_inputs(self, done: set[int]) -> set[str]:
        """Tensors that a node outside ``done`` reads."""
        return {i for k, node in enumerate(self._nodes) if k not in done for i in _read(node) if i}

    def _path(self, number: int, name: str) -> Path:
        place = self._numbers.setdefault(name, len(self._numbers))
        return self._folder / f"{place}-{number}.npy"

    def _keep(self, number: int, name: str, value: NDArray[Any]) -> None:
        path = self._path(number, name)
        with disk_errors("keeping activations in", path), path.open("wb") as out:
            np.save(out, value, allow_pickle=False)

    def _kept(self, number: int, name: str) -> NDArray[Any]:
        held: NDArray[Any] = np.load(self._path(number, name), allow_pickle=False)
        return held


def _read(node: Any) -> Sequence[str]:
    from edgekiln.compile.quantise.simulate import captured

    return [*node.input, *captured(node)]
