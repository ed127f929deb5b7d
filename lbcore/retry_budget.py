"""How many second tries there may be: a share of the requests, lest a fleet in trouble be asked thrice for all."""

from __future__ import annotations

SHARE = 0.2
"""Second tries for each request, in the long run."""

RESERVE = 20.0
"""Second tries that may be saved up: what a quiet minute leaves for a bad second."""


class RetryBudget:
    """Each request earns a share of a second try, each second try costs a whole one."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = RESERVE

    def earn(self) -> None:
        """A request came."""
        if self._left < RESERVE:
            self._left += SHARE

    def spend(self) -> bool:
        """Whether there may be a second try; it is counted if so."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
