"""Functions that share weights and modules that keep a state, run from the saved package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekiln.compile.targets.coreml import convert
from edgekiln.compile.targets.coreml_functions import convert_stateful, function, merge_functions
from edgekiln.compile.targets.coreml_package import WEIGHTS
from edgekiln.engines import open_engine
from edgekiln.errors import BadInput
from edgekiln.records import Artifact, TensorSpec
from fakes.networks import SHAPE, classifier, picture, sqnr_db
from fakes.variants import PC, order

# ---------------------------------------------------------------- functions


class Encode(nn.Module):
    """The small classifier's features, wide enough that weights outweigh the program's text."""

    def __init__(self) -> None:
        super().__init__()
        self.body = classifier()[:5]
        self.wide = nn.Sequential(nn.Conv2d(24, 512, 1), nn.ReLU(), nn.Conv2d(512, 64, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wide(self.body(x))


class Detect(nn.Module):
    def __init__(self, encode: Encode) -> None:
        super().__init__()
        self.encode, self.head = encode, nn.Conv2d(64, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encode(x)).flatten(2)


class Classify(nn.Module):
    def __init__(self, encode: Encode) -> None:
        super().__init__()
        self.encode, self.head = encode, nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encode(x).mean((2, 3)))


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[nn.Module, Artifact, Path]]:
    """Three networks on one backbone: the module, its package and where that lies."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    encode = Encode().eval()
    nets = {"encode": encode, "detect": Detect(encode).eval(), "classify": Classify(encode).eval()}
    found = {}
    for name, net in nets.items():
        path = folder / f"{name}.onnx"
        names = {"input_names": ["image"], "output_names": [f"{name}d"]}
        torch.onnx.export(net, (torch.zeros(SHAPE),), path, dynamo=False, opset_version=17, **names)
        into = folder / f"{name}-out"
        found[name] = (net, convert(order(folder / name, path, "fp16", PC, threads=1), into), into)
    return found


def merged(parts, into: Path) -> Artifact:
    return merge_functions({name: (artifact, at) for name, (_, artifact, at) in parts.items()}, into)


def test_functions_of_one_backbone_share_its_weights_and_compute_what_they_did(parts, tmp_path: Path) -> None:
    made = merged(parts, tmp_path)
    x = picture(5)
    for name, (net, _, _) in parts.items():
        found = open_engine("coreml", function(made, name), tmp_path, 1)({"image": x})
        with torch.no_grad():
            expected = net(torch.from_numpy(x)).numpy()
        assert list(found) == [f"{name}d"]
        assert sqnr_db(expected, found[f"{name}d"]) > 40
    assert list(open_engine("coreml", made, tmp_path, 1)({"image": x})) == ["encoded"]
    weights = {n: (at / a.entry / WEIGHTS).stat().st_size for n, (_, a, at) in parts.items()}
    held = (tmp_path / made.entry / WEIGHTS).stat().st_size
    assert held < 1.05 * max(weights.values())
    assert held < 0.4 * sum(weights.values())
    assert made.checks[0].passed


def test_merging_twice_gives_the_same_bytes(parts, tmp_path: Path) -> None:
    assert merged(parts, tmp_path / "a").files == merged(parts, tmp_path / "b").files


def test_what_cannot_be_merged_is_refused_with_a_cure(parts, tmp_path: Path) -> None:
    _, encode, at = parts["encode"]
    with pytest.raises(BadInput, match="letters, digits"):
        merge_functions({"en code": (encode, at)}, tmp_path)
    with pytest.raises(BadInput, match="at least one"):
        merge_functions({}, tmp_path)
    with pytest.raises(BadInput, match="'encode'"):
        merge_functions({"encode": (encode, at)}, tmp_path, default="encoder")
    with pytest.raises(BadInput, match=r"no \.mlpackage"):
        merge_functions({"encode": (encode, tmp_path)}, tmp_path)
    made = merged(parts, tmp_path)
    with pytest.raises(BadInput, match="functions already"):
        merge_functions({"encode": (made, tmp_path)}, tmp_path / "b")
    with pytest.raises(BadInput, match="'detect'"):
        function(made, "detects")


