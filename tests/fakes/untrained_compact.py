"""The compact system of ARR-COC with its first weights: whole in form, of no use in its answers."""

from __future__ import annotations

from pathlib import Path

import torch

from edgekiln.arrcoc import checkpoint
from edgekiln.arrcoc.reader import Reader
from edgekiln.arrcoc.scorers import Scorer
from edgekiln.arrcoc.words import LENGTH, TOKENS, VOCABULARY


def untrained(path: Path) -> Path:
    """A checkpoint of first weights."""
    torch.manual_seed(7)
    about = checkpoint.About(
        version=checkpoint.VERSION,
        seed=7,
        command="no training",
        made="2026-01-01",
        torch=str(torch.__version__),
        scenes=0,
        seconds=0.0,
        words=" ".join(VOCABULARY),
    )
    checkpoint.save(path, Scorer(TOKENS, LENGTH), Reader(TOKENS, LENGTH), about)
    return path
