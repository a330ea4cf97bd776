"""ONNX Runtime artifacts: the variant's own bytes or the mobile format, proved to open, placed honestly."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from edgekiln.compile.precision import to_fp16
from edgekiln.compile.targets import Conversion, ort_mobile
from edgekiln.compile.targets.onnxruntime import convert
from edgekiln.compile.targets.ort_providers import KEYS, Providers
from edgekiln.devices import load, names
from edgekiln.engines import open_engine
from edgekiln.errors import ConversionFailed
from edgekiln.files import sha256_file
from edgekiln.records import Artifact, Placement
from fakes.networks import picture, quantise, sqnr_db
from fakes.variants import ORIN, PC, model_of, order
from fakes.variants import artifact as variants_artifact

PIXEL, IPHONE, S24, MAC = (load(n) for n in ("pixel-9", "iphone-16-pro", "galaxy-s24", "macbook-m4"))


def made(graph: Path, recipe: str, device, folder: Path) -> Artifact:
    return convert(order(folder / "v", graph, recipe, device), folder / "out")


def row(artifact: Artifact, provider: str) -> Placement:
    return next(p for p in artifact.placement if p.provider == provider)


@pytest.fixture(scope="module")
def q8(net: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantise(net, tmp_path_factory.mktemp("q8") / "q8.onnx", symmetric=False)


@pytest.fixture(scope="module")
def phone(net: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:
    folder = tmp_path_factory.mktemp("phone")
    return made(net, "fp32", PIXEL, folder), folder / "out"


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


@pytest.mark.parametrize("device", [PC, PIXEL])
def test_what_onnx_runtime_refuses_is_a_failed_conversion_with_its_reason(
    device, net: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.onnx").write_text("not a model")
    given = order(tmp_path / "v", tmp_path / "text.onnx", "fp32", device, model_of(net))
    with pytest.raises(ConversionFailed, match=r"[Pp]rotobuf|parsing"):
        convert(given, tmp_path / "out")


# ---------------------------------------------------------------- the mobile format


def test_a_phone_gets_the_mobile_format_and_it_computes_what_the_graph_does(phone, net: Path) -> None:
    artifact, out = phone
    assert artifact.entry == "model.ort"
    assert (out / "model.ort").read_bytes()[4:8] == b"ORTM"
    x = {"image": picture(5)}
    native = variants_artifact(net.name, "onnxruntime")
    expected = open_engine("onnxruntime", native, net.parent, 1)(x)["logits"]
    assert sqnr_db(expected, open_engine("onnxruntime", artifact, out, 1)(x)["logits"]) > 90


def operators(config: Path) -> dict[str, set[str]]:
    """Operators by domain, as the configuration for a reduced build names them."""
    found: dict[str, set[str]] = {}
    for line in config.read_text().splitlines():
        if line and not line.startswith("#"):
            domain, _, ops = line.split(";", 2)
            found.setdefault(domain, set()).update(re.sub(r"\{[^}]*\}\}?", "", ops).split(","))
    return found


def test_the_configurations_name_the_files_operators_and_their_types(phone, net: Path) -> None:
    artifact, out = phone
    assert {f.path for f in artifact.files} == {
        "model.ort",
        "providers.json",
        "required_operators.config",
        "required_operators_and_types.config",
    }
    held = {(n.domain or "ai.onnx", n.op_type) for n in ort_mobile.optimised(net).graph.node}
    for name in ("required_operators.config", "required_operators_and_types.config"):
        named = {(d, op) for d, ops in operators(out / name).items() for op in ops}
        assert named == held
    assert '"float"' in (out / "required_operators_and_types.config").read_text()
    assert '"float"' not in (out / "required_operators.config").read_text()


@pytest.mark.parametrize("recipe", ["fp32", "int8-static-minmax"])
def test_nothing_of_x86_is_in_a_phones_file(net: Path, q8: Path, recipe: str, tmp_path: Path) -> None:
    """With x86's blocked layout allowed, this machine would write it: the test sees the difference."""
    import platform

    import onnxruntime as ort

    graph = net if recipe == "fp32" else q8
    artifact = made(graph, recipe, PIXEL, tmp_path)
    assert artifact.entry == "model.ort"
    assert not any("nchwc" in d for d in operators(tmp_path / "out/required_operators.config"))
    assert next(c for c in artifact.checks if c.name == "ort-format").passed is True
    if recipe == "fp32" and platform.machine() == "x86_64":
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / "leaking.onnx")
        ort.InferenceSession(str(net), options, providers=["CPUExecutionProvider"])
        assert "blocked layout" in ort_mobile.leaks(onnx.load(net), onnx.load(tmp_path / "leaking.onnx"))


