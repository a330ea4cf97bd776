"""Fine-tuning in a process of its own: ``python -m edgekiln.compile.finetune.worker``.

Reads one order a line from stdin and answers with one JSON line on stdout; what the trainer prints goes to
stderr. The user's functions run here as they would in a script: same folder, same search path.
"""

from __future__ import annotations

import random
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import msgspec
import numpy as np

from edgekiln.compile.finetune.learned import marks
from edgekiln.compile.finetune.order import Mark, Train, Trained, Training
from edgekiln.compile.worker import refusal
from edgekiln.errors import BadInput, ConversionFailed, EdgekilnError
from edgekiln.model.importers import import_model, torch_shapes
from edgekiln.model.torch_export import compare, example_inputs, flatten, named_shapes, run_onnx
from edgekiln.model.torch_source import build_module, function_of, import_torch, load_weights, set_eval
from edgekiln.prove.worker import attend

if TYPE_CHECKING:
    import torch

    from edgekiln.compile.finetune.simulate import Prepared

DOING = "fine-tuning with"
WEIGHTS = "fine-tuned.safetensors"
PROBE = "probe.npz"

Inputs = Mapping[str, "torch.Tensor"]


def fine_tune(order: Train) -> Trained:
    """Train the source's model on simulated grids; write its float weights and its ONNX export.

    Raises BadInput and ConversionFailed that name what the trainer did, MissingExtra without torchao.
    """
    from edgekiln.compile.finetune.simulate import prepared

    training, into = order.training, Path(order.into)
    search = tuple(map(Path, training.search_path))
    import_torch(DOING, training.trainer)
    function_of(training.trainer, search, lambda trainer: None)  # a wrong name costs no preparation
    _seed(training.seed)
    module = build_module(training.source, search)
    if training.weights is not None:
        load_weights(module, Path(training.weights))
    set_eval(module)
    shapes = torch_shapes(training.shapes, training.preprocess, training.source)
    inputs = example_inputs(module, named_shapes(module, shapes))
    set_eval(module)  # the user's forward may have switched modes
    _check_same(module, inputs, order)
    ready = prepared(module, inputs, order.most, training.source)
    done = supervise(training, module, ready.model, inputs)
    _export(module, training, into, search)
    np.savez(into / PROBE, allow_pickle=False, **{name: t.numpy() for name, t in inputs.items()})
    return Trained(path="model.onnx", probe=PROBE, note=_note(training, done, ready), marks=done.marks)


class Supervised(NamedTuple):
    """How many float tensors of how many a trainer changed, the last loss if it told one, and the ranges."""

    changed: int
    tensors: int
    loss: float | None
    marks: tuple[Mark, ...]


def supervise(
    training: Training, module: torch.nn.Module, model: torch.nn.Module, inputs: Inputs
) -> Supervised:
    """Let the trainer train ``model``, and copy the float weights that it found into ``module``.

    ``model`` has the parameters of ``module`` by name, and may share them. Raises BadInput for a trainer that
    is not there, ConversionFailed for one that fails, or leaves weights that are not finite or another model.
    """
    search, trainer = tuple(map(Path, training.search_path)), training.trainer
    was = {name: value.clone() for name, value in module.state_dict().items()}
    before = _shapes(model, inputs, trainer)
    _seed(training.seed)  # whatever the steps before drew
    given = training.arguments | ({} if training.data is None else {"data": Path(training.data)})
    returned = function_of(trainer, search, _trainer(training, model, given))
    trained, loss = _result(returned, model, trainer)
    trained.to("cpu")
    changed, tensors = _take_weights(module, was, trained, trainer)
    after = _shapes(trained, inputs, trainer)
    if before != after:
        why = f"its outputs were {_told(before)} and are {_told(after)} after training"
        raise ConversionFailed(DOING, trainer, why, "Train the model in place and keep its layers")
    trained.eval()
    return Supervised(changed, tensors, loss, marks(trained, inputs))


def _seed(seed: int) -> None:
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)


def _check_same(module: torch.nn.Module, inputs: Inputs, order: Train) -> None:
    """Raises BadInput where the source gives another model than the one that the build is about."""
    import onnx
    import torch

    with torch.no_grad():
        found = list(flatten(module(*inputs.values())))
    reference = {str(n): t.numpy() for n, (_, t) in enumerate(found)}
    try:
        _, wrong = compare(reference, run_onnx(onnx.load(order.graph), inputs))
    except Exception as error:  # the graph takes other inputs
        wrong = f"{type(error).__name__}: {str(error)[:200]}"
    if wrong:
        why = f"the model that {order.training.source} gives now is not the one that was imported: {wrong}"
        cure = "Give weights, or seed the random numbers that the factory draws"
        raise BadInput(DOING, order.training.trainer, why, cure)


