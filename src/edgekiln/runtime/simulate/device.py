"""A device in virtual time: heat in a die and its case, a kernel that throttles, power, a battery, latencies.

Heat is a Cauer network of two nodes, stepped exactly for constant input (matrix exponential). The kernel's
governor is Linux's step-wise one: at or above the trip point a rising temperature costs a step of the clock,
below it a falling one gives a step back.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from edgekiln.devices import load
from edgekiln.errors import BadInput, did_you_mean
from edgekiln.records import Record
from edgekiln.runtime.vocabulary import Rung

PROFILES = Path(__file__).with_name("profiles.toml")
TAIL_EVERY, TAIL_TIMES = 500, 2.0
"""One call of so many takes up to so many times as long: a page fault, a collection, an interrupt."""


class Figure(Record, frozen=True, kw_only=True):
    """One figure of a profile. ``assumed`` is what no document states; ``source`` says what it rests on."""

    value: float
    unit: str
    how: Literal["published", "derived", "measured", "assumed"]
    source: str


class PowerMode(Record, frozen=True, kw_only=True):
    """A cap on the machine's power, which the clock is lowered to keep."""

    watts: float
    source: str


class Step(Record, frozen=True, kw_only=True):
    """A rung of the profile's own ladder: ``ms`` a frame at full clock, ``quality`` in its own unit."""

    id: str
    ms: float
    quality: float
    how: Literal["published", "derived", "measured", "assumed"]
    source: str


