"""RoutingService: questions to picks. No await stands between a look at the pool and the booking of its pick."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from functools import lru_cache
from typing import Any

import grpc

from lbcore import types
from lbcore.api.v1 import routing_pb2, routing_pb2_grpc
from lbcore.errors import LoadBalancerError
from lbcore.pool_events import CreditReleased, Released
from lbcore.scheduler.state import SchedulerState
from lbcore.types import Target, Ticket
from lbcore.wire.convert import facts_from_proto, route_to_proto, worker_status_to_proto
from lbcore.wire.mux import serve_mux
from lbcore.wire.outbox import Outbox
from lbcore.wire.server import Registration, service
from lbcore.wire.status import abort, failure_from_error

_MAX_ANSWERS = 4096
"""Answers that are never parted: at some 300 bytes each about a megabyte, far below the bound of a message."""


class RoutingServicer(routing_pb2_grpc.RoutingServiceServicer):
    """The gRPC face of `SchedulerState.route`."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state

    def registration(self) -> Registration:
        """What a server needs to serve this."""
        return service(routing_pb2, "RoutingService", self)

    async def Route(  # noqa: N802
        self, message: routing_pb2.RouteRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> routing_pb2.RouteResponse:
        try:
            return route_to_proto(self._decide(message))
        except LoadBalancerError as error:
            await abort(context, error)

    async def RouteStream(  # noqa: N802
        self,
        request_iterator: AsyncIterator[routing_pb2.RouteStreamRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        outbox: Outbox[routing_pb2.RouteStreamResponse] = Outbox()

        def deliver(message: routing_pb2.RouteStreamRequest) -> None:
            if message.abandoned_tickets:
                self._release(message.abandoned_tickets)
            calls = message.calls
            for start in range(0, len(calls), _MAX_ANSWERS):
                answers = self._answers(calls[start : start + _MAX_ANSWERS])
                outbox.put(answers, answers.ByteSize())

        await serve_mux(context, deliver, outbox, _batch)

    async def Release(  # noqa: N802
        self, message: routing_pb2.ReleaseRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> routing_pb2.ReleaseResponse:
        return routing_pb2.ReleaseResponse(released_count=self._release(message.tickets))

    async def WatchWorkers(  # noqa: N802
        self, message: routing_pb2.WatchWorkersRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[routing_pb2.WatchWorkersResponse]:
        async for step in self._state.table.watch():
            yield routing_pb2.WatchWorkersResponse(
                snapshot=step.snapshot,
                workers=[worker_status_to_proto(status) for status in step.workers],
                removed_worker_ids=step.removed,
            )

    def _answers(self, calls: Iterable[routing_pb2.RouteCall]) -> routing_pb2.RouteStreamResponse:
        answers = routing_pb2.RouteStreamResponse()
        for call in calls:
            # Filled in where it stands: a message that is made elsewhere is copied into the one that holds it.
            result = answers.results.add()
            result.call_id = call.call_id
            try:
                route = self._decide(call.request)
            except LoadBalancerError as error:
                result.failure.CopyFrom(failure_from_error(error))
                continue
            response = result.response
            response.worker.CopyFrom(_target(route.target))
            response.ticket = route.ticket
            for fallback in route.fallbacks:
                response.fallbacks.append(_target(fallback))
            response.predicted_ttft_ms = route.predicted_ttft_ms
        return answers

    def _decide(self, message: routing_pb2.RouteRequest) -> types.Route:
        # Before the decision: the failed attempt's work is not on its worker any more.
        if message.abandoned_tickets:
            self._release(message.abandoned_tickets)
        return self._state.route(facts_from_proto(message))

    def _release(self, tickets: Any) -> int:
        effects = self._state.handle(Released(tuple(Ticket(ticket) for ticket in tickets)))
        return sum(effect.count for effect in effects if isinstance(effect, CreditReleased))


def _batch(answers: list[routing_pb2.RouteStreamResponse]) -> routing_pb2.RouteStreamResponse:
    if len(answers) == 1:
        return answers[0]
    batch = routing_pb2.RouteStreamResponse()
    for some in answers:
        batch.MergeFrom(some)
    return batch


@lru_cache(maxsize=4096)
def _target(target: Target) -> routing_pb2.WorkerTarget:
    """To be copied, never changed: the same for every route to a worker."""
    return routing_pb2.WorkerTarget(worker_id=target.worker_id, epoch=target.epoch, address=target.address)
