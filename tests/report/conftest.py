"""The fakes lie beside the rooms' tests: ``from fakes.build_record import make_build``."""

import sys
from pathlib import Path

TESTS = str(Path(__file__).resolve().parents[1])
if TESTS not in sys.path:
    sys.path.insert(0, TESTS)
