"""What the gateway knows of the workers: the scheduler's routing table, kept up to date by its changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Set
from random import Random

import structlog

from lbcore.errors import LoadBalancerError
from lbcore.types import EndpointState, Epoch, WorkerId, WorkerStatus
from lbcore.wire.routing_client import RoutingClient, TableStep

log = structlog.get_logger()

_RETRY_S = (0.1, 0.2, 0.5, 1.0)

MISSING_S = 10.0
"""How long a worker stays listed of which a scheduler that has just begun knows nothing. Workers call again within a
second or two; until all have, its first table is shorter than the fleet."""


class Fleet:
    """The last known routing table. It outlives the scheduler: workers stay listed while nobody says otherwise."""

    def __init__(self, on_change: Callable[[Mapping[str, Epoch]], None]) -> None:
        self._workers: dict[WorkerId, WorkerStatus] = {}
        self._names: set[str] = set()
        self._missing: set[WorkerId] = set()
        self._giving_up: asyncio.TimerHandle | None = None
        self._on_change = on_change
        self.connected = False
        """Whether the scheduler's table is being followed right now."""

    def take(self, step: TableStep) -> None:
        """Follows one step of the table."""
        if step.snapshot:
            self._missing = {*self._workers}
        for worker_id in step.removed:
            self._workers.pop(worker_id, None)
            self._missing.discard(worker_id)
        for status in step.workers:
            self._workers[status.spec.worker_id] = status
            self._missing.discard(status.spec.worker_id)
        self._changed()

    def workers(self) -> Iterable[WorkerStatus]:
        """All that are listed."""
        return self._workers.values()

    @property
    def missing(self) -> Set[WorkerId]:
        """Those that were listed by an earlier scheduler, and that this one does not know yet."""
        return self._missing

    def give_up_missing(self) -> None:
        """They are not there, or would have called by now."""
        self._giving_up = None
        for worker_id in self._missing:
            del self._workers[worker_id]
        self._missing = set()
        self._changed()

    def _changed(self) -> None:
        self._names = {name for status in self._workers.values() for name in status.spec.model_names}
        self._on_change({status.spec.address: status.spec.epoch for status in self._workers.values()})

    @property
    def ready(self) -> bool:
        """Whether any worker can serve."""
        return any(status.state is EndpointState.READY for status in self._workers.values())

    def models(self) -> dict[str, int]:
        """Every name that can be asked for, adapters too, with when it was loaded first, in seconds since 1970."""
        created: dict[str, int] = {}
        for status in self._workers.values():
            for model in status.spec.models:
                for name in (model.name, *model.adapters):
                    created[name] = min(model.created_unix_s, created.get(name, model.created_unix_s))
        return created

    def serves(self, name: str) -> bool:
        """Whether any worker serves a model of this name."""
        return name in self._names

    def _give_up_missing_later(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
        self._giving_up = asyncio.get_running_loop().call_later(MISSING_S, self.give_up_missing)

    async def follow(self, routing: RoutingClient, rng: Random) -> None:
        """Watches the scheduler's table for ever, and again whenever the watch breaks."""
        failures = 0
        while True:
            try:
                async for step in routing.watch():
                    if not self.connected:
                        log.info("scheduler_connected", workers=len(step.workers))
                        self.connected = True
                        failures = 0
                    self.take(step)
                    if step.snapshot and self._missing:
                        self._give_up_missing_later()
                reason = "closed"
            except LoadBalancerError as error:
                reason = error.message
            if self.connected or failures == 0:
                log.warning("scheduler_lost", reason=reason)
            self.connected = False
            pause_s = _RETRY_S[min(failures, len(_RETRY_S) - 1)]
            failures += 1
            await asyncio.sleep(pause_s * rng.uniform(0.5, 1.0))
