"""A PyTorch factory exported once for several input sizes, and compared with torch at each."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from edgekiln.errors import BadInput, ConversionFailed
from edgekiln.model.importers import import_model
from edgekiln.model.torch_export import _dynamo, _legacy, _open_axes
from edgekiln.records import Preprocess

SOURCE = '''
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    return nn.Sequential(*layers)


def flattens():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Flatten(), nn.Linear(4 * 16 * 16, 5))


class Remembers(nn.Module):
    """Takes any size in torch, but a branch in Python makes another graph of each."""

    def forward(self, x):
        return x.mean((2, 3)) * (2.0 if x.shape[2] > 40 else 3.0)


def remembers():
    return Remembers()
'''
SIZES = ((32, 32), (48, 64))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of factories; gone from the imported ones afterwards."""
    (tmp_path / "kiln_any_size.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("kiln_any_size", None)


def taken(name: str, folder: Path, sizes: tuple[tuple[int, int], ...] = SIZES):
    return import_model(
        f"kiln_any_size:{name}",
        folder / "out",
        input_shapes={"": (1, 3, *sizes[0])},
        search_path=(folder,),
        sizes=sizes,
    )


def test_one_graph_takes_every_size_and_gives_what_torch_gives(folder: Path) -> None:
    model = taken("build", folder)
    shape = model.signature.inputs[0].shape
    assert shape[:2] == (1, 3)
    assert all(isinstance(n, str) for n in shape[2:])
    assert shape[2] != shape[3]
    assert model.source.parity_max_error is not None
    import kiln_any_size

    net, session = kiln_any_size.build(), onnxruntime.InferenceSession(folder / "out" / model.path)
    for size in (*SIZES, (96, 33)):
        x = torch.randn(1, 3, *size)
        found = session.run(None, {model.signature.inputs[0].name: x.numpy()})[0]
        assert np.allclose(found, net(x).detach().numpy(), atol=1e-5)


def test_only_the_axes_in_which_the_sizes_differ_stay_open(folder: Path) -> None:
    shape = taken("build", folder, ((32, 32), (32, 64))).signature.inputs[0].shape
    assert shape[:3] == (1, 3, 32)
    assert isinstance(shape[3], str)
    assert taken("build", folder, ((32, 32),)).signature.inputs[0].shape == (1, 3, 32, 32)


def test_a_model_that_flattens_its_features_is_refused_at_the_size_it_does_not_take(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"at input 1x3x48x64") as caught:
        taken("flattens", folder)
    assert "flattens its features" in caught.value.cure


def test_an_export_that_bakes_one_size_in_is_never_taken(folder: Path) -> None:
    with pytest.raises(ConversionFailed, match=r"dynamo: .*torchscript: ") as caught:
        taken("remembers", folder)
    assert "differs from torch" in caught.value.why


def test_sizes_are_of_one_picture(folder: Path) -> None:
    with pytest.raises(BadInput, match="takes no single picture"):
        import_model(
            "kiln_any_size:build",
            folder / "out",
            input_shapes={"": (1, 7, 9)},
            search_path=(folder,),
            sizes=SIZES,
        )


def test_the_preprocessing_says_the_base(folder: Path) -> None:
    model = import_model(
        "kiln_any_size:build",
        folder / "out",
        preprocess=Preprocess(height=32, width=32),
        search_path=(folder,),
        sizes=SIZES,
    )
    assert all(isinstance(n, str) for n in model.signature.inputs[0].shape[2:])


def test_both_exporters_leave_the_axes_open(folder: Path) -> None:
    import kiln_any_size

    axes = _open_axes({"x": (1, 3, 32, 32)}, [{"x": (1, 3, 48, 64)}])
    assert axes == {"x": {2: "x_2", 3: "x_3"}}
    net = kiln_any_size.build().eval()
    for export in (_dynamo, _legacy):
        proto = export(net, {"x": torch.zeros(1, 3, 32, 32)}, ["y"], axes)
        dims = proto.graph.input[0].type.tensor_type.shape.dim
        assert [d.dim_value for d in dims[:2]] == [1, 3]
        assert all(d.dim_param for d in dims[2:])
