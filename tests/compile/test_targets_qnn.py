"""QNN artifacts, judged by the real compiler and simulator: placement, contexts, the table of chips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekiln.compile.quantise.observers import observe
from edgekiln.compile.quantise.static import DIALECTS, precisions, prepared, quantise_static
from edgekiln.compile.targets import qnn
from edgekiln.compile.targets.qnn import SOCS, convert
from edgekiln.compile.targets.qnn_compile import Order, ask
from edgekiln.devices import Device, load
from edgekiln.engines import Runner, open_engine
from edgekiln.errors import ConversionFailed
from edgekiln.files import sha256_file
from edgekiln.records import Artifact
from fakes import trained_efficientnet
from fakes.networks import picture, sqnr_db
from fakes.trained_digits import TRAINED, Digits
from fakes.variants import PC, order
from fakes.variants import artifact as variants_artifact

S24 = load("galaxy-s24")
PIXEL = load("pixel-9")
BITS = {"int8-static-minmax": 8, "a16w8-static-minmax": 16}


def quantised(graph: Path, samples: list[dict[str, NDArray[np.float32]]], recipe: str, into: Path) -> Path:
    ready = prepared(graph, DIALECTS["qnn"], into.with_name("prepared.onnx"))
    seen = observe(ready, samples, 1)
    quantise_static(ready, seen, "minmax", {"activation_bits": BITS[recipe]}, DIALECTS["qnn"], into)
    return into


@pytest.fixture(scope="module")
def make(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Artifact, Path]]:
    """The digits network as an artifact of a recipe for a device, each made once."""
    made: dict[tuple[str, str], tuple[Artifact, Path]] = {}

    def one(recipe: str, device: Device = S24) -> tuple[Artifact, Path]:
        key = (recipe, device.name)
        if key not in made:
            folder = tmp_path_factory.mktemp("qnn")
            graph = digits.graph
            if recipe in BITS:
                graph = quantised(digits.graph, digits.samples(0, 32), recipe, folder / "graph.onnx")
            out = folder / "out"
            out.mkdir()
            made[key] = (convert(order(folder / "v", graph, recipe, device), out), out)
        return made[key]

    return one


def outputs(runner: Runner, digits: Digits, count: int = 12) -> NDArray[np.float32]:
    rows = [runner({"x": digits.images[i : i + 1]})["y"] for i in range(TRAINED, TRAINED + count)]
    runner.close()
    return np.concatenate(rows)


def reference(digits: Digits) -> NDArray[np.float32]:
    native = variants_artifact(digits.graph.name, "onnxruntime")
    return outputs(open_engine("onnxruntime", native, digits.graph.parent, 1), digits)


@pytest.mark.parametrize(
    ("recipe", "least_db"), [("int8-static-minmax", 25), ("a16w8-static-minmax", 35), ("fp16", 55)]
)
def test_the_simulator_takes_the_whole_graph_and_computes_what_the_float_model_does(
    make, digits: Digits, recipe: str, least_db: float
) -> None:
    artifact, folder = make(recipe)
    row = artifact.placement[0]
    assert row.how == "emulated"
    assert row.operators == row.taken > 8
    assert (row.partitions, row.fallback) == (1, {})
    assert artifact.options["cpu_fallback"] is False
    expected = reference(digits)
    found = outputs(open_engine("qnn", artifact, folder, 1), digits)
    assert sqnr_db(expected, found) > least_db
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.9
    assert found.dtype == np.float32


def test_float16_is_really_rounded_to_half_precision(make, digits: Digits) -> None:
    artifact, folder = make("fp16")
    assert sqnr_db(reference(digits), outputs(open_engine("qnn", artifact, folder, 1), digits)) < 90
    held = {i.data_type for i in onnx.load(folder / "model.onnx").graph.initializer}
    assert TensorProto.FLOAT not in held


def test_the_context_binary_runs_in_the_simulator_and_gives_the_same_bits(make, digits: Digits) -> None:
    artifact, folder = make("int8-static-minmax")
    assert artifact.entry == "model.onnx"
    assert artifact.options["context"] == "model_ctx.onnx"
    assert {f.path for f in artifact.files} == {"model.onnx", "model_ctx.onnx", "model_ctx_qnn.bin"}
    nodes = onnx.load(folder / "model_ctx.onnx").graph.node
    assert [n.op_type for n in nodes] == ["EPContext"]
    check = artifact.checks[0]
    assert (check.name, check.passed) == ("context-binary", True)
    context = msgspec.structs.replace(artifact, entry="model_ctx.onnx")
    both = [outputs(open_engine("qnn", a, folder, 1), digits, 3) for a in (artifact, context)]
    assert both[0].tobytes() == both[1].tobytes()


def test_the_check_says_what_the_context_is_for_and_which_phones_of_that_name_it_does_not_fit(make) -> None:
    detail = make("int8-static-minmax")[0].checks[0].detail
    for said in ("Snapdragon 8 Gen 3", "SM8650", "soc_model 57", "HTP v75", ":75:57:", "Exynos 2400"):
        assert said in detail


def test_a_chip_that_is_not_in_the_table_gets_the_portable_graph_and_no_binary(make) -> None:
    artifact, _ = make("int8-static-minmax", PIXEL)
    assert [f.path for f in artifact.files] == ["model.onnx"]
    assert not {"soc_model", "htp_arch", "context"} & set(artifact.options)
    assert artifact.checks[0].passed is None
    assert "Google Tensor G4" in artifact.checks[0].detail
    assert artifact.placement[0].partitions == 1


def test_two_conversions_give_the_same_bytes_and_hold_no_path(make, digits: Digits, tmp_path: Path) -> None:
    first, folder = make("int8-static-minmax")
    out = tmp_path / "elsewhere" / "out"
    out.mkdir(parents=True)
    graph = quantised(digits.graph, digits.samples(0, 32), "int8-static-minmax", tmp_path / "graph.onnx")
    second = convert(order(tmp_path / "v", graph, "int8-static-minmax", S24), out)
    assert first == second
    for name in ("model_ctx.onnx", "model_ctx_qnn.bin"):
        assert sha256_file(folder / name) == sha256_file(out / name)
        assert str(folder.parent).encode() not in (folder / name).read_bytes()


def test_the_provider_options_are_those_that_the_provider_has(make) -> None:
    """Each key is a string inside the provider's own library."""
    import onnxruntime_qnn

    from edgekiln.engines.qnn import OPTIONS

    library = Path(onnxruntime_qnn.get_library_path()).read_bytes()
    told = {k for k in make("int8-static-minmax")[0].options if k not in {"cpu_fallback", "context"}}
    assert told == OPTIONS
    assert all(key.encode() in library for key in OPTIONS)
    assert b"nnapi_accelerator_name" not in library


