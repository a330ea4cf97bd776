"""A function of an ML Program as a list of steps, and how it is run.

Opening a function checks that every op is known, reads its constants and notes after which step a tensor
is no longer needed. Running it rounds each result to the type that the program declares for it, and
compares each shape with the declared one: where they differ the program or the interpreter is wrong, and
no number is given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from edgekiln.engines.mil import table
from edgekiln.engines.mil.package import Package, damaged
from edgekiln.engines.mil.values import TORCH, Function, Kind, Value, decode, kind, rounded
from edgekiln.errors import BadInput, NotRunnableHere

_DOING = "interpreting the Core ML function"
_MAX_TURNS = 1_000_000
_MAX_DEPTH = 32
_LISTS = {"begins", "elem_shape", "end_masks", "ends", "loop_vars", "ref_tensors", "values"}
"""Parameters that hold several values, even where there is one."""
_WRONG = (ValueError, RuntimeError, IndexError, TypeError, KeyError, ZeroDivisionError, OverflowError)


@dataclass(frozen=True)
class Argument:
    """One parameter of a step: the names it refers to, or None for a value written into the op."""

    parameter: str
    values: tuple[tuple[str | None, Value], ...]


@dataclass(frozen=True)
class Block:
    inputs: tuple[tuple[str, Kind], ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    constants: Mapping[str, Value]


@dataclass(frozen=True)
class Step:
    """``done`` are the names that no later step of the block uses."""

    op: str
    name: str
    arguments: tuple[Argument, ...]
    outputs: tuple[tuple[str, Kind], ...]
    blocks: tuple[Block, ...] = ()
    done: tuple[str, ...] = ()


@dataclass(frozen=True)
class Program:
    """One function, ready to run. ``states`` are those it reads or writes, with their types."""

    function: str
    opset: int
    inputs: Mapping[str, Kind]
    states: Mapping[str, Kind]
    block: Block
    ops: Mapping[str, Function] = field(repr=False)


@dataclass(frozen=True)
class _State:
    """What a state's name stands for inside a function."""

    name: str


def load(package: Package, function: str) -> Program:
    """Compile ``function``. Raises BadInput for a function that is not there or a damaged program, and
    NotRunnableHere for ops that are not interpreted, naming each with its place."""
    functions = package.spec.mlProgram.functions
    if function not in functions:
        known = ", ".join(sorted(functions)) or "none"
        raise BadInput(_DOING, function, f"{package.name} has no such function", f"Use one of: {known}")
    spec = functions[function]
    if spec.opset not in spec.block_specializations:
        raise damaged(package.name, f"the function {function} has no block for {spec.opset or 'any opset'}")
    body = spec.block_specializations[spec.opset]
    unknown = _unknown_ops(body)
    if unknown:
        raise NotRunnableHere(
            _DOING,
            function,
            f"the reference interpreter lacks {', '.join(f'{op} (at {place!r})' for op, place in unknown)}",
            "Test this package on a Mac or a phone, or ask for the op",
        )
    number = re.fullmatch(r"CoreML(\d+)", spec.opset)
    if number is None:
        raise NotRunnableHere(_DOING, function, f"its opset is {spec.opset}", "Convert for iOS 15 or later")
    plain = {v.name: kind(v.type, package.name) for v in spec.inputs if not _is_state(v)}
    states = {v.name: kind(v.type, package.name) for v in spec.inputs if _is_state(v)}
    block = _block(body, package, {}, 0)
    opset = int(number[1])
    return Program(function, opset, plain, states, block, table.functions(opset))


def _is_state(value: Any) -> bool:
    return bool(value.type.WhichOneof("type") == "stateType")


def _unknown_ops(block: Any) -> list[tuple[str, str]]:
    """Ops outside the table, each once, with the first place where it stands."""
    found: dict[str, str] = {}
    known = table.names()
    pending = [block]
    while pending:
        for op in pending.pop().operations:
            if op.type not in known:
                found.setdefault(op.type, _name(op))
            pending.extend(op.blocks)
    return sorted(found.items())


