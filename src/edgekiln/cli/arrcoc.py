"""``edgekiln arrcoc``: questions about pictures, looked at closely only where the question needs it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln.errors import BadInput

if TYPE_CHECKING:
    from edgekiln.arrcoc import answering
    from edgekiln.arrcoc.plans import Plan
    from edgekiln.arrcoc.qwen.ask import Reply

SUMMARY = "answer questions about pictures within a latency, looking closely only where it helps"


def verbs(top: Any, common: argparse.ArgumentParser) -> None:
    """The grammar of ``arrcoc`` and its verbs, added to the subparsers ``top``; ``common`` has the options of
    all verbs."""
    room = top.add_parser("arrcoc", help=SUMMARY, description=SUMMARY)
    actions = room.add_subparsers(dest="action", required=True, metavar="VERB")
    about = "ask about a picture, with the visual tokens that the latency leaves room for"
    ask = actions.add_parser("ask", help=about, description=about, parents=[common])
    ask.add_argument("image", metavar="IMAGE")
    ask.add_argument("question", metavar="QUESTION")
    folder = (
        "folder of a Qwen3-VL (config.json, safetensors, tokenizer.json, preprocessor_config.json) or of an "
        "exported compact system; without it the small one that comes with this program, which reads digits"
    )
    ask.add_argument("--model", metavar="PATH", help=folder)
    latency = "from the decoded picture to the answer, or to its first token"
    ask.add_argument("--latency-ms", type=float, metavar="100", help=latency)
    total = "visual tokens at most, in place of what the latency leaves room for"
    ask.add_argument("--tokens", type=int, metavar="113", help=total)
    drawing = "compact system: draw the relevance, and what was read closely, into this PNG"
    ask.add_argument("--drawing", metavar="FILE", help=drawing)
    threads = "compact system: threads (default 1)"
    ask.add_argument("--threads", type=int, metavar="1", help=threads)
    route = "mix the detail inside the encoder (default), or pool its tokens after it"
    ask.add_argument("--route", choices=("inside", "after"), default="inside", help=route)
    longest = "tokens of the answer at most (default 64)"
    ask.add_argument("--answer-tokens", type=int, metavar="64", default=64, help=longest)
    _plan(actions, common)


def _plan(actions: Any, common: argparse.ArgumentParser) -> None:
    about = "write a trained compact system as the jobs that edgekiln build makes for a platform"
    plan = actions.add_parser("plan", help=about, description=about, parents=[common])
    plan.add_argument("into", metavar="INTO", help="a new folder")
    trained = "of python -m edgekiln.arrcoc.train; without it the one that comes with this program"
    plan.add_argument("--checkpoint", metavar="FILE", help=trained)
    plan.add_argument("--platform", required=True, choices=("jetson", "iphone", "android"))
    device = "of edgekiln devices (again for more); default one of the platform's"
    plan.add_argument("--device", action="append", default=[], metavar="NAME", help=device)
    tokens = "a reader of so many: 49 and 16 for each window (again for more); default 65, 81 and 113"
    plan.add_argument("--tokens", action="append", type=int, metavar="81", help=tokens)
    for name, what in (("calibration", "ranges are found on"), ("validation", "artifacts are judged on")):
        plan.add_argument(f"--{name}", type=int, metavar="64", help=f"scenes that {what} (default 64)")
    plan.add_argument("--seed", type=int, default=0, help="of the scenes")


def answered(given: argparse.Namespace) -> tuple[Any, Callable[[Any], None]]:
    """What the verb found, and how to print it."""
    return _planned(given) if given.action == "plan" else _asked(given)


def _planned(given: argparse.Namespace) -> tuple[Any, Callable[[Any], None]]:
    from edgekiln.arrcoc.plans import BUCKETS, CALIBRATION, VALIDATION, write_plan
    from edgekiln.progress import shown

    into = Path(given.into)
    with shown(silent=given.json) as progress:
        found = write_plan(
            None if given.checkpoint is None else Path(given.checkpoint),
            into,
            given.platform,
            devices=given.device,
            buckets=given.tokens or BUCKETS,
            calibration=CALIBRATION if given.calibration is None else given.calibration,
            validation=VALIDATION if given.validation is None else given.validation,
            seed=given.seed,
            progress=progress,
        )
    return found, lambda plan: planned(plan, into)


def planned(plan: Plan, into: Path) -> None:
    """The parts in the order in which they run, what to type next, and what is not there."""
    from rich.table import Table

    from edgekiln.cli.show import console, escape, short

    out = console()
    out.print(f"[bold]{escape(plan.title)}[/bold], for {escape(', '.join(plan.devices))}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("step", "waits for", "on"):
        table.add_column(head)
    table.add_column("million multiply-adds", justify="right")
    for step in plan.steps:
        if not step.parts:
            table.add_row(step.name, ", ".join(step.waits_for), "the application", "")
        for part in map(plan.part, step.parts):
            row = (part.name, ", ".join(step.waits_for), part.runs_on, f"{part.macs / 1e6:.1f}")
            table.add_row(*map(escape, row))
    out.print(table)
    out.print("build each part:")
    folder = short(into)
    for part in plan.parts:
        out.print(f"  edgekiln build {escape(str(folder))}/{part.job}", soft_wrap=True)
    if plan.cuts:
        out.print(f"cut a reader for a server, in {escape(str(folder))}:")
    for cut in plan.cuts:
        out.print(f"  {escape(cut.command)}", soft_wrap=True)
    for way in plan.ways:
        out.print(f"[bold]{way.mode}[/bold]: {escape(way.meaning)}")
    for note in plan.notes:
        out.print(f"note: {escape(note)}")
    for lack in plan.missing:
        out.print(f"[yellow]not there:[/yellow] {escape(lack)}")


def _asked(given: argparse.Namespace) -> tuple[Any, Callable[[Any], None]]:
    from edgekiln.arrcoc import answering

    folder = None if given.model is None else Path(given.model)
    if folder is None or answering.is_compact(folder):
        return _compact(given, folder)
    from edgekiln.arrcoc.qwen.ask import ask
    from edgekiln.progress import shown

    for option, value in (("--drawing", given.drawing), ("--threads", given.threads)):
        if value is not None:
            why, cure = f"{option} is for the compact system", f"Leave {option} out"
            raise BadInput("asking the model in", folder, why, cure)
    with shown(silent=given.json) as progress:
        found = ask(
            folder,
            Path(given.image),
            given.question,
            latency_ms=given.latency_ms,
            tokens=given.tokens,
            route=given.route,
            longest_answer=given.answer_tokens,
            progress=progress,
        )
    return found, reply


def _compact(given: argparse.Namespace, folder: Path | None) -> tuple[Any, Callable[[Any], None]]:
    from edgekiln.arrcoc import answering
    from edgekiln.progress import shown

    with shown(silent=given.json) as progress:
        found = answering.ask(
            folder,
            Path(given.image),
            given.question,
            latency_ms=given.latency_ms,
            tokens=given.tokens,
            threads=1 if given.threads is None else given.threads,
            drawing=None if given.drawing is None else Path(given.drawing),
            progress=progress,
        )
    return found, compact_reply


def compact_reply(found: answering.Reply) -> None:
    """The answer, what was read closely, and where the time went."""
    from edgekiln.cli.show import console

    out = console()
    out.print(f"[bold]{found.answer}[/bold]  ({found.sure:.0%} sure)")
    closely = ", ".join(f"row {y + 1} column {x + 1}" for y, x in found.windows) or "nothing"
    out.print(f"{found.tokens} visual tokens of 784; read closely, of 7x7 regions: {closely}")
    weights = ", ".join(f"{name} {share:.0%}" for name, share in found.weights.items())
    out.print(f"the question weighs {weights}")
    _latency(f"{found.took_ms:.1f} ms", found)
    _stages(found.stages_ms.items())


def reply(found: Reply) -> None:
    """The answer, the tokens it was read from, and where the time went."""
    from edgekiln.cli.show import console, escape

    out = console()
    cut = "" if found.ended else " [dim](cut off: --answer-tokens)[/dim]"
    out.print(f"[bold]{escape(found.answer) or '(nothing)'}[/bold]{cut}")
    levels = " + ".join(map(str, found.by_level))
    out.print(
        f"{found.tokens} visual tokens (coarse to fine: {levels}) of {found.frame[1]}x{found.frame[0]} "
        f"pixels, where the whole takes {found.standard_tokens}; {found.encoded_tokens} in the encoder; "
        f"{found.text_tokens} tokens of text"
    )
    _latency(f"first token after {found.first_token_ms:.1f} ms", found)
    _stages((stage.name, stage.ms) for stage in found.stages)


def _latency(said: str, found: answering.Reply | Reply) -> None:
    """What it took beside what was predicted and allowed, and what to know about that."""
    from edgekiln.cli.show import console, escape

    if found.predicted_ms is not None:
        said += f", predicted at most {found.predicted_ms:.1f} ms"
    if found.latency_ms is not None:
        said += f"; {found.latency_ms:g} ms were allowed: {'met' if found.met else '[red]missed[/red]'}"
    console().print(said)
    for note in found.notes:
        console().print(f"[yellow]note:[/yellow] {escape(note)}")


def _stages(stages: Iterable[tuple[str, float]]) -> None:
    from rich.table import Table

    from edgekiln.cli.show import console

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage")
    table.add_column("ms", justify="right")
    for name, ms in stages:
        table.add_row(name, f"{ms:.1f}")
    console().print(table)
