"""A decaying average: recent observations count more. It reads no clock; the caller brings the time."""

from __future__ import annotations

from math import exp


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
