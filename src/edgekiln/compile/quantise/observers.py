"""The observers of activation ranges, as the other rooms use them.

``observe`` makes one pass over the data with memory bounded by the graph (``watch``), each tensor leaves an
``Observation`` of fixed size (``histogram``), and the range rules all read the same one (``range_rules``).
"""

from __future__ import annotations

from edgekiln.compile.quantise.histogram import BINS, POINTS, Channels, Observation
from edgekiln.compile.quantise.observation_file import load, save
from edgekiln.compile.quantise.range_rules import (
    RULES,
    Ranges,
    entropy_range,
    minmax_range,
    mse_range,
    percentile_range,
    range_of,
    ranges,
)
from edgekiln.compile.quantise.watch import observe

__all__ = [
    "BINS",
    "POINTS",
    "RULES",
    "Channels",
    "Observation",
    "Ranges",
    "entropy_range",
    "load",
    "minmax_range",
    "mse_range",
    "observe",
    "percentile_range",
    "range_of",
    "ranges",
    "save",
]
