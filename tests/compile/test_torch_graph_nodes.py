"""Each translated operator against the expected outputs of ONNX's own node tests (in the onnx package)."""

from __future__ import annotations

import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx.backend.test.case.test_case import TestCase

from edgekiln.compile.torch_graph import OPS, load
from edgekiln.errors import ConversionFailed

AT_LOADING = {"Shape", "Size", "EyeLike", "If", "Loop", "Constant", "ConstantOfShape", "Range"}
DIFFERS = {
    # The expected outputs use the unrounded length; ONNX Runtime and torch use the rounded one.
    "test_resize_downsample_scales_linear_align_corners",
    "test_resize_downsample_scales_cubic_align_corners",
    # Which of equal values comes first is torch's choice.
    "test_top_k_same_values",
    "test_top_k_same_values_2d",
    "test_top_k_same_values_largest",
}
REFUSED_FOR = (
    "its type is",
    "an input is",
    "casts to",
    "depends on the graph's inputs",
    "training mode",
    "its dilations are",
    "its indices are used",
    "tf_crop_and_resize",
    "axis without elements",
)
EXPORTED = {
    "test_averagepool_2d_same_lower",
    "test_clip",
    "test_convtranspose_pads",
    "test_cumsum_2d_axis_0",
    "test_einsum_batch_matmul",
    "test_gather_elements_negative_indices",
    "test_gathernd_example_int32_batch_dim1",
    "test_gru_seq_length",
    "test_hardmax_axis_1",
    "test_loop11",
    "test_lstm_with_peepholes",
    "test_onehot_with_axis",
    "test_reflect_pad",
    "test_resize_upsample_scales_cubic_A_n0p5_exclude_outside",
    "test_scatternd_add",
    "test_slice_negative_steps",
    "test_split_variable_parts_2d_opset18",
    "test_top_k",
}


def cases() -> dict[str, TestCase]:
    """Those whose operators are in the table and whose inputs and outputs are tensors."""
    from onnx.backend.test.case.node import collect_testcases

    found = {}
    for case in collect_testcases(None):
        nodes = case.model.graph.node
        known = all(n.op_type in OPS.keys() | AT_LOADING and not n.domain for n in nodes)
        inputs, outputs = case.data_sets[0]
        if known and all(isinstance(a, np.ndarray | np.generic | float | int) for a in [*inputs, *outputs]):
            found[case.name] = case
    return found


def translated(case: TestCase, folder: Path) -> tuple[Any, list[NDArray[Any]]]:
    """The module and its inputs. What the operator needs to know when it is loaded becomes a constant."""
    inputs = [np.asarray(a) for a in case.data_sets[0][0]]
    path = folder / "case.onnx"
    onnx.save(case.model, path)
    try:
        return load(path), inputs
    except ConversionFailed:
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        for value, array in list(zip(model.graph.input, inputs, strict=True))[1:]:
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        onnx.save(model, path)
        return load(path), inputs[:1]


def outputs(module: Any, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    with torch.no_grad():
        done = module(*(torch.from_numpy(np.array(a)) for a in inputs))
    return [t.numpy() for t in (done if isinstance(done, tuple) else (done,))]


def same(found: list[NDArray[Any]], expected: list[Any]) -> bool:
    """Half precision is held to its own step, everything else to 1e-3 of the value."""
    return len(found) == len(expected) and all(
        f.dtype == np.asarray(e).dtype
        and f.shape == np.asarray(e).shape
        and np.allclose(f, e, rtol=1e-3, atol=2e-3 if f.dtype == np.float16 else 1e-5, equal_nan=True)
        for f, e in zip(found, expected, strict=True)
    )


@pytest.fixture(scope="module")
def node_cases() -> dict[str, TestCase]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cases()


def test_onnx_own_node_tests(node_cases: dict[str, TestCase], tmp_path: Path) -> None:
    """All of them pass, are refused for a reason that is meant, or are named above as different."""
    wrong, passed = set(), defaultdict[str, int](int)
    reasons = {}
    for name, case in node_cases.items():
        try:
            module, inputs = translated(case, tmp_path)
        except ConversionFailed as error:
            reasons[name] = error.why
            continue
        if same(outputs(module, inputs), case.data_sets[0][1]):
            passed[case.model.graph.node[0].op_type] += 1
        else:
            wrong.add(name)
    assert wrong == DIFFERS
    assert {n: r for n, r in reasons.items() if not any(known in r for known in REFUSED_FOR)} == {}
    assert sum(passed.values()) >= 1100
    # Swish came with a later opset than some onnx packages know; Multinomial and the like are refused.
    assert OPS.keys() - passed.keys() <= {"Swish"}
    print(f"passed {sum(passed.values())}, refused {len(reasons)}, different {len(wrong)}")


def test_operators_with_loops_or_indices_of_their_own_can_be_exported(
    node_cases: dict[str, TestCase], tmp_path: Path
) -> None:
    left_out = set()
    for name in EXPORTED:
        case = node_cases[name]
        try:
            module, inputs = translated(case, tmp_path)
        except ConversionFailed:
            left_out.add(name)
            continue
        given = tuple(torch.from_numpy(np.array(a)) for a in inputs)
        program = torch.export.export(module, given, strict=False).run_decompositions({})
        assert same(outputs(program.module(), inputs), case.data_sets[0][1]), name
    assert left_out == {"test_loop11"}, "how often that loop runs is an input"
