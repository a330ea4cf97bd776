"""Answers on the terminal: rich tables, plain where the output is a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from edgekiln.devices import Device
    from edgekiln.diagnosis import Diagnosis
    from edgekiln.inspection import Inspection
    from edgekiln.prove.bench import BenchResult
    from edgekiln.records import Rejected, Signature
    from edgekiln.runtime.once import Prediction
    from edgekiln.verification import Verification


def console() -> Console:
    """Standard output; a pipe gets 100 columns and no colour."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=100)


def _table(*columns: str, title: str = "") -> Table:
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    return table


def inspection(found: Inspection) -> None:
    """Signature, cost by operator, and each target's word."""
    out, model = console(), found.model
    out.print(f"[bold]{escape(model.name)}[/bold]  {model.task}, opset {found.opset}, {model.source.kind}")
    _signature(out, model.signature)
    if found.cost is None:
        out.print(f"cost unknown: {escape(found.cost_reason)}")
    else:
        c = found.cost
        out.print(
            f"{c.parameters / 1e6:.2f} M parameters ({c.weight_bytes / 1e6:.1f} MB), "
            f"{c.macs / 1e9:.3f} G multiply-adds ({c.flops / 1e9:.3f} GFLOPs), "
            f"activations {c.activation_written_bytes / 1e6:.1f} MB written, "
            f"{c.peak_activation_bytes / 1e6:.1f} MB at peak"
        )
        if c.unresolved_count:
            out.print(
                f"[yellow]{c.unresolved_count} nodes could not be counted: figures are lower bounds[/yellow]"
            )
        table = _table("operator", ">nodes", ">M multiply-adds", ">MFLOPs")
        for op in sorted(c.ops, key=lambda o: (-o.macs, -o.flops, o.op)):
            table.add_row(escape(op.op), str(op.nodes), f"{op.macs / 1e6:.1f}", f"{op.flops / 1e6:.1f}")
        out.print(table)
    for warning in model.warnings:
        out.print(f"[yellow]warning:[/yellow] {escape(warning)}")
    words = _table("target", "takes it", "says")
    for word in found.words:
        words.add_row(
            word.target, {True: "yes", False: "no", None: "not asked"}[word.accepts], escape(word.says)
        )
    if found.words:
        out.print(words)


def _signature(out: Console, signature: Signature) -> None:
    for kind, specs in (("in ", signature.inputs), ("out", signature.outputs)):
        for spec in specs:
            out.print(f"  {kind} {escape(spec.name)}  {spec.dtype} {'x'.join(map(str, spec.shape))}")


def catalogue(devices: Sequence[Device]) -> None:
    """One row a device."""
    from edgekiln.devices.show import overview

    rows = overview(list(devices), reasons=False)
    table = _table(*(rows[0] if rows else ()))
    for row in rows:
        table.add_row(*(escape(text) for text in row.values()))
    console().print(table)


def device(found: Device) -> None:
    """Every figure of one device with its source or the reason why it is unknown."""
    from edgekiln.devices.show import details

    out = console()
    out.print(f"[bold]{escape(found.name)}[/bold]  {escape(found.title)}")
    out.print(f"  targets, best first: {', '.join(found.targets)}; {found.threads} threads; {found.arch}")
    table = _table("figure", "value", "source, or why it is not known")
    for label, value, source in details(found):
        table.add_row(
            escape(label),
            escape(value.split(":")[0] if value.startswith("unknown") else value),
            escape(source),
        )
    out.print(table)


def verification(found: Verification) -> None:
    """What was checked, what moved, and that nothing is signed."""
    out = console()
    out.print(f"{found.artifact} for {found.device}: {found.files} files have their hashes")
    if found.golden is None:
        out.print(f"golden outputs not run: {escape(found.reason)}")
    elif found.golden:
        out.print(f"golden outputs hold within their tolerance ({escape(found.engine)})")
    for problem in found.problems:
        out.print(f"[red]moved:[/red] {escape(problem)}")
    if not found.signed:
        out.print("not signed: hashes show damage, not who made it")


def predictions(found: Sequence[Prediction], rejected: Sequence[Rejected]) -> None:
    """The best classes, or the extent of each output, a row each."""
    out = console()
    for note in {p.engine_note for p in found if p.engine_note}:
        out.print(f"[yellow]{escape(note)}[/yellow]")
    table = _table("picture", "label", ">probability")
    for one in found:
        for place, guess in enumerate(one.guesses):
            name = escape(Path(one.path).name) if place == 0 else ""
            table.add_row(name, escape(guess.label), f"{guess.probability:.3f}")
        for output in one.outputs:
            shape = "x".join(map(str, output.spec.shape))
            extent = f"{output.lowest:.4g} to {output.highest:.4g}, mean {output.mean:.4g}"
            table.add_row(escape(Path(one.path).name), f"{escape(output.spec.name)} {shape}", extent)
    if found:
        out.print(table)
    for row in rejected:
        out.print(f"[red]left out:[/red] {escape(row.path)}: {escape(row.reason)}")


def bench(found: BenchResult) -> None:
    """Percentiles of each contender and the verdict."""
    out = console()
    table = _table("contender", ">P50 ms", ">P95 ms", ">P99 ms", ">n", ">peak MB", "engine")
    for timing, figures in ((found.a, found.a_percentiles), (found.b, found.b_percentiles)):
        if timing is None:
            continue
        if figures is None:
            table.add_row(escape(timing.id), "—", "—", "—", "0", "—", "failed")
            continue
        t: Any = timing
        cells = [_ms(figures.p50), _ms(figures.p95), _ms(figures.p99), str(figures.n)]
        table.add_row(escape(t.id), *cells, f"{t.peak_rss_bytes / 1e6:.0f}", f"{t.engine} {t.engine_version}")
    out.print(table)
    out.print(escape(found.verdict))
    for sentence in getattr(found.a, "unfit", ()):
        out.print(f"[yellow]this machine:[/yellow] {escape(sentence)}")


def doctor(found: Diagnosis) -> None:
    """Abilities, what is planned, and the machine's fitness."""
    out = console()
    table = _table("target", "ability", "here", "how to add it")
    for one in found.abilities:
        here = f"yes ({one.version})" if one.there and one.version else ("yes" if one.there else "no")
        table.add_row(one.subject, one.ability, here, escape(one.cure))
    out.print(table)
    out.print(f"planned, not there yet: {', '.join(found.planned)}")
    for sentence in found.unfit:
        out.print(f"[yellow]this machine:[/yellow] {escape(sentence)}")


def _ms(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"