def test_float16_is_not_turned_into_float32_behind_the_phones_back(net: Path, tmp_path: Path) -> None:
    import platform

    half = tmp_path / "half.onnx"
    onnx.save(to_fp16(onnx.load(net)), half)
    artifact = made(half, "fp16", PIXEL, tmp_path)
    held = {i.data_type for i in onnx.load(half).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in held
    if platform.machine() == "x86_64":
        assert artifact.entry == "model.onnx"
        assert sha256_file(tmp_path / "out/model.onnx") == sha256_file(half)
        check = next(c for c in artifact.checks if c.name == "ort-format")
        assert check.passed is None
        assert "float16" in check.detail
        nnapi = row(artifact, "NnapiExecutionProvider")
        assert nnapi.operators == len(onnx.load(half).graph.node)  # without the casts that this machine adds
        assert row(artifact, "XnnpackExecutionProvider").taken
        full = ort_mobile.optimised(half)
        assert onnx.TensorProto.FLOAT16 not in {i.data_type for i in full.graph.initializer if i.dims}


def test_two_conversions_give_the_same_bytes_and_hold_no_path(phone, net: Path, tmp_path: Path) -> None:
    first, out = phone
    second = made(net, "fp32", PIXEL, tmp_path / "elsewhere")
    assert second.files == first.files
    assert second == first
    for file in first.files:
        assert b"/tmp" not in (out / file.path).read_bytes()
        assert str(out.parent).encode() not in (out / file.path).read_bytes()


def test_only_the_order_of_the_operator_types_is_changed(net: Path, tmp_path: Path) -> None:
    """ONNX Runtime writes that table from a hash map; sorted, it holds what it held, as the model does."""
    from edgekiln.compile.targets.ort_canonical import canonical, operators

    ort_mobile.write(net, tmp_path)  # makes the reader of the format importable
    from ort_flatbuffers_py.fbs.InferenceSession import InferenceSession

    raw = []
    for name in ("a.ort", "b.ort"):
        ort_mobile._save(net, tmp_path / name, "ORT")
        raw.append((tmp_path / name).read_bytes())
    sorted_ = canonical(raw[0])
    assert sorted_ == canonical(raw[1]) == canonical(sorted_)
    before, after = (InferenceSession.GetRootAs(d, 0) for d in (raw[0], sorted_))
    assert operators(before.KernelTypeStrResolver()) == operators(after.KernelTypeStrResolver())
    assert operators(after.KernelTypeStrResolver())
    assert before.OrtVersion() == after.OrtVersion()
    models = [d[s.Model()._tab.Pos :] for d, s in ((raw[0], before), (sorted_, after))]
    assert models[0] == models[1]
    with pytest.raises(ValueError, match="no file in"):
        canonical(b"\0" * 64)


@pytest.mark.parametrize("device", [ORIN, PC, MAC])
def test_what_is_no_phone_keeps_the_graph(device, net: Path, tmp_path: Path) -> None:
    artifact = made(net, "fp32", device, tmp_path)
    assert artifact.entry == "model.onnx"
    assert not list((tmp_path / "out").glob("*.config"))


def test_the_library_leaves_the_root_logger_alone(net: Path, tmp_path: Path) -> None:
    script = (
        "import logging, sys; from pathlib import Path;"
        "from edgekiln.compile.targets.ort_mobile import write;"
        "write(Path(sys.argv[1]), Path(sys.argv[2])); print(logging.getLogger().handlers)"
    )
    source = Path(__file__).resolve().parents[2] / "src"
    done = subprocess.run(
        [sys.executable, "-c", script, str(net), str(tmp_path)],
        env={"PYTHONPATH": str(source), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


# ---------------------------------------------------------------- providers


EXPECTED = {
    "pixel-9": ["CPUExecutionProvider", "XnnpackExecutionProvider", "NnapiExecutionProvider"],
    "iphone-16-pro": ["CoreMLExecutionProvider", "CPUExecutionProvider", "XnnpackExecutionProvider"],
    "macbook-m4": ["CoreMLExecutionProvider", "CPUExecutionProvider"],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_device_gets_the_providers_of_its_platform(name: str, net: Path, tmp_path: Path) -> None:
    artifact = made(net, "fp32", load(name), tmp_path)
    found = msgspec.json.decode((tmp_path / "out/providers.json").read_bytes(), type=Providers)
    assert found.entry == artifact.entry
    assert [p.name for p in found.ranked] == EXPECTED[name]
    assert {p.provider.split(" ")[0] for p in artifact.placement} == set(EXPECTED[name])


DOCUMENTED = {
    # onnxruntime.ai/docs/execution-providers: Xnnpack, CoreML, NNAPI, QNN; written down a second time here.
    "CPUExecutionProvider": set(),
    "XnnpackExecutionProvider": {"intra_op_num_threads"},
    "NnapiExecutionProvider": {"USE_FP16", "USE_NCHW", "CPU_DISABLED", "CPU_ONLY"},
    "CoreMLExecutionProvider": {
        "ModelFormat",
        "MLComputeUnits",
        "RequireStaticInputShapes",
        "EnableOnSubgraphs",
        "SpecializationStrategy",
        "ProfileComputePlan",
        "AllowLowPrecisionAccumulationOnGPU",
        "ModelCacheDirectory",
    },
    "QNNExecutionProvider": {
        "backend_type",
        "htp_performance_mode",
        "htp_graph_finalization_optimization_mode",
        "offload_graph_io_quantization",
        "soc_model",
        "htp_arch",
    },
}


def test_no_key_is_written_that_its_provider_does_not_document() -> None:
    from edgekiln.compile.targets.ort_providers import available

    written = {n: set(keys) for n, keys in KEYS.items()}
    assert all(keys <= DOCUMENTED[n] for n, keys in written.items())
    for name in names():
        for flexible in (False, True):
            for provider in available(load(name), flexible):
                assert set(provider.options) <= DOCUMENTED[provider.name]
                assert not any(k.startswith(("nnapi_", "tunable_")) for k in provider.options)


def test_nnapi_is_last_and_its_row_says_that_it_is_deprecated(phone) -> None:
    artifact, out = phone
    assert "deprecated since Android 15" in row(artifact, "NnapiExecutionProvider").detail
    found = msgspec.json.decode((out / "providers.json").read_bytes(), type=Providers)
    assert found.ranked[-1].name == "NnapiExecutionProvider"
    assert "deprecated" in found.ranked[-1].note


def test_xnnpack_has_the_devices_threads_and_onnx_runtime_one(phone) -> None:
    found = msgspec.json.decode((phone[1] / "providers.json").read_bytes(), type=Providers)
    xnnpack = next(p for p in found.ranked if p.name.startswith("Xnnpack"))
    assert xnnpack.options == {"intra_op_num_threads": str(PIXEL.threads)}
    assert xnnpack.session == {"intra_op_num_threads": "1", "session.intra_op.allow_spinning": "0"}


def test_the_cpu_row_is_measured_and_counts_the_files_own_operators(phone, net: Path) -> None:
    mobile = row(phone[0], "CPUExecutionProvider")
    assert mobile.how == "measured"
    assert mobile.taken == mobile.operators == len(ort_mobile.optimised(net).graph.node)
    assert mobile.operators < len(onnx.load(net).graph.node)


def test_a_row_counts_the_shipped_file_and_says_what_the_fusions_cost(phone, net: Path) -> None:
    """NNAPI lacks FusedConv, which the mobile file holds, and takes all of the graph before the fusions."""
    nnapi = row(phone[0], "NnapiExecutionProvider")
    fused = sum(n.op_type == "FusedConv" for n in ort_mobile.optimised(net).graph.node)
    assert fused > 0
    assert nnapi.how == "emulated"
    assert nnapi.fallback["FusedConv"] == fused
    whole = len(ort_mobile.optimised(net, fused=False).graph.node)
    assert nnapi.operators is not None
    assert whole > nnapi.operators
    assert (
        f"before ONNX Runtime's fusions, which the file holds: {whole} of {whole} operators" in nnapi.detail
    )


def test_a_snapdragon_gets_the_real_partition_of_its_provider(q8: Path, tmp_path: Path) -> None:
    artifact = made(q8, "int8-static-minmax", S24, tmp_path)
    qnn = row(artifact, "QNNExecutionProvider")
    assert qnn.how == "emulated"
    assert qnn.taken is not None
    assert qnn.operators is not None
    assert qnn.fallback["QLinearConv"] > 3
    assert re.search(r"which the file holds: (\d+) of \1 operators in 1 partitions", qnn.detail)
    found = msgspec.json.decode((tmp_path / "out/providers.json").read_bytes(), type=Providers)
    ranks = [p.name for p in found.ranked]
    assert ranks.index("QNNExecutionProvider") > ranks.index("CPUExecutionProvider")
    assert next(p for p in found.ranked if p.name.startswith("QNN")).options["soc_model"] == "57"


_WITHOUT = """
import sys
sys.modules["onnxruntime_qnn"] = None
import msgspec
from pathlib import Path
from edgekiln.compile.targets import TARGETS, Conversion
from edgekiln.errors import MissingExtra
order = msgspec.json.decode(sys.argv[1], type=Conversion)
made = TARGETS["onnxruntime"].convert(order, Path(sys.argv[2]))
print(next(p for p in made.placement if p.provider.startswith("QNN")))
try:
    TARGETS["qnn"].convert(order, Path(sys.argv[2]))
except MissingExtra as error:
    print(error.extra)
"""


def test_without_qnn_its_row_has_no_figure_but_a_reason(net: Path, tmp_path: Path) -> None:
    given: Conversion = order(tmp_path / "v", net, "fp32", S24)
    source = Path(__file__).resolve().parents[2] / "src"
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT, msgspec.json.encode(given).decode(), str(tmp_path / "out")],
        env={"PYTHONPATH": str(source), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "operators=None" in first
    assert "onnxruntime-qnn is not installed" in first
    assert second == "qnn"


def test_several_sizes_keep_core_ml_from_asking_for_static_shapes(dynamic_net: Path, tmp_path: Path) -> None:
    given = order(tmp_path / "v", dynamic_net, "fp32", IPHONE, sizes=((32, 32), (64, 64)))
    artifact = convert(given, tmp_path / "out")
    found = msgspec.json.decode((tmp_path / "out/providers.json").read_bytes(), type=Providers)
    core_ml = next(p for p in found.ranked if p.name.startswith("CoreML"))
    assert core_ml.options["RequireStaticInputShapes"] == "0"
    taken = row(artifact, "CoreMLExecutionProvider (MLProgram)").taken
    assert taken == 0  # the batch is symbolic, and by the tool's rule each size must be known
    x = {"image": np.concatenate([picture(1), picture(2)])}
    assert open_engine("onnxruntime", artifact, tmp_path / "out", 1)(x)["logits"].shape == (2, 10)
