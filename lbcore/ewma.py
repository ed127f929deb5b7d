"""A decaying average: recent observations count more. It reads no clock; the caller brings the time."""

from __future__ import annotations

from math import exp, expm1


class DecayingAverage:
    """The weighted mean of what was observed, where a weight falls to 1/e of itself in `tau_s` seconds.

    A prior takes part with a weight that never fades, so the average is defined before the first observation and
    returns to the prior when nothing is observed for long: an old belief is given up, not kept for ever.
    """

    __slots__ = ("_at", "_prior", "_prior_weight", "_sum", "_tau_s", "_weight")

    def __init__(self, *, prior: float, prior_weight: float, tau_s: float) -> None:
        """`prior_weight` and `tau_s` must be positive."""
        self._prior = prior
        self._prior_weight = prior_weight
        self._tau_s = tau_s
        self._sum = 0.0
        self._weight = 0.0
        self._at = 0.0

    def observe(self, value: float, now: float, weight: float = 1.0) -> None:
        """Take in `value` at `now`; `weight` is how much it counts beside others."""
        if now > self._at:
            fade = exp((self._at - now) / self._tau_s)
            self._sum *= fade
            self._weight *= fade
            self._at = now
        self._sum += value * weight
        self._weight += weight

    def read(self, now: float) -> float:
        """The average at `now`, without changing it; a time before the last observation reads as that moment."""
        fade = exp((self._at - now) / self._tau_s) if now > self._at else 1.0
        return (self._sum * fade + self._prior * self._prior_weight) / (self._weight * fade + self._prior_weight)


class DecayingRate:
    """Events per second, where those of `tau_s` seconds ago count 1/e."""

    __slots__ = ("_at", "_begin", "_events", "_tau_s")

    def __init__(self, *, tau_s: float) -> None:
        """`tau_s` must be positive."""
        self._tau_s = tau_s
        self._events = 0.0
        self._at = 0.0
        self._begin: float | None = None

    def count(self, now: float) -> None:
        """One event at `now`."""
        if self._begin is None:
            self._begin = now
        self._events = self._events * self._fade(now) + 1.0
        self._at = max(self._at, now)

    def read(self, now: float) -> float:
        """The rate at `now`; 0 before the first event. A short history is read as what it is, not as a long one that
        began with silence."""
        if self._begin is None:
            return 0.0
        # The weight of all the time that was looked at; a second at least, lest the first event be a rate without end.
        watched_s = self._tau_s * -expm1(-max(1.0, now - self._begin) / self._tau_s)
        return self._events * self._fade(now) / watched_s

    def _fade(self, now: float) -> float:
        return exp((self._at - now) / self._tau_s) if now > self._at else 1.0
