"""RoutingService: questions to picks. No await stands between a look at the pool and the booking of its pick."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from lbcore import types
from lbcore.api.v1 import routing_pb2, routing_pb2_grpc
from lbcore.errors import LoadBalancerError
from lbcore.pool_events import CreditReleased, Released
from lbcore.scheduler.desk import Place
from lbcore.scheduler.route_stream import RouteStream
from lbcore.scheduler.state import SchedulerState
from lbcore.types import Ticket
from lbcore.wire.convert import facts_from_proto, route_to_proto, timeout_from_proto, worker_status_to_proto
from lbcore.wire.mux import serve_mux
from lbcore.wire.server import Registration, service
from lbcore.wire.status import abort


class RoutingServicer(routing_pb2_grpc.RoutingServiceServicer):
    """The gRPC face of the `Desk`."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state

    def registration(self) -> Registration:
        """What a server needs to serve this."""
        return service(routing_pb2, "RoutingService", self)

    async def Route(  # noqa: N802
        self, message: routing_pb2.RouteRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> routing_pb2.RouteResponse:
        # Before the decision: the failed attempt's work is not on its worker any more.
        if message.abandoned_tickets:
            self._release(message.abandoned_tickets)
        try:
            return route_to_proto(await self._decision(message))
        except LoadBalancerError as error:
            await abort(context, error)

    async def RouteStream(  # noqa: N802
        self,
        request_iterator: AsyncIterator[routing_pb2.RouteStreamRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        stream = RouteStream(self._state)
        try:
            await serve_mux(context, stream.deliver, stream.outbox, stream.build, stream.half_close)
        finally:
            stream.stop()

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

    async def _decision(self, message: routing_pb2.RouteRequest) -> types.Route:
        """Waits as long as it takes, or the caller wants to."""
        answer: asyncio.Future[types.Route] = asyncio.get_running_loop().create_future()

        def tell(route: types.Route | LoadBalancerError) -> None:
            if answer.cancelled():
                # The caller went away in this very turn, and has not been heard yet.
                if isinstance(route, types.Route):
                    self._release((route.ticket,))
            elif isinstance(route, types.Route):
                answer.set_result(route)
            else:
                answer.set_exception(route)

        found = self._state.desk.ask(facts_from_proto(message), tell, timeout_from_proto(message))
        if not isinstance(found, Place):
            return found
        try:
            return await answer
        except asyncio.CancelledError:
            found.withdraw()
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                # It was decided first, in the very turn in which the caller went away.
                self._release((answer.result().ticket,))
            raise

    def _release(self, tickets: Any) -> int:
        effects = self._state.handle(Released(tuple(Ticket(ticket) for ticket in tickets)))
        return sum(effect.count for effect in effects if isinstance(effect, CreditReleased))
