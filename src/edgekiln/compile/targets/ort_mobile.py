"""ONNX Runtime's mobile format: ``model.ort``, and what a build reduced to this model must hold.

The optimisations are done here and fixed in the file. Those that belong to the machine that does them must
not be: ``optimised`` leaves out the blocked layout of x86 (NCHWc), and ``leaks`` finds float16 operators that
an x86 machine, which has no kernels for them, wrapped into casts to float32.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln import files
from edgekiln.compile.targets.ort_canonical import canonical

if TYPE_CHECKING:
    from onnx import ModelProto

ENTRY = "model.ort"
OPERATORS = "required_operators.config"
TYPES = "required_operators_and_types.config"


def write(graph: Path, into: Path) -> None:
    """Write model.ort and both configurations for ``build.py --include_ops_by_config`` into ``into``.

    Raises what ONNX Runtime raises.
    """
    create_config_from_models = _config_writer()
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / ENTRY
        _save(graph, made, "ORT")
        files.write_bytes(into / ENTRY, canonical(made.read_bytes()))
        for name, with_types in ((OPERATORS, False), (TYPES, True)):
            config = Path(scratch) / name
            create_config_from_models([made], config, with_types)
            # Its comment names the file by its whole path, which is another one in every run.
            text = config.read_text(encoding="utf-8").replace(str(made), ENTRY)
            files.write_bytes(into / name, text.encode())


def _config_writer() -> Callable[..., Any]:
    """ONNX Runtime's ``create_config_from_models``, without the handler that its import puts on the root
    logger and without the lines that it writes there."""
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)
    try:
        from onnxruntime.tools.ort_format_model import create_config_from_models
    finally:
        root.removeHandler(silent)
    logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)
    writer: Callable[..., Any] = create_config_from_models
    return writer


def optimised(graph: Path, fused: bool = True) -> ModelProto:
    """The graph that ``write`` puts into model.ort, as ONNX; or, not ``fused``, the one that a session hands
    to its providers: constants folded, nothing joined into ONNX Runtime's own operators yet.

    It keeps the shapes of all tensors that it shares with ``graph``: nothing else infers those behind
    ONNX Runtime's own operators.
    """
    import onnx

    with tempfile.TemporaryDirectory() as scratch:
        shaped, made = Path(scratch) / "shaped.onnx", Path(scratch) / "model.onnx"
        onnx.save(onnx.shape_inference.infer_shapes(onnx.load(graph)), shaped)
        _save(shaped, made, "ONNX", fused)
        return onnx.load(made)


def handed(graph: Path) -> ModelProto:
    """The graph that a session on the phone hands to its providers: as here, but for this machine's casts."""
    import onnx

    before = onnx.load(graph)
    after = optimised(graph, fused=False)
    return before if leaks(before, after) else after


def leaks(before: ModelProto, after: ModelProto) -> str:
    """What of this machine the optimised graph holds, in words; "" where it holds nothing of it."""
    import onnx

    blocked = sum(n.domain == "com.microsoft.nchwc" for n in after.graph.node)
    if blocked:
        return f"{blocked} operators in the blocked layout of x86"

    def halves(model: ModelProto) -> int:
        kinds = (i.data_type for i in model.graph.initializer)
        return sum(k == onnx.TensorProto.FLOAT16 for k in kinds)

    def casts(model: ModelProto) -> int:
        return sum(n.op_type == "Cast" for n in model.graph.node)

    if halves(before) > halves(after) or casts(after) > casts(before):
        return "float16 tensors as float32, because this machine has no kernels for them"
    return ""


def _save(graph: Path, into: Path, kind: str, fused: bool = True) -> None:
    """As onnxruntime.tools.convert_onnx_models_to_ort does for ``--target_platform arm`` in style Fixed."""
    import onnxruntime as ort

    level = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = level.ORT_ENABLE_ALL if fused else level.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(into)
    options.add_session_config_entry("session.save_model_format", kind)
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    ort.InferenceSession(
        str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer"]
    )
