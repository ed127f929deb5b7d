"""Where requests go while the scheduler cannot say: by the last routing table and what this process itself has seen.

Two ready workers are drawn, and the one with fewer requests of this process under way gets the next (power of two
choices). A worker that could not be reached is left out for a while, longer each time, as long as there are others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from random import Random

from lbcore.types import EndpointState, Target, WorkerId, WorkerStatus

ASIDE_S = 1.0
"""How long a worker that could not be reached is left out the first time; twice as long each time again."""

MAX_ASIDE_S = 30.0


class Standby:
    """Keeps count always, and is asked only when there is nobody else to ask."""

    def __init__(
        self,
        workers: Callable[[], Iterable[WorkerStatus]],
        missing: Callable[[], Collection[WorkerId]],
        rng: Random,
    ) -> None:
        """`workers` are those of the last routing table, `missing` those of them of which the scheduler, which has just
        begun, has not heard yet."""
        self._workers = workers
        self._missing = missing
        self._rng = rng
        self._under_way: Counter[WorkerId] = Counter()
        # Until when each is left out, and for how long the next time.
        self._aside: dict[WorkerId, tuple[float, float]] = {}

    def began(self, worker_id: WorkerId) -> None:
        """A request of this process went there."""
        self._under_way[worker_id] += 1

    def ended(self, worker_id: WorkerId) -> None:
        """It is over."""
        left = self._under_way[worker_id] - 1
        if left > 0:
            self._under_way[worker_id] = left
        else:
            del self._under_way[worker_id]

    def answered(self, worker_id: WorkerId) -> None:
        """The worker has answered a request."""
        if self._aside:
            self._aside.pop(worker_id, None)

    def lost(self, worker_id: WorkerId, now: float) -> None:
        """The worker could not be reached."""
        _, seconds = self._aside.get(worker_id, (0.0, ASIDE_S))
        self._aside[worker_id] = now + seconds, min(MAX_ASIDE_S, 2 * seconds)

    def pick(self, model: str, tried: Collection[WorkerId], now: float, *, only_missing: bool) -> Target | None:
        """Where a request for a model goes; None when nobody is there who was not tried."""
        missing = self._missing() if only_missing else ()
        found = [
            one
            for one in self._workers()
            if one.state is EndpointState.READY
            and one.spec.worker_id not in tried
            and model in one.spec.model_names
            and (not only_missing or one.spec.worker_id in missing)
        ]
        if self._aside:
            nearby = [one for one in found if self._aside.get(one.spec.worker_id, (0.0, 0.0))[0] <= now]
            found = nearby or found
        if not found:
            return None
        drawn = self._rng.sample(found, min(2, len(found)))
        return min(drawn, key=self._load).spec.target

    def _load(self, status: WorkerStatus) -> float:
        return self._under_way[status.spec.worker_id] / max(1, status.spec.capacity.max_sequences)
