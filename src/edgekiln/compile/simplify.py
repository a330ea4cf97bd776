"""Simplifiers in a process of their own: ``python -m edgekiln.compile.simplify TOOL FROM INTO``.

onnxsim takes 250 MB at its peak and never gives them back; a native crash would take the build with it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgekiln.errors import ConversionFailed
from edgekiln.prove.timing import worker_environment

SECONDS = 600.0
TOOLS = ("onnxslim", "onnxsim")


def simplified(tool: str, model: Any, threads: int = 2) -> tuple[Any, str]:
    """What ``tool`` makes of ``model`` (a ModelProto), and its version.

    Raises ConversionFailed where it refuses the graph, crashes or does not end in ``SECONDS``.
    """
    with simplifying(tool, model, threads) as made:
        return made()


@contextlib.contextmanager
def simplifying(tool: str, model: Any, threads: int = 2) -> Iterator[Callable[[], tuple[Any, str]]]:
    """``tool`` at work on ``model`` meanwhile; the call waits for what ``simplified`` gives, or raises it.

    At the end of the block its process has ended, whether it was waited for or not.
    """
    with tempfile.TemporaryDirectory(prefix="edgekiln-simplify-") as scratch:
        source, into, said = Path(scratch) / "from.onnx", Path(scratch) / "into.onnx", Path(scratch) / "said"
        _save(model, source)
        with said.open("wb") as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", "edgekiln.compile.simplify", tool, str(source), str(into)],
                env=worker_environment(threads),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        try:
            yield lambda: _result(tool, child, into, said)
        finally:
            child.kill()
            child.wait()


def _result(tool: str, child: subprocess.Popen[bytes], into: Path, said: Path) -> tuple[Any, str]:
    import onnx

    doing, cure = f"simplifying with {tool}", "Go on without"
    try:
        code = child.wait(SECONDS)
    except subprocess.TimeoutExpired:
        why = f"it did not end in {SECONDS:.0f} s"
        raise ConversionFailed(doing, "the graph", why, cure) from None
    if code != 0 or not into.is_file():
        words = said.read_text(errors="replace").strip().splitlines()
        why = words[-1][:300] if words else f"its process ended with code {code}"
        raise ConversionFailed(doing, "the graph", why, cure)
    return onnx.load(into), f"{tool} {importlib.metadata.version(tool)}"


def _save(model: Any, path: Path) -> None:
    """Weights lie beside the graph where one protobuf can't hold them."""
    import onnx

    large = model.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF
    onnx.save(model, path, save_as_external_data=large, location=f"{path.stem}.data" if large else None)


# ---------------------------------------------------------------- the process


def main() -> int:
    """See the module. The last line on stderr says what was refused."""
    import onnx

    tool, source, into = sys.argv[1:]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            made = {"onnxslim": _onnxslim, "onnxsim": _onnxsim}[tool](onnx.load(source))
    except Exception as problem:
        said = " ".join(str(problem).split())
        sys.stderr.write(f"\n{type(problem).__name__}: {said}\n")
        return 1
    _lift_constants(made)
    _save(_closed(made), Path(into))
    return 0


def _closed(model: Any) -> Any:
    """With the outputs' open axes as inference closes them. onnxsim leaves what stood there, -1 as well,
    which inference takes for a length."""
    import onnx

    axes = [d for o in model.graph.output for d in o.type.tensor_type.shape.dim if d.dim_value < 1]
    if not axes or model.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        return model
    for axis in axes:
        axis.Clear()
    return onnx.shape_inference.infer_shapes(model)


def _lift_constants(model: Any) -> None:
    """Constant nodes become initialisers. onnxslim leaves some, and a quantiser takes those for activations
    whose ranges nobody has seen."""
    if model.ir_version < 4:  # an initialiser has to be an input there
        return
    given = {o.name for o in model.graph.output}
    for node in [n for n in model.graph.node if n.op_type == "Constant"]:
        if node.attribute[0].name == "value" and node.output[0] not in given:
            lifted = model.graph.initializer.add()
            lifted.CopyFrom(node.attribute[0].t)
            lifted.name = node.output[0]
            model.graph.node.remove(node)


def _onnxslim(model: Any) -> Any:
    import onnxslim

    slim = onnxslim.slim(model)
    if slim is None:
        raise ValueError("it gave nothing back")
    return slim


def _onnxsim(model: Any) -> Any:
    # onnxsim loads torch where it finds it, for parts that are not used here: 130 MB and two seconds.
    sys.modules["torch"] = None  # type: ignore[assignment]
    simple, ok = _module_of_onnxsim().simplify(model)
    if not ok:
        raise ValueError("its own check failed")
    return simple


def _module_of_onnxsim() -> Any:
    """The one module that simplifies: the package's ``__init__`` imports some hundred others, for a second.

    The whole package where a version has no such module, or its module needs the others.
    """
    found = importlib.util.find_spec("onnxsim")
    if found is not None:
        bare = types.ModuleType("onnxsim")
        bare.__path__ = list(found.submodule_search_locations or ())
        sys.modules["onnxsim"] = bare
        with contextlib.suppress(ImportError, AttributeError):
            return importlib.import_module("onnxsim.onnx_simplifier")
        for name in [n for n in sys.modules if n.partition(".")[0] == "onnxsim"]:
            del sys.modules[name]
    return importlib.import_module("onnxsim")


if __name__ == "__main__":
    sys.exit(main())
