"""Run an Olive workflow in Olive's own environment: ``python olive_run.py CONFIG``.

Olive 0.13 with pydantic 2 stops at two places before it works: an enumeration that is asked for None calls
``lower`` on it where the caller expects ValueError, and so every evaluator is refused.
"""

import sys

from olive.common.config_utils import CaseInsensitiveEnum
from olive.workflows import run

_asked = CaseInsensitiveEnum._missing_.__func__


def _missing(cls, value):
    return None if value is None else _asked(cls, value)


CaseInsensitiveEnum._missing_ = classmethod(_missing)

if __name__ == "__main__":
    run(sys.argv[1])
