"""The report in a terminal: one table, and below it all that a glance at the table would miss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgekiln.records import Build
from edgekiln.report import figures, numbers, view
from edgekiln.report.figures import LATENCY, Cell, long_title
from edgekiln.report.placement import kind_of, placed, sizes_of, worst
from edgekiln.report.view import Device

_STYLE = {"proven": "green", "unproven": "yellow", "none": "red"}
_SHOWN = 6
_TITLES_WIDE = (
    "Accuracy drop\npoints",
    "Agreement\n% or SQNR",
    "Latency, ms\nP50 / P95 / P99",
    "Memory\npeak MB",
    "Size\nMB",
)
_TITLES_NARROW = ("Accuracy\ndrop, pts", "Agreed %\nor SQNR", "Latency\nms", "Memory\npeak MB", "Size\nMB")
_COLUMNS = ("accuracy_drop", "agreement", *LATENCY, "memory_bytes", "size_bytes")


def decision_table(build: Build, width: int = 100) -> Table:
    """A row per device: the chosen artifact and its figures, each with the word that says how it came.

    It is made for 100 columns; under 96 the device stands above its artifact and the percentiles above one
    another, which fits 80. A dash is a figure that nobody knows; ``print_build`` says why.
    """
    wide = width >= 96
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False, header_style="bold")
    table.add_column("Device\nand artifact", overflow="fold", min_width=14)
    titles = _TITLES_WIDE if wide else _TITLES_NARROW
    dropped = next((figures.cell(p, "accuracy_drop").column for p in build.proofs), None)
    if dropped is not None and dropped != figures.COLUMNS["accuracy_drop"]:
        metric = dropped.title.removesuffix(" drop")
        titles = (f"{dropped.title}\npoints" if wide else f"{metric}\ndrop, pts", *titles[1:])
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for index, device in enumerate(view.devices(build)):
        if index:
            table.add_row()
        table.add_row(*_row(device, wide))
    return table


def _row(device: Device, wide: bool) -> tuple[Text, ...]:
    chosen = device.chosen
    status = device.choice.status if chosen else "none"
    name = _text(device.choice.device, "bold")
    words = Text(view.STATUS[status][0].lower(), _STYLE[status])
    if chosen is None:
        return (_lines(name, words), *(Text(numbers.MISSING, "dim") for _ in range(5)))
    made = chosen.proof.artifact
    label = (_text(f"{made.target} {made.recipe}"),) if wide else (_text(made.target), _text(made.recipe))
    cells = chosen.cells
    return (
        _lines(name, *label, words),
        _figure(cells["accuracy_drop"], wide),
        _likeness(cells["agreement"], cells["sqnr_db"]),
        _latency([cells[k] for k in LATENCY], wide),
        _figure(cells["memory_bytes"], wide),
        _figure(cells["size_bytes"], wide),
    )


def _likeness(agreement: Cell, sqnr: Cell) -> Text:
    """The agreement; for a model without classes its signal to quantisation noise, with the unit."""
    if agreement.value is not None or sqnr.value is None:
        return _figure(agreement, False, show_interval=False)
    return _lines(Text(f"{sqnr.text} dB"), Text(str(sqnr.how), "dim"))


def _figure(cell: Cell, wide: bool, show_interval: bool = True) -> Text:
    """The figure, its interval, how it was obtained."""
    if cell.value is None:
        return Text(numbers.MISSING, "dim")
    parts = [Text(cell.text)]
    if cell.interval and show_interval:
        parts.append(Text(numbers.interval(cell.bounds, cell.column.write, " to " if wide else "…"), "dim"))
    return _lines(*parts, Text(str(cell.how), "dim"))


def _latency(cells: Sequence[Cell], wide: bool) -> Text:
    known = [c for c in cells if c.value is not None]
    if not known:
        return Text(numbers.MISSING, "dim")
    hows = list(dict.fromkeys(str(c.how) for c in known))
    if len(hows) > 1:
        return _lines(*(_lines_of(c) for c in cells))
    how = Text(hows[0], "dim")
    if wide:
        return _lines(Text(" / ".join(c.text for c in cells)), how)
    return _lines(*(Text(f"{c.column.title} {c.text}") for c in cells), how)


def _lines_of(cell: Cell) -> Text:
    """One percentile with its own mark, where the percentiles were not obtained in one way."""
    how = "" if cell.how is None else f" {cell.how}"
    return Text.assemble(f"{cell.column.title} {cell.text}", (how, "dim"))


def _lines(*parts: Text) -> Text:
    return Text("\n").join(parts)


def _text(text: str, style: str = "") -> Text:
    """A stranger's string: no markup is read in it and no control character leaves it."""
    return Text(numbers.plain(text).replace("\n", " ").replace("\t", " "), style)


def print_build(build: Build, console: Console, out_dir: Path) -> None:
    """The table, then warnings, missing proofs, failures and where the files are."""
    sentence, state = view.headline(build)
    console.print()
    console.print(Text.assemble((numbers.plain(build.model.name), "bold"), "  ", (sentence, _STYLE[state])))
    console.print()
    console.print(decision_table(build, console.width))
    console.print()
    devices = view.devices(build)
    _placement(console, devices)
    _list(console, "Input sizes", "cyan", [_sizes(d) for d in devices if d.chosen and _several(d)])
    _list(console, "Warnings", "yellow", [_text(w) for w in (*build.warnings, *build.model.warnings)])
    _list(console, "Not proven", "yellow", [line for d in devices for line in _unproven(d)])
    _list(console, "Not known", "yellow", [line for d in devices for line in _unknown(d)])
    _list(console, "No artifact", "red", [_none(d) for d in devices if d.chosen is None])
    _list(console, "Failed", "red", [_trouble(t) for t in view.troubles(build, "failed")])
    skipped = sum(f.kind == "skipped" for f in build.failures)
    if skipped:
        console.print(
            Text(f"{numbers.count(skipped, 'recipe')} skipped as not applicable; see the report.", "dim")
        )
        console.print()
    _paths(build, console, out_dir)


