"""The QNN engine on its HTP simulator: no fallback unless allowed, errors with a cure, nothing left about."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekiln.engines import open_engine
from edgekiln.engines import qnn as engine
from edgekiln.errors import NotRunnableHere
from edgekiln.records import Artifact
from fakes.networks import picture, quantise, sqnr_db
from fakes.variants import artifact

CHIP = {"backend_type": "htp", "soc_model": 57, "htp_arch": 75, "offload_graph_io_quantization": 0}


def erf(folder: Path) -> Path:
    """Relu, which Hexagon has, and Erf, which it has not."""
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4, 8, 8]) for n in ("x", "y")]
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Erf", ["a"], ["y"])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    path = folder / "erf.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def q8(net: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantise(net, tmp_path_factory.mktemp("q8") / "q8.onnx", symmetric=False)


def test_the_simulator_computes_the_quantised_graph(net: Path, q8: Path) -> None:
    x = {"image": picture(3)}
    full = open_engine("onnxruntime", artifact(net.name, "onnxruntime"), net.parent, 1)(x)["logits"]
    runner = open_engine("qnn", artifact(q8.name, "qnn", **CHIP), q8.parent, 1)
    first = runner(x)["logits"]
    assert first.dtype == np.float32
    assert 8 < sqnr_db(full, first) < 60
    kept = first.copy()
    runner({"image": picture(4)})
    assert np.array_equal(first, kept)
    runner.close()


def test_an_operator_that_hexagon_lacks_is_refused_unless_the_artifact_allows_the_cpu(tmp_path: Path) -> None:
    path = erf(tmp_path)
    with pytest.raises(NotRunnableHere, match="fallback to CPU") as caught:
        engine.open(artifact(path.name, "qnn", **CHIP), tmp_path, 1)
    assert "placement names the operators" in caught.value.cure
    allowed = artifact(path.name, "qnn", cpu_fallback=True, **CHIP)
    assert engine.open(allowed, tmp_path, 1)({"x": picture(1, (1, 4, 8, 8))})["y"].shape == (1, 4, 8, 8)


def test_what_is_no_graph_is_an_error_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("not a model")
    with pytest.raises(NotRunnableHere) as caught:
        engine.open(artifact("model.onnx", "qnn"), tmp_path, 1)
    assert caught.value.why


def test_a_context_without_its_binary_is_an_error_and_no_crash(tmp_path: Path) -> None:
    node = helper.make_node(
        "EPContext",
        ["x"],
        ["y"],
        domain="com.microsoft",
        main_context=1,
        ep_cache_context="gone.bin",
        embed_mode=0,
        source="QNNExecutionProvider",
        partition_name="p",
    )
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("x", "y")]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph([node], "g", ends[:1], ends[1:]), opset_imports=opsets, ir_version=9
    )
    onnx.save(model, tmp_path / "model_ctx.onnx")
    with pytest.raises(NotRunnableHere):
        engine.open(artifact("model_ctx.onnx", "qnn", **CHIP), tmp_path, 1)


_RUN = """
import sys
from pathlib import Path
import numpy as np
from edgekiln.engines import qnn
from edgekiln.records import Artifact
import msgspec
made = msgspec.json.decode(sys.argv[1], type=Artifact)
qnn.open(made, Path(sys.argv[2]), 1)({"image": np.zeros((1, 3, 32, 32), np.float32)})
print("done")
"""


def test_the_native_library_writes_neither_into_the_working_folder_nor_on_standard_output(
    q8: Path, tmp_path: Path
) -> None:
    import msgspec

    given: Artifact = artifact(q8.name, "qnn", **CHIP)
    source = Path(__file__).resolve().parents[2] / "src"
    done = subprocess.run(
        [sys.executable, "-c", _RUN, msgspec.json.encode(given).decode(), str(q8.parent)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(source), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
    assert list(tmp_path.iterdir()) == []
