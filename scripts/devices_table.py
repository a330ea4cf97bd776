"""Write the tables of docs/devices.md from the device catalogue.

python scripts/devices_table.py            rewrite the part between the markers
python scripts/devices_table.py --check    exit 1 if the page is not up to date
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgekiln.devices import HOST, Device, load_catalogue
from edgekiln.devices.show import details, overview
from edgekiln.files import write_bytes

PAGE = Path(__file__).resolve().parent.parent / "docs" / "devices.md"
BEGIN = "<!-- Written by scripts/devices_table.py: begin -->"
END = "<!-- Written by scripts/devices_table.py: end -->"
COLUMNS = ("name", "title", "targets", "memory", "bandwidth", "int8 dense", "int8 sparse")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a ``|`` inside a cell is escaped."""
    lines = [tuple(header), tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines)


def tables(devices: Sequence[Device]) -> str:
    """The overview and one table a device."""
    rows = overview(devices, reasons=False)
    parts = ["## The catalogue", table(COLUMNS, ([row[c] for c in COLUMNS] for row in rows))]
    parts.append(f"`{HOST}` is this machine: it is probed, not listed.")
    for device in devices:
        parts.append(f"### {device.name}")
        facts = [(what, _short(value, why), why) for what, value, why in details(device)]
        parts.append(table(("fact", "value", "source, or why it is not known"), facts))
    return "\n\n".join(parts)


def _short(value: str, why: str) -> str:
    """An unknown value without its reason, which has a column of its own."""
    return "unknown" if value == f"unknown: {why}" else value


def rewritten(page: str, devices: Sequence[Device]) -> str:
    """The page with the part between the markers made anew. Raises ValueError without the markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{tables(devices)}\n\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    check: bool = parser.parse_args(arguments).check
    page = PAGE.read_text(encoding="utf-8")
    new = rewritten(page, tuple(load_catalogue().values()))
    if check:
        if new != page:
            print(f"{PAGE.name} is out of date: run python scripts/devices_table.py", file=sys.stderr)
        return int(new != page)
    write_bytes(PAGE, new.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
