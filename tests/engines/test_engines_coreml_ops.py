"""Ops that ONNX's node tests do not reach, each against what its definition gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import tensor

from edgekiln.engines import coreml
from edgekiln.engines.mil.table import functions
from fakes.mil import ENTRY, save, spec
from fakes.variants import artifact

OPS = functions(8)
X = torch.arange(9.0).reshape(3, 3)


@pytest.mark.parametrize(
    ("op", "given", "expected"),
    [
        ("band_part", {"x": X, "lower": tensor(0), "upper": tensor(-1)}, X.triu()),
        ("einsum", {"values": [X, X], "equation": "ij,kj->ik"}, X @ X.T),
        ("cumsum", {"x": tensor([1, 2, 3]), "exclusive": tensor(True), "reverse": tensor(True)}, [5, 3, 0]),
        ("one_hot", {"indices": tensor([1, 5]), "one_hot_vector_size": tensor(3)}, [[0, 1, 0], [0, 0, 0]]),
        ("sliding_windows", {"x": X, "axis": tensor(1), "size": tensor(2)}, X.unfold(1, 2, 1)),
        (
            "quantize",
            {"input": tensor([0.5, 1.5, 99.0]), "scale": tensor(1.0), "output_dtype": "int8"},
            [0, 2, 99],
        ),
        ("real_div", {"x": tensor(-7, dtype=torch.int32), "y": tensor(2, dtype=torch.int32)}, -3),
        ("range_1d", {"start": tensor(1), "end": tensor(8), "step": tensor(3)}, [1, 4, 7]),
        ("cast", {"x": tensor([-1.9, 1e20, float("nan")]), "dtype": "int32"}, [-1, 2**31 - 1, 0]),
        (
            "scatter",
            {"data": X, "indices": tensor([1, 1]), "updates": X[1:], "axis": tensor(1), "mode": "max"}
            | {"updates": torch.full((3, 2), 5.0)},
            [[0, 5, 2], [3, 5, 5], [6, 7, 8]],
        ),
    ],
)
def test_an_op_gives_what_its_definition_says(op: str, given: dict[str, Any], expected: Any) -> None:
    found = OPS[op](**given)
    np.testing.assert_array_equal(found.numpy(), np.asarray(expected))


def test_suppression_keeps_the_best_of_boxes_that_overlap() -> None:
    boxes = tensor([[[1.0, 1, 2, 2], [1.1, 1, 2, 2], [9, 9, 2, 2]]])
    scores = tensor([[[0.5], [0.9], [0.6]]])
    limits = {"iou_threshold": tensor(0.5), "score_threshold": tensor(0.1), "max_boxes": tensor(3)}
    _, best, index, count = OPS["non_maximum_suppression"](boxes=boxes, scores=scores, **limits)
    assert (index.tolist(), count.tolist()) == ([[1, 2, -1]], [2])
    assert best[0, 0].item() == pytest.approx(0.9)


def test_a_gru_with_the_reset_gate_after_the_product_is_pytorchs() -> None:
    torch.manual_seed(0)
    layer = torch.nn.GRU(3, 2)
    x = torch.randn(4, 1, 3)
    (w_ih, w_hh, b_ih, b_hh) = (p.detach() for p in layer.parameters())
    order = [0, 1, 4, 5, 2, 3]  # PyTorch: reset, update, new; MIL: reset, output, update
    hidden, last = OPS["gru"](
        x=x,
        initial_h=torch.zeros(1, 2),
        weight_ih=w_ih[order],
        weight_hh=w_hh[order],
        bias=b_hh[order],
        input_bias=b_ih[order],
        reset_after=tensor(True),
        output_sequence=tensor(True),
    )
    expected, end = layer(x)
    torch.testing.assert_close(hidden, expected.detach())
    torch.testing.assert_close(last, end[0].detach())


def test_a_loop_and_a_condition_run_their_blocks(tmp_path: Path) -> None:
    def body(mb: Any, x: Any) -> Any:
        (doubled,) = (
            mb.while_loop(
                _cond=lambda v: mb.less(x=mb.squeeze(x=v, axes=[0]), y=np.float32(100.0)),
                _body=lambda v: (mb.mul(x=v, y=np.float32(2.0)),),
                loop_vars=(x,),
            ),
        )
        return mb.cond(
            pred=mb.greater(x=mb.squeeze(x=doubled, axes=[0]), y=np.float32(150.0)),
            _true_fn=lambda: mb.mul(x=doubled, y=np.float32(-1.0)),
            _false_fn=lambda: mb.add(x=doubled, y=np.float32(0.5)),
        )

    save(tmp_path, body, [spec(1)])
    runner = coreml.open(artifact(ENTRY, "coreml"), tmp_path, 1)
    found = [next(iter(runner({"x0": np.array([v], np.float32)}).values())).tolist() for v in (5.0, 7.0)]
    assert found == [[-160.0], [112.5]]
