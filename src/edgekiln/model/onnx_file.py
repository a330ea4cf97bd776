"""ONNX files: read with distrust, cleaned, written so that equal graphs are equal bytes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.errors import BadInput, EdgekilnError
from edgekiln.files import disk_errors, entry, inside, sha256_record, write_bytes
from edgekiln.records import FileEntry

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

MAX_GRAPH_BYTES = 2**31 - 1
"""Protobuf itself can't hold more in one message."""
MAX_BYTES = 16 * 2**30
EMBED_LIMIT = 1_500_000_000
"""Weights above this many bytes are written beside the graph: a single file has to stay below 2 GiB."""
MIN_OPSET = 7
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_DOING = "reading the ONNX model"
_AGAIN = "Export or copy the model again."


# ---------------------------------------------------------------- every tensor and node, however deep


def _graphs(model: ModelProto) -> Iterator[tuple[GraphProto | None, list[NodeProto]]]:
    """(graph or None for a function, its nodes) for the main graph, subgraphs and local functions."""
    waiting: list[tuple[GraphProto | None, list[NodeProto]]] = [(model.graph, list(model.graph.node))]
    waiting += [(None, list(f.node)) for f in model.functions]
    while waiting:
        graph, nodes = waiting.pop()
        yield graph, nodes
        for node in nodes:
            for attribute in node.attribute:
                inner = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
                waiting += [(g, list(g.node)) for g in inner]


def all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Every node of the main graph, of subgraphs and of local functions."""
    for _, nodes in _graphs(model):
        yield from nodes


def all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every stored tensor: initialisers, sparse ones, and attributes, however deep."""
    for graph, nodes in _graphs(model):
        if graph is not None:
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in nodes:
            for attribute in node.attribute:
                yield from attribute.tensors
                if attribute.HasField("t"):
                    yield attribute.t
                sparse_tensors = [*attribute.sparse_tensors]
                if attribute.HasField("sparse_tensor"):
                    sparse_tensors.append(attribute.sparse_tensor)
                for sparse in sparse_tensors:
                    yield from (sparse.values, sparse.indices)


# ---------------------------------------------------------------- reading


def _not_onnx(path: Path, start: bytes) -> BadInput:
    if start.startswith(b"version https://git-lfs"):
        return BadInput(_DOING, path, "it is a Git LFS pointer, not the model", "Run: git lfs pull")
    if start.startswith(b"PK\x03\x04"):
        why = "it is a zip archive, such as PyTorch writes"
        cure = "Give PyTorch weights as --weights, and package.module:factory as the model."
        return BadInput(_DOING, path, why, cure)
    try:
        start.decode("utf-8")
        text = b"\0" not in start
    except UnicodeDecodeError as error:
        text = error.start > len(start) - 4 and b"\0" not in start  # cut within a character
    if text:
        return BadInput(_DOING, path, "it is a text file", "Give the .onnx file that an exporter wrote.")
    return BadInput(_DOING, path, "it is no ONNX model, or only a part of one", _AGAIN)


def _parse(path: Path) -> ModelProto:
    """The graph in ``path`` without its external data."""
    import onnx

    if not path.exists():
        raise BadInput(_DOING, path, "there is no such file", "Check the path.")
    if not path.is_file():
        raise BadInput(_DOING, path, "it is not a file", "Give the .onnx file itself.")
    size = path.stat().st_size
    if size == 0:
        raise BadInput(_DOING, path, "it is empty", _AGAIN)
    if size > MAX_GRAPH_BYTES:
        cure = "Save the weights as external data: onnx.save(model, path, save_as_external_data=True)"
        raise BadInput(_DOING, path, "a single ONNX file can't be larger than 2 GiB", cure)
    with path.open("rb") as file:
        start = file.read(4096)
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise BadInput(_DOING, path, str(error), "Check that you may read it.") from error
    except Exception as error:  # protobuf's DecodeError, whose home has moved between versions
        raise _not_onnx(path, start) from error
    # Protobuf decodes much that is no model; a model always has a version and an operator set.
    if not model.ir_version or not (model.opset_import or model.functions):
        raise _not_onnx(path, start)
    return model


def _check_external(model: ModelProto, path: Path) -> tuple[Path, ...]:
    """The files that hold external data, each inside the model's folder and long enough."""
    from onnx import TensorProto

    found: dict[Path, None] = {}
    for tensor in all_tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        facts = {e.key: e.value for e in tensor.external_data}
        location = facts.get("location", "")
        cure = "Put the data file beside the model, or save the model as one file."
        if not location or "\\" in location or "\0" in location:
            why = f"tensor '{tensor.name}' names no usable data file ('{location[:80]}')"
            raise BadInput(_DOING, path, why, cure)
        file = inside(path.parent, location, "reading the external data")
        if any(
            p.is_symlink() for p in (file, *file.parents) if p != path.parent and path.parent in p.parents
        ):
            raise BadInput(
                "reading the external data", location, "it is a link", "Put the file itself there."
            )
        if not file.is_file():
            why = f"its external data '{location}' is missing"
            raise BadInput(_DOING, path, why, cure)
        try:
            start, length = int(facts.get("offset", 0)), int(facts.get("length", 0))
        except ValueError as error:
            raise BadInput(_DOING, path, f"tensor '{tensor.name}' has no sound offset", _AGAIN) from error
        if start < 0 or length < 0 or start + length > file.stat().st_size:
            why = f"'{location}' ends before the data of tensor '{tensor.name}'"
            raise BadInput(
                _DOING, path, why, "Copy the data file again; it is cut short or of another model."
            )
        found[file] = None
    if sum(f.stat().st_size for f in found) > MAX_BYTES:
        raise BadInput(_DOING, path, f"its data is larger than {MAX_BYTES} bytes", "Give a smaller model.")
    return tuple(found)


