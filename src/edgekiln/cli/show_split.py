"""Where a model can be cut, and what a cut made, on a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgekiln.cli.show import short
from edgekiln.report.numbers import significant
from edgekiln.splitting import Parted, Places


def places(found: Places, out: Console) -> None:
    """One row a place, the front of the network first."""
    _warn(found.warnings, out)
    if not found.places:
        out.print(
            f"{escape(found.model)} can be cut at no single tensor: none has fewer numbers than the input, "
            "weights before it and work behind it"
        )
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tensor", overflow="fold")
    for head in ("by", "shape"):
        table.add_column(head, no_wrap=True)
    for head in ("numbers", "work", "weights"):
        table.add_column(head, justify="right")
    for one in found.places:
        shares = (one.share, one.macs_share, one.weights_share)
        shape = "x".join(map(str, one.shape))
        table.add_row(escape(one.tensor), one.op, shape, *(_percent(share) for share in shares))
    out.print(table)
    out.print("numbers: of the input's; work and weights: of the whole network's, before the cut")
    out.print("the deeper the cut, the less of the picture is left in what is sent; give it with --at TENSOR")


def parted(found: Parted, out: Console) -> None:
    """What was written, what leaves the device, and what that costs."""
    made = found.split
    _warn(found.warnings, out)
    shapes = ", ".join(f"{escape(f.tensor)} {'x'.join(map(str, f.shape))}" for f in made.features)
    out.print(f"[bold]{escape(found.model)}[/bold] cut at {shapes}")
    share = made.features_elements / made.inputs_elements
    out.print(
        f"  leaves the device: {made.features_elements:,} numbers of 8 bits, {found.sent_bytes:,} bytes a "
        f"frame; {_percent(share)} of the input's {made.inputs_elements:,} numbers"
    )
    if made.beside:
        out.print(f"  beside them, as they are: {escape(', '.join(made.beside))}")
    for part, does in ((made.head, f"{_percent(found.macs_share)} of the work"), (made.tail, "the rest")):
        out.print(f"  {part.path}: {part.size_bytes / 1e6:.3g} MB, {does}")
    sqnr = "no loss" if made.quantised_sqnr_db is None else f"{significant(made.quantised_sqnr_db)} dB SQNR"
    many = "1 sample" if made.samples == 1 else f"{made.samples} samples"
    out.print(
        f"  in float the parts are {made.parity_max_error:.2g} off the whole at most; "
        f"features in 8 bits: {sqnr} of the outputs ({many})"
    )
    folder = short(Path(found.out))
    use = f"edgekiln run BUNDLE --input SOURCE --server URL --privacy features-only --split {folder}"
    out.print(f"serve {made.tail.path}, then: {escape(use)}")


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _warn(warnings: tuple[str, ...], out: Console) -> None:
    for warning in warnings:
        out.print(f"[yellow]warning:[/yellow] {escape(warning)}")
