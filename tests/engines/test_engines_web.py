"""ONNX Runtime Web in a real Chromium: the same numbers, threads, errors as text, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import helper

from edgekiln.engines import browser_guard, npm, web
from edgekiln.engines import onnxruntime as reference
from edgekiln.engines.web_server import PageServer
from edgekiln.errors import BadInput, MachineFault, NotRunnableHere
from fakes.networks import picture
from fakes.variants import artifact

KINDS = (
    "float32",
    "float64",
    "float16",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "int32",
    "uint32",
    "int64",
    "bool",
)


@pytest.fixture(scope="module")
def runner(net: Path) -> Iterator[web.WebRunner]:
    opened = web.open(artifact(net.name, "web"), net.parent, 2)
    yield opened
    opened.close()


def processes(word: str) -> list[str]:
    """Command lines of the processes here that hold ``word``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in line:
            found.append(line)
    return found


def gone(word: str, seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while processes(word) and time.monotonic() < until:
        time.sleep(0.1)
    return not processes(word)


def identity(folder: Path, kinds: tuple[str, ...]) -> Path:
    """A graph that gives each of its inputs back: ``x_int64`` as ``y_int64``."""
    nodes, inputs, outputs = [], [], []
    for kind in kinds:
        code = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        nodes.append(helper.make_node("Identity", [f"x_{kind}"], [f"y_{kind}"]))
        inputs.append(helper.make_tensor_value_info(f"x_{kind}", code, ["n", 3]))
        outputs.append(helper.make_tensor_value_info(f"y_{kind}", code, ["n", 3]))
    graph = helper.make_graph(nodes, "identity", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "identity.onnx")
    return folder / "identity.onnx"


def test_it_gives_what_onnx_runtime_gives_natively(runner: web.WebRunner, net: Path) -> None:
    native = reference.open(artifact(net.name, "onnxruntime"), net.parent, 1)
    for seed in range(3):
        x = {"image": picture(seed)}
        expected, found = native(x)["logits"], runner(x)["logits"]
        assert found.shape == expected.shape
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert runner.last_run_ms is not None
    assert 0 < runner.last_run_ms < 60_000


def test_the_page_is_isolated_and_has_its_threads(runner: web.WebRunner) -> None:
    assert runner.about.isolated
    assert runner.about.threads == 2
    assert runner.about.runtime == npm.version(npm.package(web.PACKAGE, "", ""))
    assert "Chrome/" in runner.about.browser


def test_a_call_spends_no_time_waiting_for_the_network(runner: web.WebRunner) -> None:
    """Headers sent apart from their body would cost the 40 ms of a delayed acknowledgement, twice a call."""
    spent = []
    for _ in range(10):
        start = time.perf_counter()
        runner({"image": picture(1)})
        spent.append((time.perf_counter() - start) * 1e3 - (runner.last_run_ms or 0))
    assert min(spent) < 35


def test_a_wrong_input_is_the_runtimes_own_message_and_the_runner_lives_on(runner: web.WebRunner) -> None:
    with pytest.raises(NotRunnableHere, match="image"):
        runner({"picture": picture(1)})
    with pytest.raises(NotRunnableHere, match=r"(?i)dimension|shape"):
        runner({"image": np.zeros((1, 3, 7, 7), np.float32)})
    assert runner({"image": picture(1)})["logits"].shape == (1, 10)


def test_every_dtype_comes_back_as_it_went_in(tmp_path: Path) -> None:
    identity(tmp_path, KINDS)
    rng = np.random.default_rng(5)
    given = {f"x_{kind}": (rng.random((4, 3)) * 100).astype(kind) for kind in KINDS}
    given["x_int64"][0, 0] = 2**62 + 1  # more than a JavaScript number holds
    opened = web.open(artifact("identity.onnx", "web"), tmp_path, 1)
    try:
        found = opened(given)
        empty = opened({name: x[:0] for name, x in given.items()})
    finally:
        opened.close()
    for kind in KINDS:
        assert found[f"y_{kind}"].dtype == np.dtype(kind)
        assert (found[f"y_{kind}"] == given[f"x_{kind}"]).all(), kind
        assert empty[f"y_{kind}"].shape == (0, 3)


def test_closing_leaves_no_process_and_no_profile(tmp_path: Path) -> None:
    identity(tmp_path, ("float32",))
    opened = web.open(artifact("identity.onnx", "web"), tmp_path, 1)
    assert opened._browser is not None
    profile = opened._browser._folder
    assert processes(profile)
    opened.close()
    assert gone(profile)
    assert not Path(profile).exists()
    with pytest.raises(BadInput, match="closed"):
        opened({"x_float32": np.zeros((1, 3), np.float32)})


def test_a_browser_that_dies_is_an_error_at_once_and_not_a_timeout(tmp_path: Path) -> None:
    identity(tmp_path, ("float32",))
    opened = web.open(artifact("identity.onnx", "web"), tmp_path, 1)
    try:
        assert opened._browser is not None
        word = f"--user-data-dir={opened._browser._folder}"
        pids = [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/cmdline") if word in _read(p)]
        for pid in pids:
            if "browser_guard" not in _read(Path(f"/proc/{pid}/cmdline")):
                os.kill(pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(MachineFault, match="the browser ended"):
            opened({"x_float32": np.zeros((1, 3), np.float32)})
        assert time.monotonic() - start < 20
    finally:
        opened.close()


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def test_the_browser_dies_with_the_program_that_opened_it(tmp_path: Path) -> None:
    """The guard alone, around a program that would run on; its opener is killed without a chance to close."""
    folder = tmp_path / "profile"
    folder.mkdir()
    mark = f"edgekiln-test-{os.getpid()}-{time.monotonic_ns()}"
    inner = [sys.executable, "-c", "import time; time.sleep(600)", mark]
    guard = [sys.executable, "-I", "-S", browser_guard.__file__, str(folder), *inner]
    opener = (
        "import subprocess, sys; "
        "subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True); "
        "print('up', flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", opener, *guard], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"up\n"
    until = time.monotonic() + 10
    while len(processes(mark)) < 3 and time.monotonic() < until:  # opener, guard, program
        time.sleep(0.05)
    parent.kill()
    parent.communicate()
    assert gone(mark)
    assert not folder.exists()


def test_a_graph_that_the_runtime_refuses_is_named(net: Path, tmp_path: Path) -> None:
    model = onnx.load(net)
    model.graph.node[0].op_type, model.graph.node[0].domain = "Unheard", "made.up"
    model.opset_import.append(helper.make_opsetid("made.up", 1))
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(NotRunnableHere, match="Unheard"):
        web.open(artifact("odd.onnx", "web"), tmp_path, 1)


def test_without_the_runtimes_files_or_chromium_the_cure_is_named(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(npm.VARIABLE, str(tmp_path))
    with pytest.raises(NotRunnableHere, match="npm install"):
        web.open(artifact(net.name, "web"), net.parent, 1)
    half = tmp_path / web.PACKAGE
    (half / "dist").mkdir(parents=True)
    (half / "package.json").write_text('{"version": "1.0.0"}')
    with pytest.raises(NotRunnableHere, match="lacks dist/ort"):
        web.open(artifact(net.name, "web"), net.parent, 1)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotRunnableHere, match="apt-get install chromium"):
        web.open(artifact(net.name, "web"), net.parent, 1)


def test_packages_are_looked_for_upwards_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(npm.VARIABLE, raising=False)
    (tmp_path / "a/b").mkdir(parents=True)
    package = tmp_path / "node_modules" / "made-up-name"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"version": "3.2.1"}')
    monkeypatch.chdir(tmp_path / "a/b")
    assert npm.find("made-up-name") == package
    assert npm.version(package) == "3.2.1"
    assert npm.find("other-name") is None


# ---------------------------------------------------------------- the server and the messages


def status(url: str, data: bytes | None = None) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_server_gives_its_files_under_its_token_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("no")
    server = PageServer({"": b"<p>", "page.mjs": b"1"})
    try:
        root = server.url.rsplit("/", 2)[0]
        assert status(server.url) == status(server.url + "page.mjs") == 200
        wrong = [
            root + "/",
            root + "/" + "0" * 32 + "/page.mjs",
            server.url + "../page.mjs",
            server.url + "x",
        ]
        assert [status(url) for url in wrong] == [404] * len(wrong)
        assert status(server.url + str(tmp_path / "secret")) == 404
        assert status(root + "/answer", b"x") == 404
        with urllib.request.urlopen(server.url) as answer:
            assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    finally:
        server.close()


def test_an_answer_that_does_not_come_is_none_within_its_time() -> None:
    server = PageServer({"": b""})
    try:
        start = time.monotonic()
        assert server.ask(None, 0.3, lambda: True) is None
        assert server.ask(None, 30, lambda: False) is None
        assert time.monotonic() - start < 5
        status(server.url + "answer", b"hello")
        assert server.ask(None, 5, lambda: True) == b"hello"
    finally:
        server.close()


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8),
        st.sampled_from(sorted(web.DTYPES)).flatmap(
            lambda kind: arrays.arrays(
                np.dtype(kind), arrays.array_shapes(min_dims=0, min_side=0, max_dims=3)
            )
        ),
        max_size=4,
    )
)
def test_messages_keep_every_array(tensors: dict[str, np.ndarray]) -> None:
    message = web.encode(tensors).replace(b'{"tensors"', b'{"kind": "outputs", "tensors"', 1)
    extra = len(b'"kind": "outputs", ')
    length = int.from_bytes(message[:4], "little") + extra
    body = message[4 : 4 + length]
    old = 4 + length - extra
    rest = message[extra + ((old + 7) & ~7) :]
    whole = length.to_bytes(4, "little") + body
    found = web.decode(whole + bytes(-len(whole) % 8) + rest)[1]
    assert list(found) == list(tensors)
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == array.tobytes()
        assert found[name].shape == array.shape


@pytest.mark.parametrize("message", [b"", b"\xff\xff\xff\xff{}", b"\x02\0\0\0{}", b"\x09\0\0\0not json!"])
def test_a_garbled_message_is_an_error(message: bytes) -> None:
    with pytest.raises(MachineFault):
        web.decode(message)


def test_strings_are_refused_before_they_are_sent() -> None:
    with pytest.raises(BadInput, match="input 'text'"):
        web.encode({"text": np.array(["a"])})
