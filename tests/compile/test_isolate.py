"""A converter that crashes, hangs or eats the memory costs its own row; the next one goes on."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from edgekiln.compile.isolate import Converters, Limits
from edgekiln.errors import BadInput, ConversionFailed, MachineFault, MissingExtra
from edgekiln.prove.process import resident_bytes
from fakes.variants import PC, order

WORKER = Path(__file__).parents[1] / "fakes" / "convert_worker.py"


@pytest.fixture(scope="module")
def asked(net_module: Path, tmp_path_factory: pytest.TempPathFactory):
    return order(tmp_path_factory.mktemp("variant"), net_module, "fp32", PC)


@pytest.fixture(scope="module")
def net_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import onnx
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


@pytest.fixture
def converters(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(WORKER.parents[1]), *sys.path]))
    with Converters(Limits(seconds=20, memory_bytes=700 << 20), 1, (sys.executable, str(WORKER))) as found:
        yield found


def pid_of(converters: Converters, asked, folder: Path) -> int:
    folder.mkdir()
    made = converters.convert("sound", asked, folder)
    assert made.options["threads"] == 1
    return int((folder / "model.bin").read_text())


def test_conversions_of_a_target_share_one_process_that_is_not_ours_and_ends(
    converters: Converters, asked, tmp_path: Path
) -> None:
    first, second = (pid_of(converters, asked, tmp_path / name) for name in ("one", "two"))
    assert first == second != os.getpid()
    assert not Path("left-in-the-working-folder").exists()
    converters.__exit__(None, None, None)
    assert resident_bytes(first) is None


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (
            "crashing",
            r"process ended with signal SIGSEGV; its last lines: .*op 17 is not what I expected",
        ),
        ("refusing", r"op Foo is unknown"),
        ("surprised", r"KeyError: 'aten.foo'"),
        ("greedy", r"more than 0\.7 GB of memory"),
    ],
)
def test_each_bad_end_is_a_failed_conversion_with_its_reason_and_the_next_goes_on(
    target: str, said: str, converters: Converters, asked, tmp_path: Path
) -> None:
    with pytest.raises(ConversionFailed, match=said):
        converters.convert(target, asked, tmp_path)
    assert pid_of(converters, asked, tmp_path / "next")
    with pytest.raises(ConversionFailed, match=said):  # and the same target gets a new process
        converters.convert(target, asked, tmp_path)


def test_a_converter_that_hangs_is_killed_at_its_limit(asked, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(WORKER.parents[1]), *sys.path]))
    with Converters(Limits(seconds=4), 1, (sys.executable, str(WORKER))) as converters:
        started = time.monotonic()
        with pytest.raises(ConversionFailed, match=r"not end within 4 s; its last lines: optimising, pass 1"):
            converters.convert("hanging", asked, tmp_path)
        assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("target", "kind"), [("lacking", MissingExtra), ("misled", BadInput), ("full", MachineFault)]
)
def test_an_error_keeps_its_kind_across_the_process(
    target: str, kind: type, converters: Converters, asked, tmp_path: Path
) -> None:
    with pytest.raises(kind) as caught:
        converters.convert(target, asked, tmp_path)
    assert caught.value.why
    assert caught.value.cure


def test_the_real_worker_converts(asked, tmp_path: Path) -> None:
    with Converters() as converters:
        made = converters.convert("onnxruntime", asked, tmp_path)
    assert made.entry == "model.onnx"
    assert (tmp_path / "model.onnx").is_file()
