"""ONNX Runtime artifacts: the variant's own bytes, proved to load."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekiln.compile.targets.onnxruntime import convert
from edgekiln.errors import ConversionFailed
from edgekiln.files import sha256_file
from fakes.variants import ORIN, PC, model_of, order


def test_the_graph_is_copied_and_opened(net: Path, tmp_path: Path) -> None:
    artifact = convert(order(tmp_path / "v", net, "fp32", PC), tmp_path / "out")
    assert [(f.path, f.sha256) for f in artifact.files] == [("model.onnx", sha256_file(net))]
    assert artifact.options == {"spinning": False}
    assert artifact.checks[0].passed is True


@pytest.mark.parametrize(
    ("device", "recipe", "arithmetic"), [(ORIN, "fp16", "fp16"), (PC, "fp16", None), (ORIN, "fp32", None)]
)
def test_float16_arithmetic_is_claimed_only_where_onnx_runtime_has_it(
    device, recipe: str, arithmetic: str | None, net: Path, tmp_path: Path
) -> None:
    artifact = convert(order(tmp_path / "v", net, recipe, device), tmp_path / "out")
    assert artifact.options.get("arithmetic") == arithmetic


def test_another_architecture_is_not_claimed_to_be_tried(net: Path, tmp_path: Path) -> None:
    artifact = convert(order(tmp_path / "v", net, "fp32", ORIN), tmp_path / "out")
    here = artifact.checks[0].detail
    assert ("not tried on arm64" in here) is ("x86_64" in here)


def test_what_onnx_runtime_refuses_is_a_failed_conversion_with_its_reason(net: Path, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a model")
    given = order(tmp_path / "v", tmp_path / "text.onnx", "fp32", PC, model_of(net))
    with pytest.raises(ConversionFailed, match=r"[Pp]rotobuf|parsing"):
        convert(given, tmp_path / "out")
