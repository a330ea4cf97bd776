"""Where packages from npm lie on this machine: looked for in the same places by every engine and test."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from edgekiln.errors import NotRunnableHere

VARIABLE = "EDGEKILN_NODE_MODULES"


def folders() -> list[Path]:
    """Every ``node_modules`` folder that may hold a package, the first choice first.

    $EDGEKILN_NODE_MODULES, alone where it is set; else those of the working folder and its parents, and
    the one beside the virtual environment.
    """
    given = os.environ.get(VARIABLE)
    if given:
        return [Path(given)]
    here = Path.cwd()
    return [folder / "node_modules" for folder in (here, *here.parents, Path(sys.prefix).parent)]


def find(name: str) -> Path | None:
    """The folder of the package ``name``, or None where no ``node_modules`` holds it."""
    return next((f / name for f in folders() if (f / name / "package.json").is_file()), None)


def package(name: str, doing: str, to: object) -> Path:
    """The folder of the package ``name``. Raises NotRunnableHere with the command that installs it."""
    found = find(name)
    if found is None:
        why = f"the npm package '{name}' is not in {VARIABLE} or any node_modules folder here"
        raise NotRunnableHere(doing, to, why, f"Run `make setup`, or: npm install --ignore-scripts {name}")
    return found


def version(folder: Path) -> str:
    """The version that a package's own ``package.json`` states."""
    return str(json.loads((folder / "package.json").read_text(encoding="utf-8"))["version"])
