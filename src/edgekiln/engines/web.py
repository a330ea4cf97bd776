"""ONNX Runtime Web (WebAssembly, SIMD, threads) in a real headless Chromium, one browser per open runner.

The page that holds the session lies in ``web_page.mjs``. What a call takes includes the way of the arrays
to the page and back over HTTP on this machine; ``last_run_ms`` is the page's own clock around the run.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekiln.engines import Arrays, chromium, npm
from edgekiln.engines.web_server import PageServer
from edgekiln.errors import BadInput, MachineFault, NotRunnableHere
from edgekiln.records import Artifact

PACKAGE = "onnxruntime-web"
# The bundle holds the glue code, so these two are the whole runtime.
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
OPEN_SECONDS = 180.0
RUN_SECONDS = 300.0
DTYPES = frozenset(
    ["float32", "float64", "float16", "bool"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)
_PAGE = b"""<!doctype html><meta charset="utf-8"><title>edgekiln</title>
<script type="module" src="page.mjs"></script>"""
_DOING = "opening in Chromium"


class _Described(msgspec.Struct, frozen=True):
    name: str
    dtype: str
    shape: tuple[int, ...]


class _Message(msgspec.Struct, frozen=True):
    """What the page says. ``kind`` is opened, outputs or error."""

    kind: str
    tensors: tuple[_Described, ...] = ()
    text: str = ""
    ms: float | None = None
    isolated: bool = False
    threads: int = 0
    runtime: str = ""
    browser: str = ""
    placed: tuple[str, ...] = ()


class About(msgspec.Struct, frozen=True):
    """What the page found: whether it is cross-origin isolated (else there are no threads), how many
    threads the runtime has, versions, and the runtime's own lines about the placement of nodes."""

    isolated: bool
    threads: int
    runtime: str
    browser: str
    placed: tuple[str, ...]


class WebRunner:
    """A session in a page. After an answer that did not come the browser is gone, and so is the runner."""

    def __init__(self, entry: str, model: Path, threads: int, trace: bool) -> None:
        program, dist = require(entry)
        settings = {
            "threads": threads,
            "trace": trace,
            "runtime": f"./ort/{RUNTIME[0]}",
            "wasm": f"ort/{RUNTIME[1]}",
        }
        files: dict[str, Path | bytes] = {
            "": _PAGE,
            "page.mjs": Path(__file__).with_name("web_page.mjs"),
            "settings": json.dumps(settings).encode(),
            "model": model,
        }
        files |= {f"ort/{name}": dist / name for name in RUNTIME}
        self._entry = entry
        self._browser: chromium.Browser | None = None
        self._server = PageServer(files)
        try:
            self._browser = chromium.Browser(program, self._server.url)
            said, _ = self._hear(None, OPEN_SECONDS)
            self.about = About(said.isolated, said.threads, said.runtime, said.browser, said.placed)
            self._check_threads(threads)
        except BaseException:
            self.close()
            raise
        self.last_run_ms: float | None = None

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        said, outputs = self._hear(encode(inputs), RUN_SECONDS)
        self.last_run_ms = said.ms
        return outputs

    def close(self) -> None:
        if self._browser is not None:
            self._browser.close()
            self._browser = None
        if self._server is not None:
            self._server.close()

    def _check_threads(self, asked: int) -> None:
        if asked > 1 and not (self.about.isolated and self.about.threads == asked):
            isolated = "is" if self.about.isolated else "is not"
            why = f"the page {isolated} cross-origin isolated and has {self.about.threads} of {asked} threads"
            raise NotRunnableHere(_DOING, self._entry, why, "Use one thread, or another version of Chromium")

    def _hear(self, question: bytes | None, seconds: float) -> tuple[_Message, dict[str, NDArray[Any]]]:
        browser = self._browser
        if browser is None:
            raise BadInput("running in Chromium", self._entry, "the runner is closed", "Open it again")
        answer = self._server.ask(question, seconds, lambda: browser.alive)
        if answer is None:
            alive, words = browser.alive, browser.last_words()
            self.close()
            why = f"no answer came within {seconds:g} s" if alive else f"the browser ended: {words}"
            raise MachineFault(
                "running in Chromium", self._entry, why, "Free memory, or take a smaller model or input"
            )
        said, arrays = decode(answer)
        if said.kind == "error":
            cure = "Check the graph and the inputs, or the version of onnxruntime-web"
            doing = _DOING if question is None else "running in Chromium"
            raise NotRunnableHere(doing, self._entry, said.text or "the page gave no reason", cure)
        return said, arrays


def open(artifact: Artifact, folder: Path, threads: int, trace: bool = False) -> WebRunner:
    """Open ``artifact.entry`` in a Chromium of its own with ``threads`` WebAssembly threads.

    ``trace`` makes the runtime log where it places nodes (``about.placed``), which slows it down.
    Raises NotRunnableHere where Chromium or the runtime's files are absent, where the page is not isolated
    though threads are asked for, or where the runtime refuses the graph; MachineFault where the browser
    dies or is silent for too long.
    """
    return WebRunner(artifact.entry, folder / artifact.entry, threads, trace)


def require(entry: str) -> tuple[str, Path]:
    """Chromium's path and the folder of the runtime's files. NotRunnableHere names what is absent."""
    program = chromium.find(_DOING, entry)
    dist = npm.package(PACKAGE, _DOING, entry) / "dist"
    for name in RUNTIME:
        if not (dist / name).is_file():
            cure = f"Run `make setup`, or: npm install --ignore-scripts {PACKAGE}@1.30.0"
            raise NotRunnableHere(_DOING, entry, f"the npm package {PACKAGE} here lacks dist/{name}", cure)
    return program, dist


# ---------------------------------------------------------------- messages, as web_page.mjs writes them


def encode(arrays: Arrays) -> bytes:
    """Named arrays as one message. Raises BadInput for a dtype that JavaScript has no typed array for."""
    head, parts = [], []
    for name, array in arrays.items():
        data = np.ascontiguousarray(array).reshape(np.shape(array))
        if str(data.dtype) not in DTYPES:
            why, cure = f"input '{name}' is {data.dtype}", "Use numbers of up to 64 bits, or booleans"
            raise BadInput("running in Chromium", "the model", why, cure)
        head.append({"name": name, "dtype": str(data.dtype), "shape": list(data.shape)})
        parts.append(data.tobytes())
    text = json.dumps({"tensors": head}).encode()
    return b"".join(_padded(part) for part in (struct.pack("<I", len(text)) + text, *parts))


def decode(message: bytes) -> tuple[_Message, dict[str, NDArray[Any]]]:
    """A message of the page. The page is ours, but its sizes are checked all the same: MachineFault."""
    try:
        (length,) = struct.unpack_from("<I", message)
        said = msgspec.json.decode(message[4 : 4 + length], type=_Message)
        at, arrays = _up8(4 + length), {}
        for tensor in said.tensors:
            if tensor.dtype not in DTYPES or min(tensor.shape, default=0) < 0:
                raise ValueError(f"{tensor.dtype} {tensor.shape}")
            count = math.prod(tensor.shape)
            flat = np.frombuffer(message, tensor.dtype, count, at)
            arrays[tensor.name] = flat.reshape(tensor.shape).copy()
            at = _up8(at + flat.nbytes)
    except (struct.error, ValueError, msgspec.MsgspecError) as error:
        raise MachineFault("reading the answer of", "Chromium", str(error), "Try again") from error
    return said, arrays


def _up8(size: int) -> int:
    return (size + 7) & ~7


def _padded(data: bytes) -> bytes:
    return data + bytes(_up8(len(data)) - len(data))