# ---------------------------------------------------------------- what falls back


def small(folder: Path, *nodes: onnx.NodeProto, shape: tuple[int, ...] = (1, 4, 8, 8)) -> Path:
    """A float graph from x to y of one shape."""
    kernel = np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", "y")]
    graph = helper.make_graph(list(nodes), "g", ends[:1], ends[1:], [numpy_helper.from_array(kernel, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def convolution(before: str, after: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [before, "w"], [after], name=f"conv_{after}", pads=[1, 1, 1, 1])


def test_an_operator_that_hexagon_lacks_is_counted_and_the_rest_still_runs(tmp_path: Path) -> None:
    erf = helper.make_node("Erf", ["a"], ["b"], name="erf")
    graph = small(tmp_path / "g", convolution("x", "a"), erf, convolution("b", "y"))
    out = tmp_path / "out"
    out.mkdir()
    artifact = convert(order(tmp_path / "v", graph, "fp16", S24), out)
    row = artifact.placement[0]
    assert row.partitions == 2
    assert row.fallback["Erf"] == 1
    assert row.taken == row.operators - sum(row.fallback.values())
    assert artifact.options["cpu_fallback"] is True
    x = {"x": picture(1, (1, 4, 8, 8))}
    found = open_engine("qnn", artifact, out, 1)(x)["y"]
    native = variants_artifact(graph.name, "onnxruntime")
    assert sqnr_db(open_engine("onnxruntime", native, graph.parent, 1)(x)["y"], found) > 40


def test_a_graph_of_which_hexagon_takes_nothing_is_refused_by_the_operators_name(tmp_path: Path) -> None:
    graph = small(tmp_path / "g", helper.make_node("Erf", ["x"], ["y"], name="erf"))
    (tmp_path / "out").mkdir()
    with pytest.raises(ConversionFailed, match="takes none of its operators: Erf"):
        convert(order(tmp_path / "v", graph, "int8-static-minmax", S24), tmp_path / "out")


def test_float16_for_an_unknown_chip_is_refused(digits: Digits, tmp_path: Path) -> None:
    with pytest.raises(ConversionFailed, match="not every Hexagon computes in float16"):
        convert(order(tmp_path / "v", digits.graph, "fp16", PC), tmp_path)


def test_a_broken_graph_fails_with_the_process_last_words(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ConversionFailed, match=r"ended with status 1: .*(?:rotobuf|model)"):
        ask(tmp_path, Order(provider={}, compile=False))


def test_a_compiler_that_takes_too_long_is_given_up(digits: Digits, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(digits.graph.read_bytes())
    with pytest.raises(ConversionFailed, match="not finished after 0 s"):
        ask(tmp_path, Order(provider={}, compile=False), time_limit_s=0.05)


# ---------------------------------------------------------------- the table of chips


def test_the_compiler_writes_both_numbers_of_every_chip_into_its_binary(tmp_path: Path) -> None:
    """The provider is given the part's name alone: where all binaries differ as the table says, it agrees.

    A context holds the chip's number and Hexagon's version, which the compiler finds itself. Somewhere in
    the binaries, at one and the same place, must stand the table's number of each chip; and so must the
    version.
    """
    binaries = []
    for chip in SOCS.values():
        folder = tmp_path / chip.part
        small(folder, convolution("x", "a"), helper.make_node("Relu", ["a"], ["y"], name="relu"))
        told = ask(folder, Order(provider={"soc_model": chip.part}, compile=True))
        assert f":{chip.soc_model}:" in told.compiled_for
        binaries.append(np.frombuffer((folder / "model_ctx_qnn.bin").read_bytes()[:4096], np.uint8))
    columns = np.stack([b[: min(map(len, binaries))] for b in binaries], axis=1)
    for numbers in ([c.soc_model for c in SOCS.values()], [c.htp_arch for c in SOCS.values()]):
        assert (columns == np.array(numbers, np.uint8)).all(axis=1).any()


def test_every_chip_names_its_source_and_a_device_of_that_name_finds_it() -> None:
    assert all(c.source for c in SOCS.values())
    assert qnn.soc(S24) == SOCS["Qualcomm Snapdragon 8 Gen 3"]
    assert qnn.soc(PIXEL) is None


# ---------------------------------------------------------------- what the dialect is for


def attention(folder: Path) -> Path:
    """A layer of attention with LayerNorm, a gated unit and GELU in pieces: [1, 16, 32] to [1, 10]."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96, bias=False), nn.Linear(32, 32)
            self.wide, self.head = nn.Linear(32, 64), nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
            x = x + self.out(torch.softmax(q @ k.transpose(-1, -2) / 5.6, -1) @ v)
            x = self.wide(x)
            return torch.tanh(self.head(nn.functional.gelu(x * torch.sigmoid(x)))).mean(1)

    torch.manual_seed(0)
    path = folder / "attention.onnx"
    torch.onnx.export(
        Net().eval(),
        (torch.zeros(1, 16, 32),),
        path,
        dynamo=False,
        input_names=["x"],
        output_names=["y"],
        opset_version=17,
    )
    return path


@pytest.mark.parametrize(("recipe", "least_db"), [("int8-static-minmax", 25), ("a16w8-static-minmax", 40)])
def test_a_transformer_stays_in_one_partition_and_true_to_the_float_model(
    tmp_path: Path, recipe: str, least_db: float
) -> None:
    from edgekiln.compile.graph import optimise

    samples = [{"x": picture(k, (1, 16, 32))} for k in range(6)]
    optimise(attention(tmp_path), {"x": (1, 16, 32)}, samples[0], tmp_path / "graph.onnx")
    graph = quantised(tmp_path / "graph.onnx", samples, recipe, tmp_path / "q.onnx")
    assert set(precisions(graph)) == {"int8" if BITS[recipe] == 8 else "a16w8"}
    (tmp_path / "out").mkdir()
    artifact = convert(order(tmp_path / "v", graph, recipe, S24), tmp_path / "out")
    assert (artifact.placement[0].partitions, artifact.placement[0].fallback) == (1, {})
    native = variants_artifact("graph.onnx", "onnxruntime")
    expected = open_engine("onnxruntime", native, tmp_path, 1)(samples[0])["y"]
    found = open_engine("qnn", artifact, tmp_path / "out", 1)(samples[0])["y"]
    assert sqnr_db(expected, found) > least_db


@pytest.mark.parametrize("recipe", list(BITS))
def test_operators_that_the_preparation_takes_apart_have_ranges_too(recipe: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kernel = numpy_helper.from_array(rng.normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("HardSwish", ["c"], ["h"], name="swish"),
        helper.make_node("GlobalAveragePool", ["h"], ["y"], name="pool"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 1, 1])
    graph = helper.make_graph(nodes, "swish", [x], [y], [kernel])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for node in model.graph.node:
        node.name = ""  # naming them is reason enough for the preparation to write its own graph
    onnx.save(model, tmp_path / "graph.onnx")
    samples = [{"x": picture(k, (1, 3, 16, 16))} for k in range(4)]
    made = quantised(tmp_path / "graph.onnx", samples, recipe, tmp_path / "q.onnx")
    assert (tmp_path / "prepared.onnx").is_file()
    plain = open_engine("onnxruntime", variants_artifact("graph.onnx", "onnxruntime"), tmp_path, 1)
    low = open_engine("onnxruntime", variants_artifact(made.name, "onnxruntime"), tmp_path, 1)
    assert sqnr_db(plain(samples[0])["y"], low(samples[0])["y"]) > 25


def test_the_dialect_has_u16_activations_and_other_dialects_refuse_them(
    digits: Digits, tmp_path: Path
) -> None:
    graph = quantised(digits.graph, digits.samples(0, 8), "a16w8-static-minmax", tmp_path / "q.onnx")
    assert precisions(graph) == {"a16w8": 3}
    seen = observe(digits.graph, digits.samples(0, 8), 1)
    with pytest.raises(ConversionFailed, match="'ort' has no activations of 16 bits"):
        quantise_static(
            digits.graph, seen, "minmax", {"activation_bits": 16}, DIALECTS["ort"], tmp_path / "o"
        )


def test_efficientnet_lite0_is_one_partition_and_the_simulator_runs_it(tmp_path: Path) -> None:
    full = trained_efficientnet.build(tmp_path)
    seen = [
        {"image": trained_efficientnet.photograph(n)} for n in ("astronaut.png", "coffee.png", "rocket.jpg")
    ]
    graph = quantised(full, seen, "int8-static-minmax", tmp_path / "q.onnx")
    (tmp_path / "out").mkdir()
    artifact = convert(order(tmp_path / "v", graph, "int8-static-minmax", S24), tmp_path / "out")
    placed = artifact.placement[0]
    assert (placed.partitions, placed.fallback) == (1, {})
    assert placed.taken == placed.operators
    assert artifact.checks[0].passed is True
    native = variants_artifact(full.name, "onnxruntime")
    expected = open_engine("onnxruntime", native, full.parent, 1)(seen[0])["logits"]
    found = open_engine("qnn", artifact, tmp_path / "out", 1)(seen[0])["logits"]
    assert sqnr_db(expected, found) > 10
