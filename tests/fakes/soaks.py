"""Whole records of soaks: a board that gets hot and throttles, and a machine that shows nothing of itself."""

from __future__ import annotations

import math

import numpy as np
from msgspec.structs import replace

from edgekiln.prove import soak_analysis as analysis
from edgekiln.prove.metering import Idle
from edgekiln.prove.soak_analysis import Blocks, Cause
from edgekiln.prove.soak_record import Bin, Course, Slowdown, Soak
from edgekiln.prove.statistics import percentiles
from edgekiln.sensors.energy import Energy
from edgekiln.sensors.recorder import Event
from edgekiln.sensors.sysfs import Trip


def hot_board(seconds: float = 1800.0, name: str = "a: efficientnet_lite0.edgekiln") -> Soak:
    """Half an hour on a board whose clock falls in the twelfth minute, with the heat and the power to it."""
    count, random = 90, np.random.default_rng(0)
    width, at = seconds / count, 0.4 * seconds
    blocks = _blocks(seconds, at, random)
    changes = analysis.changes(blocks)
    first, last = analysis.burst(blocks, changes), analysis.sustained(blocks)
    kept = analysis.kept_share(blocks, first, last)
    assert kept is not None
    starts = [k * width for k in range(count)]
    heat = [96 - 48 * math.exp(-s / (0.16 * seconds)) + random.normal(0, 0.3) for s in starts]
    clock = [1728.0 if s < at else 1190 + random.normal(0, 25) for s in starts]
    watts = [8.4 + random.normal(0, 0.08) if s < at else 6.6 + random.normal(0, 0.1) for s in starts]
    watts_gap = [None if 40 <= k < 44 else w for k, w in enumerate(watts)]
    bins = tuple(_bin(s, width, at, random) for s in starts)
    causes = (
        Cause(kind="clock", what="the clock of the CPU fell from 1728 to 1190 MHz"),
        Cause(
            kind="temperature",
            what="thermal zone tj-thermal reached 95.4 °C; its passive trip point is 95.0 °C",
        ),
    )
    return Soak(
        id=name,
        engine="onnxruntime",
        engine_version="1.32.0",
        threads=4,
        when="2026-11-26 22:00 UTC",
        asked_s=seconds,
        lasted_s=seconds,
        ended="whole",
        why="",
        n=sum(blocks.calls),
        percentiles=percentiles([float(v) for v in blocks.mean_ms]),
        bins=bins,
        burst=first,
        sustained=last,
        kept=kept[0],
        kept_interval=kept[1],
        changes=changes,
        slowdowns=tuple(Slowdown(change=c, causes=causes) for c in changes if c.ratio > 1),
        clock_mhz=tuple(clock),
        clock_of="the CPU",
        hottest_c=tuple(heat),
        hottest_of="tj-thermal",
        watts=tuple(watts_gap),
        watts_of="ina3221 VDD_IN: the module's input",
        trips=(Trip(zone="tj-thermal", kind="passive", celsius=95.0, now_celsius=48.0),),
        courses=(
            Course(sensor="tj-thermal", quantity="temperature_c", means=tuple(heat)),
            Course(sensor="ina3221 VDD_IN", quantity="power_watts", means=tuple(watts_gap)),
        ),
        courses_left_out=0,
        events=(
            Event(time_s=802.0, kind="lost", what="ina3221 VDD_IN (power_watts): it is no longer there"),
            Event(time_s=881.0, kind="returned", what="ina3221 VDD_IN (power_watts)"),
        ),
        idle=Idle(watts=4.1, seconds=10.0),
        energy=Energy(inferences=sum(blocks.calls), mj=62.6, watts=7.3, idle_watts=4.1, samples=1800),
        peak_rss_bytes=143_000_000,
        warmup_calls=41,
        warmup_stable=True,
        cores=(),
        unfit=(
            "the power mode is 1 (25W), which caps clocks; run: sudo nvpmodel -m 2 && sudo jetson_clocks",
        ),
        environment={"cpu_model": "ARMv8", "cpus_usable": 6, "os": "Ubuntu 22.04", "onnxruntime": "1.32.0"},
    )


def blind_machine() -> Soak:
    """Twenty seconds, cut short after twelve, on a machine without a sensor."""
    hot = hot_board(20.0)
    why = "this machine has no sensor of power that can be read"
    return replace(
        hot,
        asked_s=60.0,
        lasted_s=12.0,
        ended="interrupted",
        why="cut short after 12 of 60 s",
        bins=tuple(replace(b, p95_ms=None) for b in hot.bins[:3]),
        burst=analysis.Rate(per_second=None, reason="7 blocks of calls are too few for a rate"),
        sustained=analysis.Rate(per_second=None, reason="7 blocks of calls are too few for a rate"),
        kept=None,
        kept_interval=None,
        changes=(),
        slowdowns=(),
        clock_mhz=(),
        clock_of="",
        hottest_c=(),
        hottest_of="",
        watts=(),
        watts_of="",
        trips=(),
        courses=(),
        events=(),
        idle=Idle(watts=None, reason=why),
        energy=Energy(inferences=9, reason=why),
        peak_rss_bytes=None,
        unfit=(),
    )


def _blocks(seconds: float, at: float, random: np.random.Generator) -> Blocks:
    step = seconds / 600
    middles = [(k + 0.5) * step for k in range(600)]
    means = [_level(m, at, seconds) * math.exp(random.normal(0, 0.012)) for m in middles]
    calls = [max(1, int(step * 1e3 / m)) for m in means]
    took = [c * m / 1e3 for c, m in zip(calls, means, strict=True)]
    return Blocks(middle_s=tuple(middles), calls=tuple(calls), seconds=tuple(took))


def _level(time_s: float, at: float, seconds: float) -> float:
    return 11.2 if time_s < at else 16.1 + 0.4 * math.sin(40 * time_s / seconds)


def _bin(start: float, width: float, at: float, random: np.random.Generator) -> Bin:
    p50 = _level(start + width / 2, at, 90 * width) * math.exp(random.normal(0, 0.008))
    p95 = p50 * (1.08 + abs(random.normal(0, 0.03)))
    return Bin(start_s=start, seconds=width, n=1500, p50_ms=p50, p95_ms=p95)
