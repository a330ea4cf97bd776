"""``.pt2`` files: PyTorch's exported programs, opened without letting them run code.

``torch.export.load`` unpickles weights, constants and sample inputs, loads compiled libraries, evaluates
shape expressions with SymPy, resolves operator names below ``torch`` and compiles guards: in a stranger's
file each of these runs code. So the archive is read here first, and only what was understood is handed
on, in a copy: raw tensors, a graph of ATen operators, shape expressions of a closed vocabulary.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln.errors import BadInput

if TYPE_CHECKING:
    from torch.export import ExportedProgram

MAX_BYTES = 4 * 2**30
MAX_JSON_BYTES = 256 * 2**20
_DOING = "reading the exported program"
_SAVE = "Save it again with torch.export.save (torch 2.9 or later), from plain CPU tensors."
_UNSAFE = "Do not use this file unless its author explains it; ask for an .onnx export."

_OPERATORS = re.compile(r"torch\.ops\.aten\.[a-z_][a-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)?")
_FILE_OPERATORS = frozenset({"from_file", "save"})
_SCALARS = frozenset(
    [
        "add",
        "sub",
        "mul",
        "floordiv",
        "truediv",
        "mod",
        "pow",
        "neg",
        "pos",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "and_",
        "or_",
        "xor",
        "not_",
        "getitem",
    ]
)
_MATHS = frozenset({"ceil", "floor", "trunc", "sqrt"})
_SYMBOLIC = frozenset({"sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not", "sym_sqrt"})
_WORDS = frozenset(
    [
        "Symbol",
        "positive",
        "integer",
        "nonnegative",
        "True",
        "False",
        "Integer",
        "Float",
        "Rational",
        "Add",
        "Mul",
        "Pow",
        "Mod",
        "Max",
        "Min",
        "Eq",
        "Ne",
        "Lt",
        "Le",
        "Gt",
        "Ge",
        "And",
        "Or",
        "Not",
        "Piecewise",
        "ExprCondPair",
        "FloorDiv",
        "ModularIndexing",
        "Where",
        "PythonMod",
        "CleanDiv",
        "CeilToInt",
        "FloorToInt",
        "CeilDiv",
        "LShift",
        "RShift",
        "PowByNatural",
        "FloatPow",
        "FloatTrueDiv",
        "IntTrueDiv",
        "TruncToFloat",
        "TruncToInt",
        "RoundToInt",
        "RoundDecimal",
        "ToFloat",
        "Identity",
        "IsNonOverlappingAndDenseIndicator",
        "precision",
        "StrictLessThan",
        "StrictGreaterThan",
        "LessThan",
        "GreaterThan",
        "Equality",
        "Unequality",
    ]
)
_SYMBOL = re.compile(r"[a-z]{1,3}\d+")
_PLAIN = re.compile(r"[\w.\-<>=+:,|*()\[\]/ ]*", re.ASCII)
_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*", re.ASCII)
_NAME_KEYS = frozenset({"name", "as_name", "parameter_name", "buffer_name", "tensor_constant_name"})


def _refuse(path: Path, why: str, cure: str = _UNSAFE) -> BadInput:
    return BadInput(_DOING, path, why, cure)


def _known_operator(target: str) -> bool:
    """Whether ``target`` computes on tensors or sizes and does nothing else."""
    if match := _OPERATORS.fullmatch(target):
        return match.string.split(".")[3] not in _FILE_OPERATORS
    head, _, name = target.partition(".")
    known = {"_operator": _SCALARS, "math": _MATHS, "torch": _SYMBOLIC}
    return name in known.get(head, ())


def _known_expression(text: str) -> bool:
    """Whether ``text`` is arithmetic on sizes in a closed vocabulary, and so safe for SymPy to evaluate."""
    if len(text) > 2000 or not re.fullmatch(r"[\w\s'+\-*/(),.<>=%]*", text, re.ASCII):
        return False
    powers = text.count("**") + text.count("Pow")
    if powers > 1 or (powers and re.search(r"\d{5}", text)):  # 9**9**9**9 would never end
        return False
    # Attribute access would open every method of SymPy; a dot may only stand inside a number.
    if re.search(r"\.\s*[^\d\s)]|[^\d]\.", text.replace("e-", "")) or "__" in text:
        return False
    words = re.findall(r"[A-Za-z_]\w*", text, re.ASCII)
    return all(w in _WORDS or _SYMBOL.fullmatch(w) for w in words)


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every (key, string) in plain JSON data; the keys of an object count as strings of key ""."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield "", name
            yield from _strings(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, key)


def _vet_string(key: str, text: str, path: Path) -> None:
    if key == "expr_str":
        if not _known_expression(text):
            raise _refuse(path, f"it holds a shape expression that is not plain arithmetic ('{text[:60]}')")
    elif key == "target" and text.startswith(("torch", "_operator", "math", "#")):
        if not _known_operator(text):
            raise _refuse(path, f"it calls '{text[:80]}', which is not a known tensor operator")
    elif key in ("in_spec", "out_spec"):
        for name, inner in _strings(json.loads(text)):
            if name == "context" and inner.startswith("["):
                continue  # JSON inside JSON: the keys of a dict
            if not _PLAIN.fullmatch(inner):
                raise _refuse(path, f"it holds an unexpected text ('{inner[:60]}')")
    elif key in _NAME_KEYS and text:
        if not _NAME.fullmatch(text):
            raise _refuse(path, f"it holds a name that is none ('{text[:60]}')")
    elif not _PLAIN.fullmatch(text):
        raise _refuse(path, f"it holds an unexpected text ('{text[:60]}')")


def _vet_graph(text: bytes, path: Path) -> bytes:
    """The program's JSON without comments and guards. Raises BadInput for what would run code."""
    program = json.loads(text)

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: {} if k == "metadata" else strip(v) for k, v in value.items()}
        return [strip(v) for v in value] if isinstance(value, list) else value

    program = strip(program) | {"guards_code": []}
    for key, string in _strings(program):
        _vet_string(key, string, path)
    for node in program["graph_module"]["graph"]["nodes"]:
        if not _known_operator(node["target"]):
            raise _refuse(path, f"it calls '{node['target'][:80]}', which is not a known tensor operator")
        _check_eval(node, path)
    return json.dumps(program).encode()


