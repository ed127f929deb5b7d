"""Many calls on one bidirectional stream: the client's half and the server's half, the same for every service.

Both halves write what a `Source` hands out when the previous write is done, so that messages batch by themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import grpc
import structlog

from lbcore.wire.outbox import Outbox, Source

log = structlog.get_logger()

Item = TypeVar("Item")
Message = TypeVar("Message")


class _OpenStream(Protocol):
    def __call__(self) -> grpc.aio.StreamStreamCall[Any, Any]: ...


class MuxClient(Generic[Item, Message]):
    """The client's half. Opens the stream with the first item, and again with the first item after it broke.

    `build` makes one message of many items, `deliver` takes each message that arrives, `lost` is called once per broken
    stream with the reason; whoever waits for an answer on it will not get one.
    """

    def __init__(
        self,
        open_stream: _OpenStream,
        build: Callable[[list[Item]], Any],
        deliver: Callable[[Message], None],
        lost: Callable[[grpc.RpcError | None], None],
    ) -> None:
        self._open_stream = open_stream
        self._build = build
        self._deliver = deliver
        self._lost = lost
        self._outbox: Outbox[Item] | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def send(self, item: Item, size: int = 0) -> None:
        """Puts an item of about so many bytes on the stream. Never blocks; failure is told through `lost`."""
        outbox = self._outbox
        if outbox is None:
            if self._closed:
                asyncio.get_running_loop().call_soon(self._lost, None)
                return
            outbox = self._outbox = Outbox()
            self._task = asyncio.get_running_loop().create_task(self._run(outbox))
        outbox.put(item, size)

    @property
    def is_open(self) -> bool:
        """Whether a stream exists, connected or on its way."""
        return self._outbox is not None

    async def close(self) -> None:
        """Ends the stream; what still waits is told through `lost`."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._outbox is not None:
            # Cancelled before its first turn, the task has told nobody.
            self._outbox = None
            self._lost(None)

    async def _run(self, outbox: Outbox[Item]) -> None:
        call: grpc.aio.StreamStreamCall[Any, Any] | None = None
        writer: asyncio.Task[None] | None = None
        error: grpc.RpcError | None = None
        message: Any
        try:
            call = self._open_stream()
            writer = asyncio.get_running_loop().create_task(self._write(call, outbox))
            while (message := await call.read()) is not grpc.aio.EOF:
                self._deliver(message)
        except grpc.RpcError as rpc_error:
            error = rpc_error
        except Exception:
            # Nobody awaits this task: who waits on the stream hears that it is lost, and the log why.
            log.exception("stream_read_failed")
        finally:
            # Before `lost`, so that whoever tries again from inside it opens a new stream.
            self._outbox = None
            outbox.close()
            if writer is not None:
                writer.cancel()
            if call is not None:
                call.cancel()
            self._lost(error)

    async def _write(self, call: grpc.aio.StreamStreamCall[Any, Any], outbox: Outbox[Item]) -> None:
        try:
            while items := await outbox.take():
                await call.write(self._build(items))
        except (grpc.RpcError, asyncio.InvalidStateError):
            # The reader sees the end of the stream too, with its status.
            call.cancel()
        except Exception:
            # Nobody awaits this task either: the reader sees the end of the call, and tells `lost`.
            log.exception("stream_write_failed")
            call.cancel()


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
