"""Answers on the terminal: rich tables, plain where the output is a pipe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape as _escape
from rich.table import Table

from edgekiln.report.numbers import plain, significant

if TYPE_CHECKING:
    from edgekiln.devices import Device
    from edgekiln.diagnosis import Diagnosis
    from edgekiln.inspection import Inspection
    from edgekiln.prove.bench import BenchResult
    from edgekiln.records import Rejected, Signature
    from edgekiln.runtime.once import Prediction
    from edgekiln.sensors.energy import Energy
    from edgekiln.verification import Verification


def console() -> Console:
    """Standard output; a pipe gets 100 columns and no colour."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=100)


def short(path: Path) -> Path:
    """``path`` without "..", relative to the working folder where it lies below it."""
    whole, here = Path(os.path.normpath(path.absolute())), Path.cwd()
    return whole.relative_to(here) if whole.is_relative_to(here) else whole


def escape(text: str) -> str:
    """A stranger's string: no markup is read in it, and no control character leaves it."""
    return _escape(plain(text))


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
            f"{_scaled(c.parameters)} parameters ({_scaled(c.weight_bytes, 'B')}), "
            f"{_scaled(c.macs)} multiply-adds ({_scaled(c.flops, 'FLOPs')}); "
            f"activations {_scaled(c.activation_written_bytes, 'B')} written, "
            f"{_scaled(c.peak_activation_bytes, 'B')} at peak"
        )
        if c.unresolved_count:
            out.print(
                f"[yellow]{c.unresolved_count} nodes could not be counted: figures are lower bounds[/yellow]"
            )
        table = _table("operator", ">nodes", ">multiply-adds", ">FLOPs")
        for op in sorted(c.ops, key=lambda o: (-o.macs, -o.flops, o.op)):
            table.add_row(escape(op.op), str(op.nodes), _scaled(op.macs), _scaled(op.flops))
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
            shape = " x ".join(map(str, spec.shape)) or "scalar"
            out.print(f"  {kind} {escape(spec.name)}  {spec.dtype}  {escape(shape)}")


def catalogue(devices: Sequence[Device]) -> None:
    """One row a device."""
    from edgekiln.devices.show import overview

    rows = overview(list(devices), reasons=False)
    shown = ("name", "targets", "memory", "bandwidth", "int8 dense", "int8 sparse")
    table = _table("device", "targets, best first", *shown[2:])
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*(escape(row[key]) for key in shown))
    out = console()
    out.print(table)
    out.print("edgekiln devices NAME shows every figure with its source", style="dim")


def device(found: Device) -> None:
    """Every figure of one device with its source or the reason why it is unknown."""
    from edgekiln.devices.show import details

    out = console()
    out.print(f"[bold]{escape(found.name)}[/bold]  {escape(found.title)}")
    out.print(f"  targets, best first: {', '.join(found.targets)}; {found.threads} threads; {found.arch}")
    table = _table("figure", "value", "source, or why it is not known")
    table.columns[0].max_width, table.columns[1].max_width = 22, 18  # the sources are what is long
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
    out.print(f"{escape(found.artifact)} for {escape(found.device)}")
    out.print(f"{found.files} files have the hashes that the manifest names")
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
    if found.energy is not None:
        out.print(f"energy: {escape(_energy(found.energy))}")
    for sentence in getattr(found.a, "unfit", ()):
        out.print(f"[yellow]this machine:[/yellow] {escape(sentence)}")


def _energy(found: Energy) -> str:
    if found.mj is None:
        known = "" if found.watts is None else f" ({significant(found.watts)} W in all)"
        return f"not known: {found.reason}{known}"
    idle = f"{significant(found.watts)} W in all, {significant(found.idle_watts)} W idle"
    return f"{significant(found.mj)} mJ per inference above idle ({idle})"


def doctor(found: Diagnosis) -> None:
    """Abilities, and the machine's fitness."""
    out = console()
    table = _table("target", "ability", "here", "how to add it")
    for one in found.abilities:
        here = f"yes ({one.version})" if one.there and one.version else ("yes" if one.there else "no")
        table.add_row(one.subject, one.ability, here, escape(one.cure))
    out.print(table)
    for sentence in found.unfit:
        out.print(f"[yellow]this machine:[/yellow] {escape(sentence)}")


def _ms(value: float | None) -> str:
    return significant(value)


def _scaled(value: float, unit: str = "") -> str:
    """``4.65 M``, ``39.9 kB``: three digits, steps of 1000."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{significant(value / size)} {letter}{unit}"
    return f"{value:.0f} {unit}".rstrip()