def _name(op: Any) -> str:
    """The place of an op: its first output, which is what it is called in the program."""
    return str(op.outputs[0].name) if op.outputs else str(op.type)


# ---------------------------------------------------------------- reading


def _block(spec: Any, package: Package, outer: Mapping[str, Value], depth: int) -> Block:
    if depth > _MAX_DEPTH:
        raise damaged(package.name, f"its blocks lie more than {_MAX_DEPTH} deep")
    constants: dict[str, Value] = {}
    steps: list[Step] = []
    for op in spec.operations:
        if op.type == "const" or op.type in table.CONSTANTS:
            constants.update(_constant(op, package, {**outer, **constants}))
        else:
            steps.append(_step(op, package, {**outer, **constants}, depth))
    inputs = tuple((v.name, kind(v.type, package.name)) for v in spec.inputs)
    return Block(inputs, tuple(spec.outputs), _with_ends(steps, set(spec.outputs)), constants)


def _step(op: Any, package: Package, constants: Mapping[str, Value], depth: int) -> Step:
    outputs = tuple((v.name, kind(v.type, package.name)) for v in op.outputs)
    blocks = tuple(_block(b, package, constants, depth + 1) for b in op.blocks)
    return Step(op.type, _name(op), _arguments(op, package), outputs, blocks)


def _arguments(op: Any, package: Package) -> tuple[Argument, ...]:
    found = []
    for parameter in sorted(op.inputs):
        values = tuple(
            (b.name, None) if b.WhichOneof("binding") == "name" else (None, decode(b.value, package))
            for b in op.inputs[parameter].arguments
        )
        found.append(Argument(parameter, values))
    return tuple(found)


def _constant(op: Any, package: Package, known: Mapping[str, Value]) -> dict[str, Value]:
    """The value of a ``const``, or what a ``constexpr_`` op unpacks to (its outputs by name)."""
    given = {key: decode(value, package) for key, value in op.attributes.items() if key != "name"}
    if op.type == "const":
        if "val" not in given or len(op.outputs) != 1:
            raise damaged(package.name, f"the constant {_name(op)} has no value")
        return {op.outputs[0].name: given["val"]}
    try:
        given.update({a.parameter: _bound(a, known) for a in _arguments(op, package)})
        results = table.CONSTANTS[op.type](**given)
    except _WRONG as error:
        raise damaged(package.name, f"{op.type} at '{_name(op)}' can't be unpacked ({error})") from error
    declared = [(v.name, kind(v.type, package.name)) for v in op.outputs]
    return dict(_settled(op.type, declared, results))


def _with_ends(steps: list[Step], outputs: set[str]) -> tuple[Step, ...]:
    """The steps, each with the names that it is the last to use."""
    seen = set(outputs)
    ended: list[Step] = []
    for step in reversed(steps):
        used = _uses(step)
        done = tuple(sorted(used | {n for n, _ in step.outputs} - seen) if not step.blocks else ())
        done = tuple(name for name in done if name not in seen)
        seen |= used
        ended.append(Step(step.op, step.name, step.arguments, step.outputs, step.blocks, done))
    return tuple(reversed(ended))


def _uses(step: Step) -> set[str]:
    names = {name for a in step.arguments for name, _ in a.values if name is not None}
    for block in step.blocks:
        names |= set(block.outputs)
        for inner in block.steps:
            names |= _uses(inner)
    return names


# ---------------------------------------------------------------- running


