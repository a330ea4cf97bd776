"""What tests of several rooms share: models and pictures on disk, a build, and the command line."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

# A shell ignores SIGINT in what it starts in the background, and children inherit that. The tests of
# Ctrl-C start children that must take it; a handler here makes them start with the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from fakes import digits
from fakes.command import Kiln


@pytest.fixture(scope="session")
def digit_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with digits.onnx, labels.txt, data/ (24 pictures) and eval/ (60 in class folders).

    Read-only by agreement: a test that changes something copies it first.
    """
    folder = tmp_path_factory.mktemp("digits")
    digits.write_all(folder)
    return folder


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests that look at results and not at caching."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def kiln(tmp_path: Path, shared_cache: Path) -> Kiln:
    """The command line in a process of its own, working in ``tmp_path``, with the shared cache."""
    return Kiln(tmp_path, shared_cache)


@pytest.fixture
def cold_kiln(tmp_path: Path, shared_cache: Path) -> Kiln:
    """The same, started anew each time as a user does: what is imported, and when, is the verb's own."""
    return Kiln(tmp_path, shared_cache, cold=True)


@pytest.fixture(scope="session")
def digit_build(digit_files: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The out folder of one build for this machine and a Jetson, on every target that this machine has."""
    where = tmp_path_factory.mktemp("build")
    done = Kiln(where, shared_cache)(*digits.build_arguments(digit_files), "--out", "out")
    assert done.code == 0, done.stderr
    return where / "out"


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier with a static batch of 1, as an ONNX file."""
    from fakes.networks import export

    return export(tmp_path_factory.mktemp("nets") / "net.onnx", dynamic_batch=False)


@pytest.fixture(scope="session")
def dynamic_net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a dynamic batch."""
    from fakes.networks import export

    return export(tmp_path_factory.mktemp("nets") / "dynamic.onnx", dynamic_batch=True)


@pytest.fixture(scope="session")
def any_size_net(net: Path) -> Path:
    """The same with a batch of 1 and symbolic height and width: its pooling takes any."""
    from fakes.networks import any_size

    return any_size(net, net.with_name("any_size.onnx"))


@pytest.fixture(scope="session")
def float_bundle(digit_files: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float model as an ONNX Runtime bundle for this machine."""
    where = tmp_path_factory.mktemp("float")
    fixed = [
        "--target",
        "onnxruntime",
        "--recipe",
        "fp32",
        "--threads",
        "1",
        "--samples",
        "20",
        "--out",
        "out",
    ]
    data = digits.data_arguments(digit_files)
    done = Kiln(where, shared_cache)("build", digit_files / "digits.onnx", *fixed, *data)
    assert done.code == 0, done.stderr
    return where / "out" / "bundles" / "host.edgekiln"
