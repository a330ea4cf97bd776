"""Run an Olive workflow in Olive's own environment: ``python olive_run.py CONFIG``.

Olive 0.13 refuses every workflow with an evaluator: it tries each part of the workflow as a path, and an
enumeration that is asked for None calls ``lower`` on it where the caller expects ValueError.
"""

from __future__ import annotations

import sys
from typing import Any

from olive.common.config_utils import CaseInsensitiveEnum
from olive.workflows import run

_asked = CaseInsensitiveEnum._missing_.__func__


def _missing(cls: Any, value: Any) -> Any:
    return None if value is None else _asked(cls, value)


CaseInsensitiveEnum._missing_ = classmethod(_missing)

if __name__ == "__main__":
    run(sys.argv[1])