def _check_eval(node: dict[str, Any], path: Path) -> None:
    """Raise BadInput for a dropout or batch normalisation that was exported in training form."""
    flags = {i["name"] for i in node["inputs"] if i["arg"].get("as_bool") is True}
    name = node["target"].split(".")[3] if node["target"].startswith("torch.ops") else ""
    if flags & {"training", "train"} and ("dropout" in name or "norm" in name or "rnn" in name):
        cure = "Call model.eval() before torch.export.export, and save it again."
        raise _refuse(path, f"'{name}' was exported in training mode", cure)


def _vet_payload(text: bytes, path: Path) -> set[str]:
    """The file names of the raw tensors that a weights or constants table lists."""
    names: set[str] = set()
    for tensor in json.loads(text)["config"].values():
        name = tensor["path_name"]
        if tensor.get("use_pickle") or not re.fullmatch(r"(weight|tensor)_\d+", name):
            raise _refuse(path, "it holds pickled objects, which run code when they are opened", _SAVE)
        if tensor["tensor_meta"]["device"]["type"] != "cpu":
            raise _refuse(path, "its tensors are not on the CPU", _SAVE)
        names.add(name)
    return names


def _samples(data: bytes, path: Path) -> bytes:
    """``data`` if it loads without running code."""
    import torch

    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise _refuse(path, "its sample inputs hold more than tensors", _SAVE) from error
    return data


_TABLES = {
    "data/weights/model_weights_config.json": "data/weights/",
    "data/constants/model_constants_config.json": "data/constants/",
}
_MARKS = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id")


def _copy(source: zipfile.ZipFile, path: Path) -> io.BytesIO:
    """An archive with what was understood of ``source``, and nothing else."""
    names = [i.filename for i in source.infolist()]
    root = names[0].partition("/")[0] if names else ""
    held = {n.removeprefix(f"{root}/") for n in names if n.startswith(f"{root}/")}
    if "models/model.json" not in held:
        raise _refuse(path, "it holds no exported program of a known format", _SAVE)

    def read(name: str, limit: int = MAX_BYTES) -> bytes:
        if name not in held:
            raise _refuse(path, f"its part '{name}' is missing", _SAVE)
        if source.getinfo(f"{root}/{name}").file_size > limit:
            raise _refuse(path, f"its part '{name}' is too large", "Give a smaller model.")
        return source.read(f"{root}/{name}")

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as copy:
        for name in _MARKS:
            if name in held:
                copy.writestr(f"model/{name}", read(name, 4096))
        copy.writestr("model/models/model.json", _vet_graph(read("models/model.json", MAX_JSON_BYTES), path))
        for table, folder in _TABLES.items():
            text = read(table, MAX_JSON_BYTES)
            copy.writestr(f"model/{table}", text)
            for name in sorted(_vet_payload(text, path)):
                copy.writestr(f"model/{folder}{name}", read(folder + name))
        samples = "data/sample_inputs/model.pt"
        copy.writestr(f"model/{samples}", _samples(read(samples), path))
    return out


def open_program(path: Path) -> ExportedProgram:
    """The exported program in ``path``, in eval form. Raises BadInput for a file that could run code.

    Compiled libraries, custom objects, other programs and comments in the archive are left out.
    """
    import torch

    if not path.is_file():
        raise _refuse(path, "there is no such file", "Check the path.")
    if path.stat().st_size > MAX_BYTES:
        raise _refuse(path, f"it is larger than {MAX_BYTES} bytes", "Give a smaller model.")
    try:
        with zipfile.ZipFile(path) as source:
            safe = _copy(source, path)
        safe.seek(0)
        return torch.export.load(safe)
    except BadInput:
        raise
    except Exception as error:  # JSON of another shape, a broken archive, a schema of another version
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise _refuse(path, f"torch {torch.__version__} can't open it: {why}", _SAVE) from error