def _trainer(
    training: Training, model: torch.nn.Module, given: dict[str, Any]
) -> Callable[[Callable[..., Any]], Any]:
    """Calls a trainer on ``model``; what it raises becomes a sentence with the line that raised it."""

    def call(trainer: Callable[..., Any]) -> Any:
        try:
            return trainer(model, **given)
        except EdgekilnError:
            raise
        except (Exception, SystemExit) as error:  # the user's own code
            frames = traceback.extract_tb(sys.exc_info()[2])[1:]
            file = sys.modules[trainer.__module__].__file__
            own = next((f for f in reversed(frames) if f.filename == file), None)
            where = f" ({Path(own.filename).name}, line {own.lineno})" if own is not None else ""
            said = " ".join(str(error).split())[:300]
            why = f"the trainer raised {type(error).__name__}: {said}{where}"
            traceback.print_exc()
            cure = "Mend the trainer; it is called with the model and the arguments of [qat]"
            raise ConversionFailed(DOING, training.trainer, why, cure) from error

    return call


def _result(returned: Any, model: torch.nn.Module, trainer: str) -> tuple[torch.nn.Module, float | None]:
    """The trained module and the last loss, from what the trainer gave back: nothing, a module or a loss."""
    import torch

    if returned is None:
        return model, None
    if isinstance(returned, torch.nn.Module):
        own, theirs = model.state_dict(), returned.state_dict()
        same = own.keys() == theirs.keys() and all(own[k].shape == theirs[k].shape for k in own)
        if not same:
            return returned, None
        model.load_state_dict(theirs)  # a copy of an exported model can't change its mode
        return model, None
    try:
        loss = float(returned)
    except (TypeError, ValueError, RuntimeError):
        why = f"it returned {type(returned).__name__}"
        cure = "Return nothing, the module, or the last loss as a number"
        raise ConversionFailed(DOING, trainer, why, cure) from None
    if not np.isfinite(loss):
        why, cure = f"its loss is {loss}", "Lower the learning rate, or look at the data that it trains on"
        raise ConversionFailed(DOING, trainer, why, cure)
    return model, loss


def _take_weights(
    module: torch.nn.Module, was: Inputs, trained: torch.nn.Module, trainer: str
) -> tuple[int, int]:
    """Copy the trained float weights into ``module``; how many tensors of how many differ from ``was``.

    A name that the graph does not hold (a head for training alone, a counter, the second name of a shared
    tensor) keeps what it has.
    """
    import torch

    own, found = module.state_dict(), trained.state_dict()
    held = {name for name, value in own.items() if value.is_floating_point() and name in found}
    parameters = {name for name, _ in module.named_parameters()}
    if not held & parameters:
        why = "the module that it returned has none of the model's parameters"
        cure = "Train the module that is given, and return nothing or that module"
        raise ConversionFailed(DOING, trainer, why, cure)
    changed = 0
    with torch.no_grad():
        for name in sorted(held):
            value = found[name]
            if value.shape != own[name].shape:
                why = f"'{name}' is {tuple(value.shape)} after training instead of {tuple(own[name].shape)}"
                raise ConversionFailed(DOING, trainer, why, "Keep the layers' shapes")
            if not bool(torch.isfinite(value).all()):
                why = f"'{name}' holds NaN or infinity after training"
                cure = "Lower the learning rate, or look at the data that it trains on"
                raise ConversionFailed(DOING, trainer, why, cure)
            changed += not torch.equal(value, was[name])
            own[name].copy_(value)
    return changed, len(held)


def _shapes(model: torch.nn.Module, inputs: Inputs, trainer: str) -> list[tuple[int, ...]]:
    """Shapes of the outputs in evaluation mode; the mode is training afterwards."""
    import torch

    from edgekiln.compile.finetune.simulate import as_float

    try:
        model.eval()
        with torch.no_grad(), as_float(model):  # the example is no data: no range may follow it
            shapes = [tuple(t.shape) for _, t in flatten(model(*inputs.values()))]
        model.train()
    except Exception as error:
        why = f"the model does not run: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ConversionFailed(DOING, trainer, why, "Train the model in place and keep its layers") from error
    return shapes


def _told(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, s)) or "a number" for s in shapes)


def _export(module: torch.nn.Module, training: Training, into: Path, search: tuple[Path, ...]) -> None:
    """The float weights as a file, and the export of the source with them: as the original was imported."""
    from safetensors.torch import save_file

    set_eval(module)
    save_file({k: v.detach().clone().contiguous() for k, v in module.state_dict().items()}, into / WEIGHTS)
    import_model(
        training.source,
        into,
        weights=str(into / WEIGHTS),
        input_shapes=training.shapes,
        preprocess=training.preprocess,
        labels=training.labels,
        task=training.task,
        search_path=search,
    )


def _note(training: Training, done: Supervised, ready: Prepared) -> str:
    what = f"{done.changed} of {done.tensors} float tensors changed" if done.changed else "no weight changed"
    parts = [
        f"fine-tuned by {training.trainer} on {ready.weights} simulated grids of weights and "
        f"{ready.activations} of activations, seed {training.seed}: {what}",
        "" if done.loss is None else f"last loss {done.loss:.4g}",
        ready.remark,
    ]
    return "; ".join(filter(None, parts))


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer each order until the end of input, which means that the parent is gone or done."""
    decoder = msgspec.json.Decoder(Train)
    for line in requests:
        order = decoder.decode(line)
        try:
            answer: Any = fine_tune(order)
        except Exception as error:
            answer = refusal(error, DOING, order.training.trainer)
        answers.write(msgspec.json.encode(answer) + b"\n")
        answers.flush()


def main() -> None:
    attend(serve)


if __name__ == "__main__":
    main()
