"""Devices side by side: every figure that one of them states, and the ratios to the first device."""

from __future__ import annotations

from collections.abc import Sequence

from edgekiln.devices import COMMON_FIGURES, Device, Figure
from edgekiln.devices.show import label, value_text
from edgekiln.errors import BadInput
from edgekiln.records import Record

NO_FIGURE = "no figure"
CELSIUS = "°C"
"""Its zero is arbitrary: a ratio of two such temperatures says nothing."""
_ORDER_KEY = "target_order"


class Row(Record, frozen=True, kw_only=True):
    """One figure of each device, in their order; None where a device keeps no such figure.

    ``ratios`` are each device's number over that of the first; None for the first itself, and where the two
    are not numbers of one unit, or are temperatures.
    """

    key: str
    label: str
    figures: tuple[Figure | None, ...]
    ratios: tuple[float | None, ...]


class Comparison(Record, frozen=True, kw_only=True):
    """Devices, by name, and a row a figure: what every device states first, then the rest."""

    devices: tuple[str, ...]
    titles: tuple[str, ...]
    targets: tuple[tuple[str, ...], ...]
    rows: tuple[Row, ...]


def compare(devices: Sequence[Device]) -> Comparison:
    """Lay two or more devices side by side. Raises BadInput for fewer, and for one that is named twice."""
    named = [d.name for d in devices]
    twice = sorted({n for n in named if named.count(n) > 1})
    if len(named) < 2 or twice:
        why = f"{', '.join(twice)} is named twice" if twice else "one device stands beside nothing"
        raise BadInput("comparing devices", ", ".join(named), why, "Name two or more different devices")
    keys = dict.fromkeys((*COMMON_FIGURES, *(key for d in devices for key in d.figures)))
    return Comparison(
        devices=tuple(named),
        titles=tuple(d.title for d in devices),
        targets=tuple(d.targets for d in devices),
        rows=tuple(_row(key, devices) for key in keys),
    )


def _row(key: str, devices: Sequence[Device]) -> Row:
    figures = tuple(d.figures.get(key) for d in devices)
    ratios = (None, *(_ratio(f, figures[0]) for f in figures[1:]))
    return Row(key=key, label=label(key), figures=figures, ratios=ratios)


def _ratio(one: Figure | None, first: Figure | None) -> float | None:
    if one is None or first is None or one.unit != first.unit or one.unit == CELSIUS:
        return None
    values = (one.value, first.value)
    above, below = (v if isinstance(v, int | float) and not isinstance(v, bool) else None for v in values)
    return above / below if above and below else None


def cells(found: Comparison) -> list[tuple[str, ...]]:
    """The label and one text a device for each row: ``102 GB/s (1.5x)``, ``unknown``, ``no figure``."""
    head = [
        ("device", *found.titles),
        ("targets, best first", *(", ".join(t) for t in found.targets)),
    ]
    return head + [
        (row.label, *(_cell(f, r) for f, r in zip(row.figures, row.ratios, strict=True)))
        for row in found.rows
        if row.key != _ORDER_KEY
    ]


def _cell(figure: Figure | None, ratio: float | None) -> str:
    if figure is None:
        return NO_FIGURE
    plain = value_text(figure, reasons=False)
    return plain if ratio is None else f"{plain} ({ratio:.3g}x)"


def reasons(found: Comparison) -> list[tuple[str, str, str]]:
    """Why a figure is unknown: (device, labels, reason), with the figures that share a reason in one row."""
    together: dict[tuple[str, str], list[str]] = {}
    for place, device in enumerate(found.devices):
        for row in found.rows:
            figure = row.figures[place]
            if figure is not None and figure.value is None:
                together.setdefault((device, figure.reason), []).append(row.label)
    return [(device, ", ".join(labels), why) for (device, why), labels in together.items()]
