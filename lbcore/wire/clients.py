"""Typed clients of workers: domain values in and out, domain errors raised, batched streams underneath."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import NamedTuple

import grpc
import structlog

from lbcore.api.v1 import generation_pb2, generation_pb2_grpc
from lbcore.deadlines import Deadlines
from lbcore.errors import BodyTooLarge, DeadlineExceeded, InvalidRequest, WorkerUnreachable
from lbcore.flow import ROOM, Take
from lbcore.generation import Event, Failed, Finished, GenerationRequest
from lbcore.types import Epoch, Target
from lbcore.wire.channel import MAX_MESSAGE_BYTES, open_channel
from lbcore.wire.convert import call_in_parts, event_from_proto, generation_to_proto, write_generation
from lbcore.wire.mux import MuxClient
from lbcore.wire.status import error_from_rpc

log = structlog.get_logger()

MAX_BODY_BYTES = MAX_MESSAGE_BYTES - 1024 * 1024
"""The largest body that a message has room for, beside a request's other fields."""

LONG_BODY_BYTES = 16 * 1024
"""A body from which on to spare its copies is worth its own way."""

GRACE_S = 5.0
"""A worker ends a request itself when its time is over; one that has not done so this much later hangs."""


MAX_CLIENTS = 1024
"""Workers that one process keeps channels to, beyond those with calls under way."""


_ENDS = (Finished, Failed)


class _Cancelled(NamedTuple):
    """A call that is not wanted any more."""

    call_id: int


class _Room(NamedTuple):
    """Events of a call that were taken."""

    call_id: int
    events: int


class Call:
    """One request under way at a worker. Its events go to `take`, all that one message brought at a time."""

    __slots__ = ("_client", "_pending", "_taken", "call_id", "is_cancelled", "is_paused", "request", "take")

    def __init__(self, client: GenerationClient, call_id: int, request: GenerationRequest, take: Take) -> None:
        self._client = client
        self.request = request
        self._pending: list[Event] = []
        self.is_paused = False
        """Whether what arrives is kept back."""
        self._taken = 0
        self.is_cancelled = False
        self.call_id = call_id
        self.take = take
        """Who takes the events."""

    def pause(self) -> None:
        """Keeps back what arrives from now on; when there is no more room for it, the worker does."""
        self.is_paused = True

    def resume(self) -> None:
        """Hands over what was kept back, and whatever comes from now on."""
        self.is_paused = False
        self.flush()

    def cancel(self) -> None:
        """Stops the request at the worker, unless it has ended. Nothing more is said of it here."""
        self.is_cancelled = True
        self._pending.clear()
        self._client.cancel(self)

    def put(self, event: Event) -> bool:
        """Takes an event from the stream; True when it is the first since the last `flush`."""
        pending = self._pending
        pending.append(event)
        return len(pending) == 1

    def flush(self) -> None:
        """Hands over what was put, unless paused."""
        events = self._pending
        if self.is_paused or not events:
            return
        self._pending = []
        self._taken += len(events)
        if self._taken >= ROOM // 4:
            self._client.make_room(self, self._taken)
            self._taken = 0
        try:
            self.take(events, self)
        except Exception:
            # Against the contract; the others on the stream have no part in it.
            log.exception("events_not_taken", request_id=self.request.request_id)
            self.cancel()

    def refuse(self, error: Exception) -> None:
        """No message can carry it. The others that would have travelled with it have no part in that."""
        self._client.forget(self)
        if not self.is_cancelled:
            self.put(Failed(InvalidRequest(f"The request cannot be sent: {error}.")))
            asyncio.get_running_loop().call_soon(self.resume)

    def expire(self) -> None:
        """Its time is over: ends in DeadlineExceeded. One whose end is only kept back is kept back no longer."""
        if self._client.cancel(self):
            self.put(Failed(DeadlineExceeded("The worker did not answer in time.")))
        self.resume()


