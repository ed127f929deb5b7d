"""Typed clients of our own services: domain values in and out, domain errors raised, batched streams underneath."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

import grpc

from lbcore.api.v1 import generation_pb2, generation_pb2_grpc, routing_pb2, routing_pb2_grpc
from lbcore.errors import BodyTooLarge, DeadlineExceeded, NoReadyWorker, WorkerUnreachable
from lbcore.generation import Event, Failed, Finished, GenerationRequest
from lbcore.types import NO_TICKET, Epoch, Route, RouteFacts, Target, Ticket, WorkerId, WorkerStatus
from lbcore.wire.channel import MAX_MESSAGE_BYTES, open_channel
from lbcore.wire.convert import (
    event_from_proto,
    facts_to_proto,
    generation_to_proto,
    route_from_proto,
    worker_status_from_proto,
)
from lbcore.wire.mux import MuxClient
from lbcore.wire.status import error_from_failure, error_from_rpc

MAX_BODY_BYTES = MAX_MESSAGE_BYTES - 1024 * 1024
"""The largest body that a message has room for, beside a request's other fields."""

GRACE_S = 5.0
"""A worker ends a request itself when its time is over; one that has not done so this much later hangs."""


MAX_CLIENTS = 1024
"""Workers that one process keeps channels to, beyond those with calls under way."""


@dataclass(frozen=True, slots=True)
class TableStep:
    """A step of the routing table: forget everything first when `snapshot` is set."""

    snapshot: bool
    workers: tuple[WorkerStatus, ...]
    removed: tuple[WorkerId, ...]


class RoutingClient:
    """Asks the scheduler where requests should go."""

    def __init__(self, address: str) -> None:
        self._channel = open_channel(address)
        self._stub = routing_pb2_grpc.RoutingServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._mux: MuxClient[routing_pb2.RouteCall | Ticket, routing_pb2.RouteStreamResponse] = MuxClient(
            self._stub.RouteStream, _route_batch, self._deliver, self._lost
        )
        self._waiting: dict[int, asyncio.Future[Route]] = {}
        self._next_call_id = 0

    async def route(
        self, facts: RouteFacts, abandoned: tuple[Ticket, ...] = (), timeout_s: float | None = None
    ) -> Route:
        """Where to send a request. `abandoned` are tickets of its earlier attempts that never reached a worker.

        A caller that was cancelled, or whose time is over, leaves nothing booked: the ticket is given back when the
        answer comes.

        Raises:
            NoReadyWorker: nobody can serve now, or the scheduler cannot be reached.
            DeadlineExceeded: there was no answer in time.
            LoadBalancerError: as the scheduler says.
        """
        self._next_call_id += 1
        request = facts_to_proto(facts, abandoned, timeout_s)
        message = routing_pb2.RouteCall(call_id=self._next_call_id, request=request)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Route] = loop.create_future()
        self._waiting[message.call_id] = answer
        self._mux.send(message)
        timer = None if timeout_s is None else loop.call_later(timeout_s, _give_up, answer)
        try:
            return await answer
        except asyncio.CancelledError:
            # The answer may have come in the same turn in which the caller was cancelled.
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                self.release(answer.result().ticket)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def release(self, ticket: Ticket) -> None:
        """Gives back a ticket whose request never reached a worker."""
        if ticket != NO_TICKET:
            self._mux.send(ticket)

    async def watch(self) -> AsyncIterator[TableStep]:
        """The routing table, as snapshot and changes, until the scheduler goes away.

        Raises:
            LoadBalancerError: the scheduler cannot be reached or went away.
        """
        try:
            async for message in self._stub.WatchWorkers(routing_pb2.WatchWorkersRequest()):
                yield TableStep(
                    message.snapshot,
                    tuple(worker_status_from_proto(status) for status in message.workers),
                    tuple(WorkerId(worker_id) for worker_id in message.removed_worker_ids),
                )
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error

    async def close(self) -> None:
        await self._mux.close()
        await self._channel.close()

    def _deliver(self, message: routing_pb2.RouteStreamResponse) -> None:
        for result in message.results:
            answer = self._waiting.pop(result.call_id, None)
            if result.WhichOneof("result") == "response":
                route = route_from_proto(result.response)
                if answer is None or answer.done():
                    self.release(route.ticket)
                else:
                    answer.set_result(route)
            elif answer is not None and not answer.done():
                answer.set_exception(error_from_failure(result.failure))

    def _lost(self, error: grpc.RpcError | None) -> None:
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(NoReadyWorker("The scheduler cannot be reached."))


def _give_up(answer: asyncio.Future[Route]) -> None:
    if not answer.done():
        answer.set_exception(DeadlineExceeded("No worker was found in time."))


def _route_batch(items: list[routing_pb2.RouteCall | Ticket]) -> routing_pb2.RouteStreamRequest:
    message = routing_pb2.RouteStreamRequest()
    for item in items:
        if isinstance(item, int):
            message.abandoned_tickets.append(item)
        else:
            message.calls.append(item)
    return message


