"""RoutingService: questions to picks. No await stands between a look at the pool and the booking of its pick."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from lbcore.api.v1 import routing_pb2, routing_pb2_grpc
from lbcore.errors import LoadBalancerError
from lbcore.pool_events import CreditReleased, Released
from lbcore.scheduler.state import SchedulerState
from lbcore.types import Ticket
from lbcore.wire.convert import facts_from_proto, route_to_proto, worker_status_to_proto
from lbcore.wire.mux import serve_mux
from lbcore.wire.outbox import Outbox
from lbcore.wire.server import Registration, service
from lbcore.wire.status import abort, failure_from_error


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
            return self._route(message)
        except LoadBalancerError as error:
            await abort(context, error)

    async def RouteStream(  # noqa: N802
        self,
        request_iterator: AsyncIterator[routing_pb2.RouteStreamRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        outbox: Outbox[routing_pb2.RouteResult] = Outbox()

        def deliver(message: routing_pb2.RouteStreamRequest) -> None:
            self._release(message.abandoned_tickets)
            for call in message.calls:
                result = routing_pb2.RouteResult(call_id=call.call_id)
                try:
                    result.response.CopyFrom(self._route(call.request))
                except LoadBalancerError as error:
                    result.failure.CopyFrom(failure_from_error(error))
                outbox.put(result)

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

    def _route(self, message: routing_pb2.RouteRequest) -> routing_pb2.RouteResponse:
        # Before the decision: the failed attempt's work is not on its worker any more.
        self._release(message.abandoned_tickets)
        return route_to_proto(self._state.route(facts_from_proto(message)))

    def _release(self, tickets: Any) -> int:
        if not tickets:
            return 0
        effects = self._state.handle(Released(tuple(Ticket(ticket) for ticket in tickets)))
        return sum(effect.count for effect in effects if isinstance(effect, CreditReleased))


def _batch(items: list[routing_pb2.RouteResult]) -> routing_pb2.RouteStreamResponse:
    return routing_pb2.RouteStreamResponse(results=items)
