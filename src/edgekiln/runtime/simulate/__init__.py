"""The runtime's policies and governor against a device model, in virtual time and reproducibly."""

from edgekiln.runtime.simulate.contenders import ALL, BEST, LOWEST, MIDDLE, OURS, UNGOVERNED, Policy, Reactive
from edgekiln.runtime.simulate.device import Profile, profile, profiles
from edgekiln.runtime.simulate.run import Result, Row, simulate
from edgekiln.runtime.simulate.traces import Moment, Trace, crowded, steady, warm_day

__all__ = [
    "ALL",
    "BEST",
    "LOWEST",
    "MIDDLE",
    "OURS",
    "UNGOVERNED",
    "Moment",
    "Policy",
    "Profile",
    "Reactive",
    "Result",
    "Row",
    "Trace",
    "crowded",
    "profile",
    "profiles",
    "simulate",
    "steady",
    "warm_day",
]