def data_files(path: Path) -> tuple[Path, ...]:
    """The external data files that the graph in ``path`` names. Raises BadInput as ``read_onnx`` does."""
    return _check_external(_parse(path), path)


def check_operators(model: ModelProto, path: object) -> None:
    """Raise BadInput for an operator set that is too old or too new, or an operator nobody here knows."""
    import onnx

    newest = onnx.defs.onnx_opset_version()
    versions = {o.domain: o.version for o in model.opset_import}
    opset = versions.get("", versions.get("ai.onnx", 0))
    if not MIN_OPSET <= opset <= newest:
        cure = f"Export it with an operator set from {MIN_OPSET} to {newest}."
        raise BadInput(_DOING, path, f"its operator set is {opset}", cure)
    own = {(f.domain, f.name) for f in model.functions}
    for node in all_nodes(model):
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in own:
            why = f"operator '{node.op_type}' is of the custom domain '{node.domain}'"
            raise BadInput(_DOING, path, why, "Export it with standard ONNX operators.")


def _check(model: ModelProto, path: Path, *, external: bool) -> None:
    """What the ONNX checker says, as a BadInput."""
    import onnx

    if not model.graph.output:
        raise BadInput(_DOING, path, "it has no outputs", _AGAIN)
    check_operators(model, path)
    try:
        onnx.checker.check_model(str(path) if external else model)
    except Exception as error:  # ValidationError, and what C++ raises on broken data
        why = " ".join(str(error).split())[:400]
        raise BadInput(_DOING, path, f"the ONNX checker refuses it: {why}", _AGAIN) from error


def read_onnx(path: Path) -> tuple[ModelProto, tuple[FileEntry, ...]]:
    """The model in ``path`` with all its data, and the files it came from.

    Nothing outside the model's folder is read. Raises BadInput for whatever is no sound ONNX model.
    """
    from onnx.external_data_helper import load_external_data_for_model

    model = _parse(path)
    data = _check_external(model, path)
    _check(model, path, external=bool(data))
    if data:
        load_external_data_for_model(model, str(path.parent))
    return model, tuple(entry(path.parent, f) for f in (path, *sorted(data)))


# ---------------------------------------------------------------- writing


def clean(model: ModelProto, *, exported: bool) -> None:
    """Take out what says where and when a model was made: doc strings and the metadata of nodes.

    Metadata of the model itself stays unless we ``exported`` it: people keep class names there.
    """
    model.doc_string = ""
    if exported:
        del model.metadata_props[:]
    parts: list[object] = [*model.functions, *all_tensors(model)]
    for graph, nodes in _graphs(model):
        parts += nodes
        if graph is not None:
            parts += [graph, *graph.input, *graph.output, *graph.value_info]
    for part in parts:
        for field in ("doc_string", "metadata_props"):
            if field in part.DESCRIPTOR.fields_by_name:  # type: ignore[attr-defined]
                part.ClearField(field)  # type: ignore[attr-defined]


def metadata(path: Path) -> dict[str, str]:
    """What the model says of itself, by key: class names, charsets."""
    import onnx

    return {p.key: p.value for p in onnx.load(path, load_external_data=False).metadata_props}


def write_onnx(model: ModelProto, into: Path, embed_limit: int = EMBED_LIMIT) -> tuple[Path, ...]:
    """Write ``into/model.onnx``, and ``model.onnx.data`` where it would exceed ``embed_limit`` bytes."""
    path = into / "model.onnx"
    data = into / "model.onnx.data"
    if model.ByteSize() <= embed_limit:
        write_bytes(path, model.SerializeToString(deterministic=True))
        return (path,)
    _write_in_two(model, path, data)
    return path, data


def _write_in_two(model: ModelProto, path: Path, data: Path) -> None:
    import onnx

    with disk_errors("writing", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            onnx.save_model(
                model, aside / path.name, save_as_external_data=True, location=data.name, size_threshold=1024
            )
            # The graph is written last: a data file without a graph is nobody's model.
            (aside / data.name).replace(data)
            write_bytes(path, (aside / path.name).read_bytes())
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def hash_files(root: Path, paths: tuple[Path, ...]) -> str:
    """The SHA-256 of a single file, or of the list of entries of several."""
    listed = tuple(entry(root, p) for p in paths)
    return listed[0].sha256 if len(listed) == 1 else sha256_record(listed)


def check_runs(path: Path, source: object) -> None:
    """Raise BadInput if ONNX Runtime can't load the model: types that clash, data that is cut short."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except EdgekilnError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:400]
        raise BadInput("loading the model", source, f"ONNX Runtime refuses it: {why}", _AGAIN) from error
