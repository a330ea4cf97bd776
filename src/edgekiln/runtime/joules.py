"""Energy of a session that goes on: power integrated as it is read, in constant memory."""

from __future__ import annotations

import math

from edgekiln.sensors.energy import LEAST_SAMPLES, Energy

LONGEST_GAP_S = 5.0
"""Two readings of power further apart say nothing of what happened between them."""


class Joules:
    """Trapezoids between readings of power, and the inferences that were done meanwhile.

    What happened where power was unknown is left out of both, so that their ratio stays a measurement.
    """

    def __init__(self, idle_watts: float | None) -> None:
        self._idle = idle_watts
        self._last: tuple[float, float, int] | None = None
        self.joules = self.seconds = 0.0
        self._inferences = self._samples = 0

    def read(self, at_s: float, watts: float | None, done: int) -> None:
        """``watts`` at ``at_s``, when ``done`` inferences had ended; None where it is unknown."""
        if watts is None or not math.isfinite(watts) or watts < 0:
            self._last = None
            return
        if self._last is not None:
            before_s, before, earlier = self._last
            gap = at_s - before_s
            if gap <= 0:  # the same reading again, or a clock set back
                return
            if gap <= LONGEST_GAP_S:
                self.joules += (before + watts) / 2 * gap
                self.seconds += gap
                self._inferences += done - earlier
                self._samples += 1
        self._last = (at_s, watts, done)

    def energy(self) -> Energy:
        """Per inference and above idle, or the reason why there is no such figure."""
        n, samples = self._inferences, self._samples + (self._samples > 0)
        if self._samples < LEAST_SAMPLES:
            why = "no power was read" if self._last is None and not samples else "power was read too rarely"
            return Energy(inferences=n, samples=samples, reason=why)
        watts = self.joules / self.seconds
        if n < 1:
            why = "nothing was answered while power was read"
            return Energy(inferences=n, watts=watts, samples=samples, reason=why)
        if self._idle is None:
            why = "the idle power was not measured, so that nothing can be taken off"
            return Energy(inferences=n, watts=watts, samples=samples, reason=why)
        above = self.joules - self._idle * self.seconds
        if above < -1e-9 * self.joules:
            why = f"the session took {watts:.3g} W, less than idle ({self._idle:.3g} W)"
            return Energy(inferences=n, watts=watts, idle_watts=self._idle, samples=samples, reason=why)
        mj = max(0.0, above) * 1e3 / n
        return Energy(inferences=n, mj=mj, watts=watts, idle_watts=self._idle, samples=samples)