# ---------------------------------------------------------------- states

LAYERS, HEADS, STEPS, WIDTH, WORDS = 2, 2, 12, 32, 40


class Decoder(nn.Module):
    """A decoder without norms. ``forward`` sees one token and the cache, ``whole`` all tokens at once."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(STEPS, WIDTH)
        self.joint = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(LAYERS))
        self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, WORDS)
        cache = torch.zeros(LAYERS, HEADS, STEPS, WIDTH // HEADS)
        self.register_buffer("keys", cache)
        self.register_buffer("values", cache.clone())

    def forward(self, token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        x = self.words(token)[0] + self.places(position)
        for layer in range(LAYERS):
            q, k, v = self.joint[layer](x).view(3, HEADS, 1, -1)
            self.keys[layer, :, position] = k
            self.values[layer, :, position] = v
            hidden = torch.arange(STEPS) > position
            x = x + self.out[layer](attend(q, self.keys[layer], self.values[layer], hidden))
        return self.head(x)

    def whole(self, tokens: torch.Tensor) -> torch.Tensor:
        n = len(tokens)
        x = self.words(tokens) + self.places(torch.arange(n))
        hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
        for layer in range(LAYERS):
            q, k, v = self.joint[layer](x).view(n, 3, HEADS, -1).permute(1, 2, 0, 3)
            x = x + self.out[layer](attend(q, k, v, hidden))
        return self.head(x)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(hidden, -1e4)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


TAKES = (
    TensorSpec(name="token", dtype="int32", shape=(1, 1)),
    TensorSpec(name="position", dtype="int32", shape=(1,)),
)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder().eval()


def test_a_decoder_with_its_cache_equals_the_whole_forward_pass(decoder: Decoder, tmp_path: Path) -> None:
    made = convert_stateful(decoder, TAKES, ["logits"], tmp_path)
    runner = open_engine("coreml", made, tmp_path, 1)
    tokens = [3, 17, 39, 0, 8, 8, 21]
    with torch.no_grad():
        expected = decoder.whole(torch.tensor(tokens)).numpy()

    def said() -> np.ndarray:
        steps = [{"token": np.int32([[t]]), "position": np.int32([at])} for at, t in enumerate(tokens)]
        return np.concatenate([runner(step)["logits"] for step in steps])

    assert sqnr_db(expected, said()) > 40
    runner.reset()
    last = runner({"token": np.int32([[tokens[-1]]]), "position": np.int32([len(tokens) - 1])})["logits"]
    assert sqnr_db(expected[-1:], last) < 20  # without what came before it says something else
    runner.reset()
    assert sqnr_db(expected, said()) > 40


def test_a_stateful_package_has_the_same_bytes_twice(decoder: Decoder, tmp_path: Path) -> None:
    first, second = (convert_stateful(decoder, TAKES, ["logits"], tmp_path / n) for n in "ab")
    assert first.files == second.files


def test_a_module_without_a_state_and_one_that_does_not_start_at_zero_are_refused(tmp_path: Path) -> None:
    class Counts(nn.Module):
        def __init__(self, start: float) -> None:
            super().__init__()
            self.register_buffer("total", torch.full((1,), start))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.total[:] = self.total + x
            return self.total * 2

    one = (TensorSpec(name="x", dtype="float32", shape=(1,)),)
    with pytest.raises(BadInput, match="changes no buffer"):
        convert_stateful(nn.Linear(1, 1), one, ["y"], tmp_path)
    with pytest.raises(BadInput, match=r"total.*zeros"):
        convert_stateful(Counts(1.0), one, ["y"], tmp_path)
    runner = open_engine("coreml", convert_stateful(Counts(0.0), one, ["y"], tmp_path), tmp_path, 1)
    assert [float(runner({"x": np.float32([v])})["y"][0]) for v in (1, 2, 4)] == [2, 6, 14]