class Profile(Record, frozen=True, kw_only=True):
    """A device as the simulator knows it. ``fps`` and ``deadline_ms`` are of the load that its ladder is
    meant for."""

    title: str
    device: str
    trip: str
    power_sensor: bool
    fps: float
    deadline_ms: float
    figures: dict[str, Figure]
    modes: dict[str, PowerMode]
    ladder: tuple[Step, ...]

    def value(self, name: str) -> float:
        return self.figures[name].value

    @property
    def trip_c(self) -> float:
        """The catalogue's trip point."""
        found = load(self.device).figures[self.trip].value
        assert isinstance(found, int | float), f"{self.device} states no {self.trip}"
        return float(found)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What no document states, by name."""
        figures = [name for name, figure in self.figures.items() if figure.how == "assumed"]
        return (*figures, *(f"rung {s.id}" for s in self.ladder if s.how == "assumed"))

    def rungs(self) -> tuple[Rung, ...]:
        """The ladder, best first, with quality as a share of the best."""
        best = max(step.quality for step in self.ladder)
        return tuple(
            Rung(
                id=step.id,
                artifact_id=step.id,
                quality=step.quality / best,
                quality_of=step.how,
                expected_ms=step.ms,
            )
            for step in self.ladder
        )


class _File(Record, frozen=True, kw_only=True):
    schema: Literal[1]
    sources: dict[str, str]
    profiles: dict[str, Profile]


@functools.cache
def profiles(path: Path = PROFILES) -> dict[str, Profile]:
    """All profiles by name, with the documents written out in their sources.

    Raises BadInput for a file that can't be read, a key nobody knows or a source that isn't named.
    """
    import tomllib

    try:
        held = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _File)
        return {name: _cited(profile, held.sources) for name, profile in held.profiles.items()}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError, KeyError) as error:
        cure = "Correct the file; its head says what each figure needs"
        raise BadInput("reading device profiles", path, str(error), cure) from error


def profile(name: str) -> Profile:
    """Raises BadInput for a name that no profile bears."""
    found = profiles().get(name)
    if found is None:
        raise BadInput("simulating", name, "no such device profile", did_you_mean(name, profiles()))
    return found


def _cited(held: Profile, sources: dict[str, str]) -> Profile:
    def cited(text: str) -> str:
        return text.format_map(sources)

    change = msgspec.structs.replace
    return change(
        held,
        figures={name: change(f, source=cited(f.source)) for name, f in held.figures.items()},
        ladder=tuple(change(step, source=cited(step.source)) for step in held.ladder),
    )


class Device:
    """One device from cold. ``advance`` moves its time; temperatures in °C, energy in joules.

    ``clock`` is the share of the full clock, by the mode's cap and the throttle. ``seed`` fixes all noise.
    """

    def __init__(self, held: Profile, *, mode: str, ambient_c: float, step_s: float, seed: int) -> None:
        if mode not in held.modes:
            raise BadInput(
                "simulating", mode, f"{held.title} has no such mode", did_you_mean(mode, held.modes)
            )
        value = held.value
        self.idle, self.active, self.exponent = (
            value("idle_watts"),
            value("active_watts"),
            value("clock_exponent"),
        )
        self.trip_c, self.step_s = held.trip_c, step_s
        self._hysteresis, self._steps = value("throttle_hysteresis_c"), int(value("throttle_steps"))
        self._least, self._poll_s = value("least_clock_share"), value("throttle_poll_s")
        self._grain, self._noise = value("temperature_grain_c"), value("temperature_noise_c")
        self._cap = _capped(held.modes[mode].watts, self.idle, self.active, self.exponent, self._least)
        self.battery_j = value("battery_wh") * 3600.0 if "battery_wh" in held.figures else None
        self.capacity_j = self.battery_j
        self._flow = _flow(held, step_s)
        warm = ambient_c + self.idle * value("case_k_per_w")
        self.die_c, self.case_c = warm + self.idle * value("die_k_per_w"), warm
        self.watts, self.joules, self.throttle = self.idle, 0.0, 0
        self._tripped, self._since_poll, self._before = False, 0.0, self.die_c
        self.clock = self._cap
        random = np.random.default_rng(seed)
        jitter = np.exp(random.normal(0.0, value("jitter"), 8191))
        jitter[::TAIL_EVERY] *= random.uniform(1.2, TAIL_TIMES, len(jitter[::TAIL_EVERY]))
        random.shuffle(jitter)
        self._jitter: list[float] = jitter.tolist()
        self._seen: list[float] = random.normal(0.0, self._noise, 4093).tolist()
        self._calls = self._looks = 0

    @property
    def charge(self) -> float | None:
        """The battery's share that is left; None without one."""
        if self.battery_j is None or not self.capacity_j:
            return None
        return self.battery_j / self.capacity_j

    def latency_ms(self, full_clock_ms: float, load: float = 0.0) -> float:
        """One call now: ``load`` is the share of the compute that others take."""
        self._calls += 1
        return full_clock_ms * self._jitter[self._calls % 8191] / (self.clock * (1.0 - load))

    def seen_c(self) -> float:
        """The die's temperature as its sensor gives it."""
        self._looks += 1
        grain = self._grain
        return round((self.die_c + self._seen[self._looks % 4093]) / grain) * grain

    def advance(self, busy: float, ambient_c: float) -> None:
        """One step of ``step_s`` with the compute ``busy`` for that share of it."""
        self.watts = self.idle + busy * self.active * self.clock**self.exponent
        (dd, dc, dp, da), (cd, cc, cp, ca) = self._flow
        die, case = self.die_c, self.case_c
        self.die_c = dd * die + dc * case + dp * self.watts + da * ambient_c
        self.case_c = cd * die + cc * case + cp * self.watts + ca * ambient_c
        spent = self.watts * self.step_s
        self.joules += spent
        if self.battery_j is not None:
            self.battery_j = max(0.0, self.battery_j - spent)
        self._since_poll += self.step_s
        if self._since_poll >= self._poll_s - 1e-9:
            self._since_poll = 0.0
            self._throttled()

    def _throttled(self) -> None:
        """Linux's step-wise rule, with the trip point's hysteresis."""
        rising = self.die_c - self._before
        self._before = self.die_c
        self._tripped = self.die_c >= self.trip_c - (self._hysteresis if self._tripped else 0.0)
        if self._tripped and rising > 0.0 and self.die_c >= self.trip_c:
            self.throttle = min(self._steps, self.throttle + 1)
        elif not self._tripped and rising < 0.0:
            self.throttle = max(0, self.throttle - 1)
        share = 1.0 - (1.0 - self._least) * self.throttle / self._steps
        self.clock = min(self._cap, share)


def _capped(cap: float, idle: float, active: float, exponent: float, least: float) -> float:
    """The clock's share at which full load takes no more than ``cap`` watts."""
    room = max(cap - idle, 1e-6) / active
    return float(min(1.0, max(least, room ** (1.0 / exponent))))


def _flow(held: Profile, step_s: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """How die and case after a step follow from die, case, watts and the air before it."""
    r_die, c_die = held.value("die_k_per_w"), held.value("die_j_per_k")
    r_case, c_case = held.value("case_k_per_w"), held.value("case_j_per_k")
    a = np.array(
        [
            [-1.0 / (r_die * c_die), 1.0 / (r_die * c_die)],
            [1.0 / (r_die * c_case), -(1.0 / r_die + 1.0 / r_case) / c_case],
        ]
    )
    b = np.array([[1.0 / c_die, 0.0], [0.0, 1.0 / (r_case * c_case)]])
    values, vectors = np.linalg.eig(a)
    moved = (vectors * np.exp(values * step_s)) @ np.linalg.inv(vectors)
    driven = np.linalg.solve(a, (moved - np.eye(2)) @ b)
    rows = np.hstack([moved, driven]).real.tolist()
    assert all(math.isfinite(v) for row in rows for v in row)
    return tuple(rows[0]), tuple(rows[1])
