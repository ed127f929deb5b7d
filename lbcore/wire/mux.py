"""Many calls on one bidirectional stream: the client's half and the server's half, the same for every service.

Both halves write when the previous write is done all that has come since, so that messages batch by themselves. The
client's half speaks HTTP/2 itself (`lbcore.wire.http2`): a message costs it a system call, where gRPC's library for
asyncio has a thread wait for sockets and wakes the event loop for each message read and each message written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import grpc
import structlog

from lbcore.wire import channel, http2
from lbcore.wire.outbox import Batches, Source

log = structlog.get_logger()

Item = TypeVar("Item")
Message = TypeVar("Message")


ENOUGH = 32
"""Items that leave at once, however much more is about to come: the peer has a millisecond of work with them, and would
have none meanwhile. With 64 connections on two cores that is worth more than what smaller batches cost."""


class MuxClient(Generic[Item, Message]):
    """The client's half. Opens the stream with the first item, and again with the first item after it broke.

    `build` makes one message of many items, as bytes in any number of parts, `parse` one of bytes, `deliver` takes each
    message that arrives, `lost` is called once per broken stream; whoever waits for an answer on it will not get one.
    """

    def __init__(
        self,
        address: str,
        path: str,
        build: Callable[[list[Item]], tuple[bytes, ...]],
        parse: Callable[[bytes], Message],
        deliver: Callable[[Message], None],
        lost: Callable[[], None],
    ) -> None:
        """`address` is HOST:PORT, `path` /SERVICE/METHOD."""
        self._address = address
        self._path = path
        self._build = build
        self._parse = parse
        self._deliver = deliver
        self._lost = lost
        self._stream: _Stream[Item, Message] | None = None
        self._closed = False

    def send(self, item: Item, size: int = 0) -> None:
        """Puts an item of about so many bytes on the stream. Never blocks; failure is told through `lost`."""
        stream = self._stream
        if stream is None:
            if self._closed:
                asyncio.get_running_loop().call_soon(self._lost)
                return
            stream = self._stream = _Stream(self._path, self._address, self._build, self._received, self._gone)
            stream.connect()
        stream.put(item, size)

    @property
    def is_open(self) -> bool:
        """Whether a stream exists, connected or on its way."""
        return self._stream is not None

    async def close(self) -> None:
        """Ends the stream; what still waits is told through `lost`."""
        self._closed = True
        if self._stream is not None:
            self._stream.end()
            # The socket closes in a turn of its own.
            await asyncio.sleep(0)

    def _received(self, data: bytes) -> None:
        self._deliver(self._parse(data))

    def _gone(self) -> None:
        # Before `lost`, so that whoever tries again from inside it opens a new stream.
        self._stream = None
        self._lost()


class _Stream(asyncio.Protocol, Generic[Item, Message]):
    """One connection with one stream. `gone` is called once, when it has ended or could not be opened."""

    def __init__(
        self,
        path: str,
        address: str,
        build: Callable[[list[Item]], tuple[bytes, ...]],
        deliver: Callable[[bytes], None],
        gone: Callable[[], None],
    ) -> None:
        self._path = path
        self._address = address
        self._build = build
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self._batches: Batches[Item] = Batches()
        self._call = http2.Call(
            self._write, deliver, unread_bytes=channel.UNREAD_BYTES, max_message_bytes=channel.MAX_MESSAGE_BYTES
        )
        self._connecting: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._is_paused = False
        self._is_due = False
        self._is_over = False
        self._has_heard = False
        self._watch: asyncio.TimerHandle | None = None

    def connect(self) -> None:
        """Begins to connect."""
        self._connecting = self._loop.create_task(self._connect())

    def put(self, item: Item, size: int) -> None:
        """Has an item leave with the next message."""
        self._batches.put(item, size)
        if len(self._batches) >= ENOUGH and self._may_send():
            self._send()
        else:
            self._send_soon()

    def end(self) -> None:
        """Closes the connection, and says so."""
        if self._is_over:
            return
        self._is_over = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._watch is not None:
            self._watch.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._gone()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._is_over:
            transport.abort()
            return
        self._call.begin(self._path, self._address)
        self._watch = self._loop.call_later(channel.KEEPALIVE_S, self._ask_for_life)
        self._send_soon()

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        self._has_heard = True
        try:
            self._call.receive(data)
        except Exception:
            # Nobody waits for this turn: who waits on the stream hears that it is lost, and the log why.
            log.exception("stream_read_failed", address=self._address)
            self.end()
            return
        if self._call.is_over:
            self.end()
        elif self._batches:
            self._send_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        self.end()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._send_soon()

    async def _connect(self) -> None:
        host, _, port = self._address.rpartition(":")
        try:
            async with asyncio.timeout(channel.CONNECT_S):
                await self._loop.create_connection(lambda: self, host.strip("[]"), int(port))
        except (OSError, ValueError):
            self._connecting = None
            self.end()

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def _may_send(self) -> bool:
        return self._transport is not None and not self._is_paused and self._call.may_send

    def _send_soon(self) -> None:
        """Sends when everything else that is ready had its turn.

        In an idle process that is at once; in a busy one much more comes to be sent meanwhile, and goes along.
        """
        if not self._is_due and self._may_send():
            self._is_due = True
            self._loop.call_soon(self._loop.call_soon, self._send)

    def _send(self) -> None:
        self._is_due = False
        if self._is_over:
            return
        try:
            while self._batches and self._may_send():
                self._call.send(*self._build(self._batches.next()))
        except Exception:
            log.exception("stream_write_failed", address=self._address)
            self.end()

    def _ask_for_life(self) -> None:
        """Now and then: a peer whose machine vanished, or whose process stands still, sends no reset."""
        if self._has_heard:
            self._has_heard = False
            self._watch = self._loop.call_later(channel.KEEPALIVE_S, self._ask_for_life)
        else:
            self._call.ping()
            self._watch = self._loop.call_later(channel.KEEPALIVE_TIMEOUT_S, self._look_for_life)

    def _look_for_life(self) -> None:
        if self._has_heard:
            self._ask_for_life()
        else:
            self.end()


async def serve_mux(
    context: grpc.aio.ServicerContext[Any, Any],
    deliver: Callable[[Any], None],
    outbox: Source[Item],
    build: Callable[[list[Item]], Any],
    half_closed: Callable[[], None] | None = None,
) -> None:
    """The server's half: hands what arrives to `deliver` and writes what is in `outbox`, until the outbox is closed.

    `half_closed` is called when the client will send no more; it closes the outbox, at once or when the last answer is
    in it (left out: at once). The client's going away cancels the caller, and so both halves.
    """

    async def read() -> None:
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                deliver(message)
        except BaseException:
            outbox.close()
            raise
        (half_closed or outbox.close)()

    reader = asyncio.get_running_loop().create_task(read())
    try:
        while items := await outbox.take():
            await context.write(build(items))
        if reader.done():
            # Or else it is this side that ends the stream, and the client's half is not waited for.
            reader.result()
    finally:
        reader.cancel()