def run(program: Program, inputs: Mapping[str, Tensor], states: dict[str, Tensor]) -> dict[str, Value]:
    """Run the function on ``inputs`` (by the program's own names); ``states`` are updated in place.

    Raises NotRunnableHere with the op and its place where a step can't be computed.
    """
    env: dict[str, Value] = {name: _State(name) for name in program.states}
    env.update({name: rounded(inputs[name], declared.dtype) for name, declared in program.inputs.items()})
    with torch.inference_mode():
        results = _run_block(program, program.block, env, states)
    return dict(zip(program.block.outputs, results, strict=True))


def _run_block(
    program: Program, block: Block, env: dict[str, Value], states: dict[str, Tensor]
) -> list[Value]:
    env.update(block.constants)
    for step in block.steps:
        try:
            results = _run_step(program, step, env, states)
            env.update(_settled(step.op, step.outputs, results))
        except _WRONG as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise NotRunnableHere(
                _DOING,
                program.function,
                f"{step.op} at '{step.name}': {lines[0]}",
                "Check the model at that place, and its inputs",
            ) from error
        for name in step.done:
            env.pop(name, None)
    return [env[name] for name in block.outputs]


def _run_step(program: Program, step: Step, env: dict[str, Value], states: dict[str, Tensor]) -> Value:
    given = {a.parameter: _bound(a, env) for a in step.arguments}
    if step.op == "read_state":
        return states[given["input"].name]
    if step.op in {"write_state", "coreml_update_state"}:
        state, value = (
            given[k] for k in (("input", "data") if step.op == "write_state" else ("state", "value"))
        )
        declared = program.states[state.name]
        states[state.name] = dict(_settled(step.op, [(state.name, declared)], value))[state.name].clone()
        return states[state.name] if step.outputs else ()
    if step.op == "cond":
        chosen = step.blocks[0 if bool(given["pred"]) else 1]
        return tuple(_run_block(program, chosen, dict(env), states))
    if step.op == "while_loop":
        return _loop(program, step, given["loop_vars"], env, states)
    return program.ops[step.op](**given)


def _loop(
    program: Program, step: Step, loop_vars: list[Value], env: dict[str, Value], states: dict[str, Tensor]
) -> tuple[Value, ...]:
    condition, body = step.blocks
    for _ in range(_MAX_TURNS):
        names = {name: v for (name, _), v in zip(condition.inputs, loop_vars, strict=True)}
        (go_on,) = _run_block(program, condition, {**env, **names}, states)
        if not bool(go_on):
            return tuple(loop_vars)
        names = {name: v for (name, _), v in zip(body.inputs, loop_vars, strict=True)}
        loop_vars = _run_block(program, body, {**env, **names}, states)
    raise ValueError(f"the loop did not end within {_MAX_TURNS} turns")


def _bound(argument: Argument, env: Mapping[str, Value]) -> Value:
    values = [value if name is None else env[name] for name, value in argument.values]
    return values[0] if len(values) == 1 and argument.parameter not in _LISTS else values


def _settled(op: str, outputs: Any, results: Value) -> list[tuple[str, Value]]:
    """Results under their names: rounded to the declared types, shapes as declared. Raises ValueError."""
    given = list(results) if isinstance(results, tuple) else [results] if outputs else []
    if len(given) != len(outputs):
        raise ValueError(f"it gives {len(given)} results where the program declares {len(outputs)}")
    settled = []
    for (name, declared), value in zip(outputs, given, strict=True):
        if isinstance(value, Tensor) and declared.dtype in TORCH:
            plain = op in table.UNROUNDED and value.dtype is TORCH[declared.dtype]
            value = _shaped(value if plain else rounded(value, declared.dtype), declared)
        settled.append((name, value))
    return settled


def _shaped(value: Tensor, declared: Kind) -> Tensor:
    if declared.shape == () and value.numel() == 1:
        return value.reshape(())
    agrees = len(declared.shape) == value.dim() and all(
        want is None or want == have for want, have in zip(declared.shape, value.shape, strict=True)
    )
    if not agrees:
        raise ValueError(f"its result has shape {list(value.shape)}, and the program declares {declared}")
    return value
