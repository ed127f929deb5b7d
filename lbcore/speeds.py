"""How fast workers compute prompts, by what they measured themselves; and what is believed of those that have not, or
not lately.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp, inf
from statistics import median

from lbcore.types import WorkerId

SLOWEST_TOKENS_PER_S, FASTEST_TOKENS_PER_S = 0.1, 1e9
"""Slower is no measurement, and would make costs without bound; faster is as good as this, and would make none."""

IDLE_S = 30.0
"""How long a worker to which nothing is given is taken by its own word."""

FADE_S = 30.0
"""From then on its word loses two thirds of its weight in this time. A worker that is slower than it was measured is
measured again with its next prompt; one that is not would never be given a prompt, and never measure better."""

TYPICAL_S = 1.0
"""How long the speed in the middle is not worked out anew."""


class Speeds:
    """Milliseconds per prompt token, by worker."""

    def __init__(self) -> None:
        self._measured: dict[WorkerId, float] = {}
        # By model: when it was worked out, and the one in the middle.
        self._typical: dict[str, tuple[float, float]] = {}

    def measured(self, worker_id: WorkerId, tokens_per_s: float) -> None:
        """What a worker says of itself; what is no speed changes nothing."""
        if SLOWEST_TOKENS_PER_S < tokens_per_s < inf:
            self._measured[worker_id] = 1000.0 / min(tokens_per_s, FASTEST_TOKENS_PER_S)

    def forget(self, worker_id: WorkerId) -> None:
        """The worker is gone."""
        self._measured.pop(worker_id, None)

    def forget_model(self, model: str) -> None:
        """Nobody serves it any more."""
        self._typical.pop(model, None)

    def of(self, worker_id: WorkerId) -> float | None:
        """What it measured; None when it has not."""
        return self._measured.get(worker_id)

    def middle(self, peers: Iterable[WorkerId]) -> float | None:
        """The median of what these have measured; None when none has."""
        known = [speed for peer in set(peers) if (speed := self._measured.get(peer)) is not None]
        return median(known) if known else None

    def rested(self, worker_id: WorkerId, idle_s: float, model: str, peers: Sequence[WorkerId], now: float) -> float:
        """What is believed of a worker that has measured, and was given nothing for so long. Who is known to be fast
        stays so; who is slower than those in the middle comes to be taken for one of them."""
        own = self._measured[worker_id]
        at, middle = self._typical.get(model, (-TYPICAL_S, 0.0))
        if now - at >= TYPICAL_S:
            middle = self.middle(peers) or own
            self._typical[model] = now, middle
        if own <= middle:
            return own
        return middle + (own - middle) * exp((IDLE_S - idle_s) / FADE_S)