class Call:
    """One request under way at a worker. Its events are read in batches: whatever has arrived since the last look."""

    __slots__ = ("_client", "_events", "_timer", "_waiter", "call_id")

    def __init__(self, client: GenerationClient, call_id: int) -> None:
        self._client = client
        self._events: list[Event] = []
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.call_id = call_id

    async def events(self) -> list[Event]:
        """Waits for news and returns all there is, in order; the last one ever is Finished or Failed."""
        while not self._events:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        events, self._events = self._events, []
        return events

    def cancel(self) -> None:
        """Stops the request at the worker, unless it has ended. Nothing more is said of it here."""
        self._client.cancel(self.call_id)

    def start_timer(self, seconds: float) -> None:
        """Ends the call in DeadlineExceeded unless it ends before."""
        self._timer = asyncio.get_running_loop().call_later(seconds, self._give_up)

    def stop_timer(self) -> None:
        """The call has ended, or nobody waits for it."""
        if self._timer is not None:
            self._timer.cancel()

    def _give_up(self) -> None:
        self.cancel()
        self.put(Failed(DeadlineExceeded("The worker did not answer in time.")))

    def put(self, event: Event) -> None:
        """Takes an event from the stream."""
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class GenerationClient:
    """Sends requests to one worker over one stream."""

    def __init__(self, address: str) -> None:
        self._channel = open_channel(address)
        self._stub = generation_pb2_grpc.GenerationServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._mux: MuxClient[generation_pb2.GenerateCall | int, generation_pb2.GenerateStreamResponse] = MuxClient(
            self._stub.GenerateStream, _generate_batch, self._deliver, self._lost
        )
        self._calls: dict[int, Call] = {}
        self._next_call_id = 0

    def begin(self, request: GenerationRequest) -> Call:
        """Sends a request and returns its call at once. A worker that cannot be reached ends it in Failed."""
        self._next_call_id += 1
        call = Call(self, self._next_call_id)
        if len(request.body) > MAX_BODY_BYTES:
            # It would end the stream, and with it every other call.
            call.put(Failed(BodyTooLarge(f"The request body is larger than {MAX_BODY_BYTES} bytes.")))
            return call
        message = generation_pb2.GenerateCall(call_id=call.call_id, request=generation_to_proto(request))
        self._calls[call.call_id] = call
        self._mux.send(message)
        if request.timeout_s is not None:
            call.start_timer(request.timeout_s + GRACE_S)
        return call

    def cancel(self, call_id: int) -> None:
        """Stops a call that has not ended."""
        call = self._calls.pop(call_id, None)
        if call is not None:
            call.stop_timer()
            if self._mux.is_open:
                self._mux.send(call_id)

    @property
    def idle(self) -> bool:
        """Whether no call is under way."""
        return not self._calls

    async def close(self) -> None:
        await self._mux.close()
        await self._channel.close()

    def _deliver(self, message: generation_pb2.GenerateStreamResponse) -> None:
        calls = self._calls
        for entry in message.events:
            call = calls.get(entry.call_id)
            if call is None:
                continue
            event = event_from_proto(entry)
            if event is None:
                continue
            if isinstance(event, (Finished, Failed)):
                del calls[entry.call_id]
                call.stop_timer()
            call.put(event)

    def _lost(self, error: grpc.RpcError | None) -> None:
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.stop_timer()
            call.put(Failed(WorkerUnreachable("The worker cannot be reached.")))


def _generate_batch(items: list[generation_pb2.GenerateCall | int]) -> generation_pb2.GenerateStreamRequest:
    message = generation_pb2.GenerateStreamRequest()
    for item in items:
        if isinstance(item, int):
            message.cancelled_call_ids.append(item)
        else:
            message.calls.append(item)
    return message


class GenerationClients:
    """One client per worker epoch, opened when first needed; closed, but never under a call, when the worker is gone.

    A route may be older than the worker it names: routes of two epochs can come mixed, and each keeps its own client.
    """

    def __init__(self) -> None:
        self._clients: dict[tuple[str, Epoch], GenerationClient] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def to(self, target: Target) -> GenerationClient:
        """The client for a worker."""
        client = self._clients.get((target.address, target.epoch))
        if client is None:
            self._close_idle(lambda address, epoch: address == target.address)
            if len(self._clients) >= MAX_CLIENTS:
                # Who follows no routing table would keep a channel for every worker there ever was.
                self._close_idle(lambda address, epoch: True)
            client = self._clients[target.address, target.epoch] = GenerationClient(target.address)
        return client

    def keep_only(self, alive: Mapping[str, Epoch]) -> None:
        """Closes idle clients of workers that are not among `alive` (address to epoch)."""
        self._close_idle(lambda address, epoch: alive.get(address) != epoch)

    def __len__(self) -> int:
        return len(self._clients)

    async def close(self) -> None:
        clients, self._clients = self._clients, {}
        await asyncio.gather(*(client.close() for client in clients.values()), *self._closing)

    def _close_idle(self, among: Callable[[str, Epoch], bool]) -> None:
        for key, client in [*self._clients.items()]:
            if client.idle and among(*key):
                del self._clients[key]
                self._close_soon(client)

    def _close_soon(self, client: GenerationClient) -> None:
        task = asyncio.get_running_loop().create_task(client.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def generate(address: str, request: GenerationRequest) -> AsyncIterator[Event]:
    """One request over Generate, the plain server-streaming call; for tools and tests.

    Raises:
        LoadBalancerError: as the worker says.
    """
    async with open_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            async for message in stub.Generate(generation_to_proto(request)):
                event = event_from_proto(message)
                if event is not None:
                    yield event
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