def _placement(console: Console, devices: Sequence[Device]) -> None:
    """A row per provider of each chosen artifact that could be asked; the others are counted."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False, header_style="bold")
    table.add_column("Placement", overflow="fold", min_width=14)
    table.add_column("Provider", overflow="fold", min_width=8)
    table.add_column("Taken", justify="right", no_wrap=True)
    table.add_column("Parts", justify="right", no_wrap=True)
    table.add_column("Falls back", overflow="fold", min_width=10)
    table.add_column("How", no_wrap=True)
    unasked = 0
    for device in devices:
        for row in placed(device.chosen.proof) if device.chosen else ():
            if row.share is None:
                unasked += 1
                continue
            table.add_row(
                _text(device.choice.device, "bold"),
                _text(row.provider),
                row.taken,
                row.partitions,
                _text(row.fallback, "yellow" if row.fallback != "none" else "dim"),
                Text(row.how, "dim"),
            )
    if table.row_count:
        console.print(table)
    if unasked:
        said = f"{numbers.count(unasked, 'provider')} could not be asked here; the report says why of each."
        console.print(Text(said, "dim"))
    if table.row_count or unasked:
        console.print()


def _several(device: Device) -> bool:
    return bool(device.chosen and device.chosen.proof.artifact.resolutions)


def _sizes(device: Device) -> Text:
    """The sizes of the chosen artifact, how they are made, and the size at which it is worst."""
    assert device.chosen is not None
    proof = device.chosen.proof
    told = f"{kind_of(proof.artifact)} for {', '.join(sizes_of(proof.artifact))}"
    for key in ("accuracy_drop", "agreement", "sqnr_db"):
        cell, size = worst(proof, key)
        if cell.value is not None:
            told += f"; worst {long_title(cell.column).lower()} {cell.text} {cell.column.unit}"
            told += f" at {size or sizes_of(proof.artifact)[0]}"
            break
    return Text.assemble((numbers.plain(device.choice.device), "bold"), f"  {numbers.plain(told)}")


def _unproven(device: Device) -> list[Text]:
    """A line per constraint that no figure of this device has judged, and why."""
    if device.chosen is None:
        return []
    lines = [
        Text.assemble(
            (numbers.plain(device.choice.device), "bold"),
            f"  {v.constraint.words}: {numbers.plain(v.detail)}",
            f" ({v.how})" if v.how else "",
        )
        for v in device.verdicts
        if v.state == "unproven"
    ]
    return lines + [
        Text.assemble((numbers.plain(device.choice.device), "bold"), f"  {numbers.plain(text)}")
        for text in device.other_unproven
    ]


def _unknown(device: Device) -> list[Text]:
    """A line per reason for the table's dashes, except where "Not proven" has just told it."""
    if device.chosen is None:
        return []
    told = {v.detail for v in device.verdicts if v.state == "unproven"}
    reasons: dict[str, list[str]] = {}
    for key in _COLUMNS:
        cell = device.chosen.cells[key]
        if cell.value is None and cell.reason not in told:
            reasons.setdefault(cell.reason, []).append(long_title(cell.column))
    return [
        Text.assemble((numbers.plain(device.choice.device), "bold"), f"  {', '.join(titles)}: {reason}")
        for reason, titles in reasons.items()
    ]


def _none(device: Device) -> Text:
    broken = [
        f"{v.constraint.words} ({numbers.plain(v.detail)})" for v in device.verdicts if v.state == "broken"
    ]
    why = numbers.plain(device.choice.basis) + (f"; {', '.join(broken)}" if broken else "")
    return Text.assemble((numbers.plain(device.choice.device), "bold"), f"  {why}")


def _trouble(trouble: view.Trouble) -> Text:
    head = numbers.plain(f"{', '.join(trouble.devices)}  {trouble.target} {trouble.recipe}")
    text = Text.assemble((head, "bold"), f"  {numbers.plain(trouble.reason)}")
    if trouble.cure:
        text.append(f"\n{numbers.plain(trouble.cure)}", "dim")
    return text


def _list(console: Console, title: str, style: str, lines: Sequence[Text]) -> None:
    """At most six; the report holds the others."""
    if not lines:
        return
    shown: list[Text] = list(lines[:_SHOWN])
    if len(lines) > _SHOWN:
        shown.append(Text(f"and {len(lines) - _SHOWN} more in the report", "dim"))
    console.print(Text(title, f"bold {style}"))
    console.print(Padding(Group(*shown), (0, 0, 1, 2)))


def _paths(build: Build, console: Console, out_dir: Path) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("Report", _text(str(out_dir / build.decision.report)))
    bundles = [c.bundle for c in build.decision.choices if c.bundle]
    for index, bundle in enumerate(bundles):
        table.add_row(
            "" if index else ("Bundles" if len(bundles) > 1 else "Bundle"), _text(str(out_dir / bundle))
        )
    console.print(table)
