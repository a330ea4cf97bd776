"""Hours of a device in seconds: the runtime's own policies and governor against a device model in virtual
time.

Nothing here waits or asks a clock: the same seed gives the same result. Frames are simulated one by one,
decisions fall every ``TICK_S``, the governor looks every ``LOOK_S``. The engine takes one call at a time and
the newest frame that waits; an older one that waits still is dropped, as the runtime's bounded queue does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from edgekiln.records import Record
from edgekiln.runtime import governor
from edgekiln.runtime.simulate.contenders import Choice, Policy
from edgekiln.runtime.simulate.device import Device, Profile
from edgekiln.runtime.simulate.traces import Moment, Trace
from edgekiln.runtime.vocabulary import Allowance, Call, Event, Goal, Health, Observation, Rung, Setting

TICK_S = 0.25
LOOK_S = 1.0
TIMELINE_S = 5.0
MOST_EVENTS = 2000


class Row(Record, frozen=True, kw_only=True):
    """The device at one moment; ``in_time`` counts frames since the row before."""

    at_s: float
    rung: str
    every: int
    temperature_c: float
    ambient_c: float
    watts: float
    clock_share: float
    busy_share: float
    allowed_share: float
    frames: int
    in_time: int


class Result(Record, frozen=True, kw_only=True):
    """What a simulation found; ``how`` is always ``simulated``, and ``assumptions`` names what it rests on.

    ``frames`` came: ``answered`` of them, ``in_time`` of those within the deadline; ``dropped`` waited too
    long and ``skipped`` were left out on purpose (every n-th). ``deadline_share`` is of the frames that were
    to be answered. ``mean_quality`` is of the answered frames; ``useful_quality`` counts in-time answers
    alone, per frame that came: the one figure that nothing can be traded against. ``max_temperature_c`` is
    the die's, ``throttled_s`` the time in which the kernel had lowered the clock.
    """

    how: Literal["simulated"]
    device: str
    policy: str
    trace: str
    seed: int
    seconds: float
    frames: int
    answered: int
    in_time: int
    dropped: int
    skipped: int
    deadline_share: float
    mean_quality: float
    useful_quality: float
    energy_j: float
    mean_watts: float
    max_temperature_c: float
    trip_c: float
    throttled_s: float
    changes: int
    governor_changes: int
    battery_share: float | None
    assumptions: tuple[str, ...]
    timeline: tuple[Row, ...]
    events: tuple[Event, ...]


def simulate(
    device: Profile,
    ladder: Sequence[Rung],
    goal: Goal,
    policy: Policy,
    trace: Trace,
    seconds: float,
    seed: int,
    mode: str | None = None,
) -> Result:
    """``seconds`` of virtual time. ``mode`` is a power mode of the device, by default its first.

    ``goal.fps`` (by default the profile's) times the trace's factor is the rate of frames. Raises BadInput
    for a mode or a ladder that can't be used.
    """
    run = _Run(device, ladder, goal, policy, trace, seed, mode or next(iter(device.modes)))
    ticks = round(seconds / TICK_S)
    for _ in range(ticks):
        run.tick()
    return run.result(ticks * TICK_S)


class _Run:
    """The state of one simulation; everything random was drawn from the seed before it starts."""

    def __init__(
        self,
        profile: Profile,
        ladder: Sequence[Rung],
        goal: Goal,
        policy: Policy,
        trace: Trace,
        seed: int,
        mode: str,
    ) -> None:
        self.profile, self.goal, self.policy, self.trace, self.seed = profile, goal, policy, trace, seed
        self.fps = goal.fps or profile.fps
        self.moment: Moment = trace.at(0.0)
        self.device = Device(profile, mode=mode, ambient_c=self.moment.ambient_c, step_s=TICK_S, seed=seed)
        self.ms = {rung.id: rung.expected_ms or 0.0 for rung in ladder}
        self.quality = {rung.id: rung.quality for rung in ladder}
        self.state: Any = policy.start(goal, ladder)
        self.governing, self.allowance = governor.start(), Allowance()
        self.health: Health | None = None
        self.now = self.next_frame = self.free = self.next_look = self.next_row = 0.0
        self.work = self.busy_since_look = 0.0
        self.waiting: list[float] = []
        self.calls: list[Call] = []
        self.probe: Setting | None = None
        self.count = 0
        self.frames = self.answered = self.in_time = self.dropped = self.skipped = 0
        self.quality_sum = self.useful_sum = self.hottest = self.throttled_s = 0.0
        self.changes = self.governor_changes = 0
        self.row_frames = self.row_in_time = 0
        self.timeline: list[Row] = []
        self.events: list[Event] = []
        self.setting = Setting(rung=next(iter(self.ms)))
        self._decide()

    def tick(self) -> None:
        """One ``TICK_S``: the frames in it, then heat, then what was learned from it."""
        self.moment = moment = self.trace.at(self.now)
        end = self.now + TICK_S
        self._frames(end)
        used = min(self.work, TICK_S)
        self.work -= used
        busy = used / TICK_S
        others = moment.load
        device = self.device
        device.advance(min(1.0, busy * (1.0 - others) + others), moment.ambient_c)
        self.busy_since_look += used
        self.now = end
        self.hottest = max(self.hottest, device.die_c)
        self.throttled_s += TICK_S if device.throttle else 0.0
        if end >= self.next_look:
            self._look()
        self._decide()
        if end >= self.next_row:
            self._row(busy)

    # ------------------------------------------------------------ frames

    def _frames(self, end: float) -> None:
        """The frames that come before ``end``, and the calls that start before it."""
        every = self.setting.every
        gather = max(self.setting.batch, self.setting.burst)
        apart = 1.0 / (self.fps * self.moment.fps)
        while self.next_frame < end:
            came = self.next_frame
            self.next_frame += apart
            self.frames += 1
            self.row_frames += 1
            self.count += 1
            if self.waiting and len(self.waiting) >= gather and self.free <= came:
                self._serve(self.free)
            if self.count % every:
                self.skipped += 1
                continue
            if len(self.waiting) >= gather:
                self.waiting.pop(0)
                self.dropped += 1
            self.waiting.append(came)
            if len(self.waiting) >= gather and self.free <= came:
                self._serve(came)
        if len(self.waiting) >= gather and self.free < end:
            self._serve(max(self.free, self.waiting[-1]))

    def _serve(self, start: float) -> None:
        """All that waits, on the rung in use: in one call, or one after another where they were gathered to
        idle."""
        setting, load = self.setting, self.moment.load
        batched = setting.batch > 1
        ms = self.ms[setting.rung]
        quality = self.quality[setting.rung]
        deadline = self.goal.deadline_ms
        if batched:
            took = self.device.latency_ms(ms * len(self.waiting), load)
            start += took / 1e3
            self.work += took / 1e3
            self.calls.append(Call(at_s=start, rung=setting.rung, batch=len(self.waiting), latency_ms=took))
        for came in self.waiting:
            if not batched:
                took = self.device.latency_ms(ms, load)
                start += took / 1e3
                self.work += took / 1e3
                self.calls.append(Call(at_s=start, rung=setting.rung, batch=1, latency_ms=took))
            self.answered += 1
            self.quality_sum += quality
            if (start - came) * 1e3 <= deadline:
                self.in_time += 1
                self.row_in_time += 1
                self.useful_sum += quality
        self.waiting.clear()
        if self.probe is not None and start < self.next_frame:
            took = self.device.latency_ms(self.ms[self.probe.rung] * self.probe.batch, load)
            start += took / 1e3
            self.work += took / 1e3
            self.calls.append(Call(at_s=start, rung=self.probe.rung, batch=self.probe.batch, latency_ms=took))
            self.probe = None
        self.free = start

    # ------------------------------------------------------------ looks and decisions

    def _look(self) -> None:
        """What the machine's sensors say, and what the governor makes of it."""
        device = self.device
        passed = self.now if self.health is None else self.now - self.health.at_s
        charge = device.charge
        self.health = Health(
            at_s=self.now,
            temperature_c=device.seen_c(),
            trip_c=device.trip_c,
            zone=self.profile.device,
            power_watts=device.watts if self.profile.power_sensor else None,
            battery_share=charge,
            on_battery=None if charge is None else True,
            clock_share=device.clock,
            others_cpus=self.moment.load,
            busy_share=min(1.0, self.busy_since_look / passed) if passed > 0 else None,
        )
        self.busy_since_look = 0.0
        self.next_look = self.now + LOOK_S - 1e-9
        if not self.policy.governed:
            return
        self.governing, self.allowance = governor.govern(self.governing, self.health, self.goal)
        for event in self.governing.events:
            self.governor_changes += 1
            self._tell(event)

    def _decide(self) -> None:
        seen = Observation(
            now_s=self.now,
            calls=tuple(self.calls),
            queued=len(self.waiting),
            interval_ms=1e3 / (self.fps * self.moment.fps),
            health=self.health,
            allowance=self.allowance,
        )
        self.calls.clear()
        self.state, choice = self.policy.decide(self.state, seen)
        self.probe = choice.probe
        if choice.setting != self.setting:
            self._changed(choice)

    def _changed(self, choice: Choice) -> None:
        if self.now > 0.0:
            self.changes += 1
            done = f"from {_shown(self.setting)} to {_shown(choice.setting)}"
            self._tell(Event(at_s=self.now, kind="change", what="setting", why=choice.why, done=done))
        self.setting = choice.setting

    def _tell(self, event: Event) -> None:
        if len(self.events) < MOST_EVENTS:
            self.events.append(event)

    def _row(self, busy: float) -> None:
        self.next_row = self.now + TIMELINE_S - 1e-9
        device = self.device
        self.timeline.append(
            Row(
                at_s=self.now,
                rung=self.setting.rung,
                every=self.setting.every,
                temperature_c=device.die_c,
                ambient_c=self.moment.ambient_c,
                watts=device.watts,
                clock_share=device.clock,
                busy_share=busy,
                allowed_share=self.allowance.busy_share,
                frames=self.row_frames,
                in_time=self.row_in_time,
            )
        )
        self.row_frames = self.row_in_time = 0

    def result(self, seconds: float) -> Result:
        device = self.device
        charge = device.charge
        wanted = self.answered + self.dropped
        return Result(
            how="simulated",
            device=self.profile.device,
            policy=self.policy.name,
            trace=self.trace.name,
            seed=self.seed,
            seconds=seconds,
            frames=self.frames,
            answered=self.answered,
            in_time=self.in_time,
            dropped=self.dropped,
            skipped=self.skipped,
            deadline_share=self.in_time / max(1, wanted),
            mean_quality=self.quality_sum / max(1, self.answered),
            useful_quality=self.useful_sum / max(1, self.frames),
            energy_j=device.joules,
            mean_watts=device.joules / seconds if seconds else 0.0,
            max_temperature_c=self.hottest,
            trip_c=device.trip_c,
            throttled_s=self.throttled_s,
            changes=self.changes,
            governor_changes=self.governor_changes,
            battery_share=charge,
            assumptions=self.profile.assumptions,
            timeline=tuple(self.timeline),
            events=tuple(self.events),
        )


def _shown(setting: Setting) -> str:
    extras = [f"every {setting.every}"] if setting.every > 1 else []
    extras += [f"batch {setting.batch}"] if setting.batch > 1 else []
    extras += [f"burst {setting.burst}"] if setting.burst > 1 else []
    return " ".join([setting.rung, *extras])
