"""Start the benchmark of the scorers' own cost; ``--help`` says what it does. The work is in showing/."""

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    # The folder of this file would hide packages that bear the name of a file in it.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    importlib.import_module("arrcoc.showing.overhead").main()
