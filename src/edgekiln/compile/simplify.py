"""Simplifiers in a process of their own: ``python -m edgekiln.compile.simplify TOOL FROM INTO``.

onnxsim takes 250 MB at its peak and never gives them back; a native crash would take the build with it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import subprocess
import sys
import tempfile
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
    import onnx

    doing, cure = f"simplifying with {tool}", "Go on without"
    with tempfile.TemporaryDirectory(prefix="edgekiln-simplify-") as scratch:
        source, into = Path(scratch) / "from.onnx", Path(scratch) / "into.onnx"
        _save(model, source)
        command = [sys.executable, "-m", "edgekiln.compile.simplify", tool, str(source), str(into)]
        try:
            done = subprocess.run(
                command,
                env=worker_environment(threads),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=SECONDS,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            why = f"it did not end in {SECONDS:.0f} s"
            raise ConversionFailed(doing, "the graph", why, cure) from None
        if done.returncode != 0 or not into.is_file():
            words = done.stderr.decode(errors="replace").strip().splitlines()
            why = words[-1][:300] if words else f"its process ended with code {done.returncode}"
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
    _save(made, Path(into))
    return 0


def _onnxslim(model: Any) -> Any:
    import onnxslim

    slim = onnxslim.slim(model)
    if slim is None:
        raise ValueError("it gave nothing back")
    return slim


def _onnxsim(model: Any) -> Any:
    # onnxsim loads torch where it finds it, for parts that are not used here: 130 MB and two seconds.
    sys.modules["torch"] = None  # type: ignore[assignment]
    import onnxsim

    simple, ok = onnxsim.simplify(model)
    if not ok:
        raise ValueError("its own check failed")
    return simple


if __name__ == "__main__":
    sys.exit(main())
