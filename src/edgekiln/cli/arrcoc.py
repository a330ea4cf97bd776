"""``edgekiln arrcoc``: questions about pictures, looked at closely only where the question needs it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekiln.arrcoc.qwen.ask import Reply

SUMMARY = "answer questions about pictures within a latency, looking closely only where it helps"


def verbs(top: Any, common: argparse.ArgumentParser) -> None:
    """The grammar of ``arrcoc`` and its verbs, added to the subparsers ``top``; ``common`` has the options of
    all verbs."""
    room = top.add_parser("arrcoc", help=SUMMARY, description=SUMMARY)
    actions = room.add_subparsers(dest="action", required=True, metavar="VERB")
    about = "ask a Qwen3-VL about a picture, with the visual tokens that the latency leaves room for"
    ask = actions.add_parser("ask", help=about, description=about, parents=[common])
    ask.add_argument("image", metavar="IMAGE")
    ask.add_argument("question", metavar="QUESTION")
    folder = "folder with config.json, safetensors, tokenizer.json and preprocessor_config.json"
    ask.add_argument("--model", required=True, metavar="PATH", help=folder)
    latency = "from the decoded picture to the first token of the answer"
    ask.add_argument("--latency-ms", type=float, metavar="100", help=latency)
    total = "visual tokens at most, in place of what the latency leaves room for"
    ask.add_argument("--tokens", type=int, metavar="113", help=total)
    route = "mix the detail inside the encoder (default), or pool its tokens after it"
    ask.add_argument("--route", choices=("inside", "after"), default="inside", help=route)
    longest = "tokens of the answer at most (default 64)"
    ask.add_argument("--answer-tokens", type=int, metavar="64", default=64, help=longest)


def answered(given: argparse.Namespace) -> tuple[Any, Callable[[Any], None]]:
    """What the verb found, and how to print it."""
    from edgekiln.arrcoc.qwen.ask import ask
    from edgekiln.progress import shown

    with shown(silent=given.json) as progress:
        found = ask(
            Path(given.model),
            Path(given.image),
            given.question,
            latency_ms=given.latency_ms,
            tokens=given.tokens,
            route=given.route,
            longest_answer=given.answer_tokens,
            progress=progress,
        )
    return found, reply


def reply(found: Reply) -> None:
    """The answer, the tokens it was read from, and where the time went."""
    from rich.table import Table

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
    said = f"first token after {found.first_token_ms:.1f} ms"
    if found.predicted_ms is not None:
        said += f", predicted at most {found.predicted_ms:.1f} ms"
    if found.latency_ms is not None:
        said += f"; {found.latency_ms:g} ms were allowed: {'met' if found.met else '[red]missed[/red]'}"
    out.print(said)
    for note in found.notes:
        out.print(f"[yellow]note:[/yellow] {escape(note)}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage")
    table.add_column("ms", justify="right")
    for stage in found.stages:
        table.add_row(stage.name, f"{stage.ms:.1f}")
    out.print(table)
