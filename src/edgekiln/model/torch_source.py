"""PyTorch models: built by a factory, given weights without unpickling, put into evaluation mode."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgekiln.errors import BadInput, MissingExtra, did_you_mean
from edgekiln.files import sha256_file

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


def import_torch(doing: str, to: object) -> None:
    """Raise MissingExtra("torch") where torch or what its exporter needs is absent."""
    for module in ("torch", "onnxscript"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise MissingExtra(doing, to, "torch") from error


def is_factory(source: str) -> bool:
    """Whether ``source`` reads ``package.module:factory`` and names no file."""
    return _FACTORY.fullmatch(source) is not None


# ---------------------------------------------------------------- the module


@contextlib.contextmanager
def _on_path(folders: tuple[Path, ...]) -> Iterator[None]:
    added = [str(f) for f in folders]
    sys.path[:0] = added
    try:
        yield
    finally:
        for folder in added:
            with contextlib.suppress(ValueError):
                sys.path.remove(folder)


_read: dict[str, str] = {}
"""Hash of the file of each module that a factory was taken from in this process."""


def _forget_stale(source: str, folders: tuple[Path, ...]) -> None:
    """Drop the factory's module from memory where it is not what lies on disk now.

    Two jobs may both say ``model:build``, and a module may be edited between two builds of one process.
    """
    name = source.partition(":")[0]
    top = name.partition(".")[0]
    here = next((f for f in folders if (f / f"{top}.py").is_file() or (f / top).is_dir()), None)
    file = Path(getattr(sys.modules.get(name), "__file__", None) or ".")
    if here is None or not file.is_file():
        return
    edited = name in _read and _read[name] != sha256_file(file)
    if edited or not file.resolve().is_relative_to(here.resolve()):
        for old in [n for n in sys.modules if n == top or n.startswith(f"{top}.")]:
            del sys.modules[old]
        importlib.invalidate_caches()


def _find(source: str, what: str = "model factory") -> Callable[..., Any]:
    """The function that ``source`` names. Importing runs the user's own code, as asked."""
    doing = f"importing the {what}"
    module_name, _, name = source.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(f"{missing}."):
            cure = "Install the package that holds it, or give its folder as --search-path."
        else:
            cure = f"Install '{missing}', which that module imports."
        raise BadInput(doing, source, f"there is no module '{missing}'", cure) from error
    except Exception as error:
        why = f"the module raised {type(error).__name__}: {error}"
        raise BadInput(doing, source, why, "Mend the module; importing it has to work.") from error
    if (file := getattr(found, "__file__", None)) and Path(file).is_file():
        _read[module_name] = sha256_file(Path(file))
    for part in name.split("."):
        if not hasattr(found, part):
            known = [n for n in dir(found) if not n.startswith("_") and callable(getattr(found, n))]
            cure = did_you_mean(part, known) if known else f"Define the {what} there."
            raise BadInput(doing, source, f"'{module_name}' has no '{part}'", cure)
        found = getattr(found, part)
    if not callable(found):
        raise BadInput(doing, source, f"'{name}' is not callable", "Name a function.")
    function: Callable[..., Any] = found
    return function


def build_module(source: str, search_path: tuple[Path, ...]) -> torch.nn.Module:
    """Import ``package.module`` and call ``factory()``. ``search_path`` counts only meanwhile."""
    import torch

    doing = "building the model with"
    with _on_path(search_path):
        _forget_stale(source, search_path)
        factory = _find(source)
        try:
            module = factory()
        except Exception as error:
            why = f"the factory raised {type(error).__name__}: {error}"
            raise BadInput(
                doing, source, why, "It is called without arguments and returns the model."
            ) from error
    if not isinstance(module, torch.nn.Module):
        why = f"it returned {type(module).__name__}, not a torch.nn.Module"
        raise BadInput(doing, source, why, "Return the model itself.")
    return module


def function_of(source: str, search_path: tuple[Path, ...], use: Callable[[Callable[..., Any]], T]) -> T:
    """What ``use`` makes of the function ``package.module:function``; ``search_path`` counts meanwhile.

    Raises BadInput where the name is none, or there is no such function.
    """
    if not is_factory(source):
        why = "it is not of the form package.module:function"
        raise BadInput("importing the trainer", source, why, "Write it as in trainer = 'train:fine_tune'")
    with _on_path(search_path):
        _forget_stale(source, search_path)
        return use(_find(source, "trainer"))


def set_eval(module: torch.nn.Module) -> None:
    """Put ``module`` and each of its submodules into evaluation mode.

    ``eval()`` of a wrapper that overrides ``train`` can leave its children in training mode, and the
    exporter restores what it finds; so the flag of every submodule is set by itself as well.
    """
    module.eval()
    for part in module.modules():
        part.eval()
    for part in module.modules():
        part.training = False


# ---------------------------------------------------------------- the weights


def _load_file(path: Path) -> Any:
    """What a weights file holds; nothing in it is executed. Raises BadInput."""
    import torch

    doing = "reading the weights"
    save = "Save only the numbers: torch.save(model.state_dict(), path), or a .safetensors file."
    if not path.is_file():
        raise BadInput(doing, path, "there is no such file", "Check the path.")
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise MissingExtra(doing, path, "torch") from error
        try:
            return load_file(path, device="cpu")
        except Exception as error:
            raise BadInput(doing, path, str(error), "Copy or save the file again.") from error
    if path.suffix not in {".pt", ".pth", ".bin", ".ckpt"}:
        raise BadInput(doing, path, f"'{path.suffix}' is no weights file", "Give .pth, .pt or .safetensors.")
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    try:  # only the zip form (torch 1.6 and later) can be mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        why = f"it holds more than tensors, or is damaged ({first[0][:200]})"
        raise BadInput(doing, path, why, save) from error


def state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in ``path`` by parameter name, taken out of a training checkpoint or a wrapper's prefix."""
    import torch

    found = _load_file(path)
    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not found:
        raise BadInput("reading the weights", path, "it holds no state dict", "Save model.state_dict().")
    tensors = {str(k): v for k, v in found.items() if isinstance(v, torch.Tensor)}
    if len(tensors) < len(found):
        other = next(str(k) for k, v in found.items() if not isinstance(v, torch.Tensor))
        raise BadInput("reading the weights", path, f"'{other}' is no tensor", "Save model.state_dict().")
    for prefix in _PREFIXES:
        if all(k.startswith(prefix) for k in tensors):
            tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
    return tensors


def load_weights(module: torch.nn.Module, path: Path) -> None:
    """Load ``path`` into ``module``; every name and shape has to match. Raises BadInput."""
    doing = "loading the weights"
    cure = "Give the weights of this very architecture, or a factory that builds theirs."
    tensors = state_dict(path)
    own = module.state_dict()
    wrong = [
        f"{k} {tuple(tensors[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in tensors and tensors[k].shape != own[k].shape
    ]
    parts = {
        "missing": [k for k in own if k not in tensors],
        "unexpected": [k for k in tensors if k not in own],
        "of another shape": wrong,
    }
    if any(parts.values()):
        why = "; ".join(
            f"{len(names)} {what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
            for what, names in parts.items()
            if names
        )
        raise BadInput(doing, path, why, cure)
    module.load_state_dict(tensors, strict=True)