class GenerationClient:
    """Sends requests to one worker over one stream."""

    def __init__(self, address: str, deadlines: Deadlines | None = None) -> None:
        self._mux: MuxClient[Call | _Cancelled | _Room, generation_pb2.GenerateStreamResponse] = MuxClient(
            address,
            "/lbcore.api.v1.GenerationService/GenerateStream",
            _generate_batch,
            generation_pb2.GenerateStreamResponse.FromString,
            self._deliver,
            self._lost,
        )
        self._calls: dict[int, Call] = {}
        self._next_call_id = 0
        self._deadlines = deadlines or Deadlines()

    def begin(self, request: GenerationRequest, take: Take) -> Call:
        """Sends a request and returns its call at once; the last event ever is Finished or Failed. Cancel it when done.

        Nothing is handed to `take` before this returns. A worker that cannot be reached ends the call in Failed.
        """
        self._next_call_id += 1
        call_id = self._next_call_id
        call = Call(self, call_id, request, take)
        size = len(request.body)
        if size > MAX_BODY_BYTES:
            # It would end the stream, and with it every other call.
            call.put(Failed(BodyTooLarge(f"The request body is larger than {MAX_BODY_BYTES} bytes.")))
            asyncio.get_running_loop().call_soon(call.flush)
            return call
        self._calls[call_id] = call
        self._mux.send(call, size)
        if request.timeout_s is not None:
            self._deadlines.add(call, request.timeout_s + GRACE_S)
        return call

    def cancel(self, call: Call) -> bool:
        """Stops a call at the worker; False when it has ended already."""
        self._deadlines.drop(call)
        if self._calls.pop(call.call_id, None) is None:
            return False
        if self._mux.is_open:
            self._mux.send(_Cancelled(call.call_id))
        return True

    def forget(self, call: Call) -> None:
        """Of a call that the worker has not heard of."""
        self._deadlines.drop(call)
        self._calls.pop(call.call_id, None)

    def make_room(self, call: Call, events: int) -> None:
        """Tells the worker that so many events of a call were taken, unless it has ended."""
        if call.call_id in self._calls and self._mux.is_open:
            self._mux.send(_Room(call.call_id, events))

    @property
    def idle(self) -> bool:
        """Whether no call is under way."""
        return not self._calls

    async def close(self) -> None:
        await self._mux.close()

    def _deliver(self, message: generation_pb2.GenerateStreamResponse) -> None:
        calls = self._calls
        news: list[Call] = []
        for entry in message.events:
            call_id = entry.call_id
            call = calls.get(call_id)
            if call is None:
                continue
            event = event_from_proto(entry)
            if event is None:
                continue
            if type(event) in _ENDS:
                del calls[call_id]
            if call.put(event):
                news.append(call)
        for call in news:
            call.flush()

    def _lost(self) -> None:
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if not call.is_cancelled:
                call.put(Failed(WorkerUnreachable("The worker cannot be reached.")))
                call.flush()


def _generate_batch(items: list[Call | _Cancelled | _Room]) -> tuple[bytes, ...]:
    batch = generation_pb2.GenerateStreamRequest()
    # Parts of one message: to put the bytes of messages behind one another is to merge them.
    parts: list[bytes] = []
    add = batch.calls.add
    for item in items:
        if isinstance(item, Call):
            request = item.request
            is_long = len(request.body) >= LONG_BODY_BYTES
            # Filled in where it stands: a message that is made elsewhere is copied into the one that holds it.
            call = generation_pb2.GenerateCall() if is_long else add()
            call.call_id = item.call_id
            call.room = ROOM
            if not request.wants_token_ids:
                call.without_token_ids = True
            if request.is_whole:
                call.whole = True
            try:
                if is_long:
                    parts += call_in_parts(request, call)
                else:
                    write_generation(request, call.request)
            except (TypeError, ValueError) as error:
                if not is_long:
                    del batch.calls[-1]
                item.refuse(error)
        elif isinstance(item, _Room):
            batch.rooms.add(call_id=item.call_id, event_count=item.events)
        else:
            batch.cancelled_call_ids.append(item.call_id)
    return batch.SerializeToString(), *parts


class GenerationClients:
    """One client per worker epoch, opened when first needed; closed, but never under a call, when the worker is gone.

    A route may be older than the worker it names: routes of two epochs can come mixed, and each keeps its own client.
    """

    def __init__(self) -> None:
        self._clients: dict[tuple[str, Epoch], GenerationClient] = {}
        self._deadlines = Deadlines()
        self._closing: set[asyncio.Task[None]] = set()

    def to(self, target: Target) -> GenerationClient:
        """The client for a worker."""
        key = (target.address, target.epoch)
        client = self._clients.get(key)
        if client is None:
            self._close_idle(lambda address, epoch: address == target.address)
            if len(self._clients) >= MAX_CLIENTS:
                # Who follows no routing table would keep a channel for every worker there ever was.
                self._close_idle(lambda address, epoch: True)
            client = self._clients[key] = GenerationClient(target.address, self._deadlines)
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
