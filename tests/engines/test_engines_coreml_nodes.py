"""A part of ONNX's node tests through Core ML: each family of operators, and some compositions.

All of them: ``python scripts/coreml_nodes.py``.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


def load() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "scripts" / "coreml_nodes.py"
    spec = importlib.util.spec_from_file_location("coreml_nodes", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


nodes = load()

PASSING = (
    "abs",
    "acos",
    "add_bcast",
    "and2d",
    "argmax_keepdims_example",
    "argmin_no_keepdims_random",
    "averagepool_2d_ceil",
    "averagepool_2d_pads_count_include_pad",
    "averagepool_2d_same_upper",
    "basic_conv_with_padding",
    "batchnorm_example",
    "cast_FLOAT_to_FLOAT16",
    "ceil",
    "clip",
    "concat_3d_axis_negative_2",
    "conv_with_autopad_same",
    "conv_with_strides_and_asymmetric_padding",
    "convtranspose",
    "convtranspose_output_shape",
    "convtranspose_pad",
    "depthtospace_crd_mode_example",
    "depthtospace_example",
    "div",
    "elu",
    "equal",
    "erf",
    "exp",
    "flatten_axis2",
    "floor",
    "gather_1",
    "gather_elements_1",
    "gathernd_example_float32",
    "gelu_default_1",
    "globalaveragepool",
    "hardsigmoid",
    "hardswish",
    "instancenorm_epsilon",
    "leakyrelu",
    "less",
    "log",
    "logsoftmax_axis_1",
    "lstm_defaults",
    "lstm_with_initial_bias",
    "matmul_3d",
    "max_example",
    "maxpool_2d_ceil",
    "maxpool_2d_pads",
    "maxpool_2d_same_lower",
    "neg",
    "not_3d",
    "pow",
    "prelu_broadcast",
    "reciprocal",
    "reduce_l2_keep_dims_random",
    "reduce_log_sum_exp_do_not_keepdims_random",
    "reduce_mean_keepdims_random",
    "reduce_prod_keepdims_random",
    "resize_upsample_scales_nearest",
    "scatter_elements_with_axis",
    "scatternd",
    "shape",
    "sigmoid",
    "slice",
    "softmax_axis_1",
    "softplus",
    "split_equal_parts_2d_opset13",
    "squeeze_negative_axes",
    "tanh",
    "tile",
    "top_k",
    "transpose_all_permutations_1",
    "where_example",
    "xor2d",
)


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    known: dict[str, Any] = nodes.cases()
    return known


@pytest.mark.parametrize("name", PASSING)
def test_a_saved_node_computes_what_onnx_says(name: str, cases: dict[str, Any], tmp_path: Path) -> None:
    outcome = nodes.judge(cases[f"test_{name}"], tmp_path)
    assert (outcome.outcome, outcome.reason) == ("passed", "")


def test_a_wrong_conversion_is_noticed(cases: dict[str, Any], tmp_path: Path) -> None:
    """onnx2coreml 1.1 ignores the dilations of a pool."""
    outcome = nodes.judge(cases["test_maxpool_2d_dilations"], tmp_path)
    assert outcome.outcome == "wrong"
    assert "shape" in outcome.reason


def test_a_refused_conversion_is_grouped_by_its_reason(cases: dict[str, Any], tmp_path: Path) -> None:
    outcome = nodes.judge(cases["test_castlike_FLOAT_to_DOUBLE"], tmp_path)
    assert (outcome.outcome, outcome.reason) == ("refused by the converter", "no lowering for CastLike")


@pytest.mark.parametrize(
    ("found", "wanted", "message"),
    [
        (np.ones(2, np.float32), np.ones(3, np.float32), "shape"),
        (np.ones(2, np.float32), np.array([1, 1.1], np.float32), "1 of 2 elements, by up to 0.1"),
        (np.array([np.nan], np.float32), np.ones(1, np.float32), "1 of 1"),
    ],
)
def test_differences_are_noticed(found: Any, wanted: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        nodes.compare("y", found, wanted, 1e-3, 1e-7)


def test_crashes_and_outcomes_end_in_the_page() -> None:
    outcomes = [
        nodes.Outcome("test_a", "Abs", "passed"),
        nodes.Outcome("test_b", "Conv", "wrong", "y | differs"),
        nodes.Outcome("test_c", "LSTM", "refused by the converter", "the process died"),
    ]
    text = nodes.page(outcomes, 12.0, lambda outcome: "the converter's")
    assert "| converted | 2 |" in text
    assert "| `test_b` | Conv | y \\| differs | the converter's |" in text
    assert "| 1 | the process died |" in text
