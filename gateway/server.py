"""All connections of a gateway: how long they may be silent, and how they end when it stops.

They begin with the quick way in (gateway/express.py) and go on with aiohttp when that is not for them. The limits are
the same on both ways.
"""

from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import Any

from aiohttp import EMPTY_PAYLOAD, web

from gateway.exchange import Exchanges
from gateway.express import Connection, Unread

IDLE_S = 75.0
"""A connection on which its client has sent nothing for so long, neither a request nor more of one, is closed; one
whose client has taken nothing of what waits for it, is cut off."""

STALLED_S = 5.0
"""The same for half a request when the server stops: what TCP loses twice arrives after 3 s, as 1 s is doubled."""

LOOKS = 5
"""Looks for such connections in each of those times: closing is late by a fifth at most."""

CANCELLED_S = 1.0
"""What handlers have to end once their connections are cut off; they need a few turns of the event loop."""


class General(web.RequestHandler):
    """aiohttp's protocol for a connection, which knows whose turn it is."""

    __slots__ = ("_content", "_has_more", "_heard_at", "_is_answering", "server", "unread")

    def __init__(self, server: Server, **options: Any) -> None:
        super().__init__(server, **options)
        self.server = server
        self.unread = Unread()
        self._heard_at = server.loop.time()
        self._content = EMPTY_PAYLOAD
        """The body of the present request, or of the last."""
        self._is_answering = False
        self._has_more = False
        """Whether something came that belongs to no request yet: half a head, or a request about to begin."""

    @property
    def quiet_since(self) -> float | None:
        """Since when the client has sent nothing of what it began to send; None when it began nothing."""
        return self._heard_at if self._has_more or not self._content.is_eof() else None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, neither a request nor an answer."""
        return not self._is_answering and self.quiet_since is None

    def begin(self, request: web.BaseRequest) -> None:
        """A request is answered from now on."""
        self._is_answering = True
        self._has_more = False
        self._content = request.content

    def end(self) -> None:
        """It has its answer."""
        self._is_answering = False

    def data_received(self, data: bytes) -> None:
        if data:
            self._heard_at = self.server.loop.time()
            # What a client sends ahead has to wait; aiohttp reads on to the end of a body that was answered early.
            self._has_more = self._has_more or (not self._is_answering and self._content.is_eof())
        super().data_received(data)


class Server(web.Server):
    """aiohttp's server, whose connections begin as ours."""

    def __init__(self, handler: Any, exchanges: Exchanges, rng: Random, **options: Any) -> None:
        super().__init__(self._answer, **options)
        self._handler = handler
        self.loop = asyncio.get_running_loop()
        self.exchanges = exchanges
        self.rng = rng
        self.max_body_bytes = exchanges.config.max_body_bytes
        self._here: set[Connection] = set()
        self._elsewhere: dict[General, asyncio.Transport] = {}
        """What aiohttp has, until it is really closed: aiohttp itself forgets it before its last bytes are sent."""
        self._empty = asyncio.Event()
        self._empty.set()
        self.is_stopping = False
        """Whether every connection is to close behind its present answer."""
        self._sweep: asyncio.TimerHandle | None = None
        self._patience: asyncio.Timeout | None = None
        """With running requests, while it waits for them to stop."""
        self._is_cut = False

    def __call__(self) -> Any:
        """A protocol for a new connection."""
        return Connection(self)

    def general(self) -> General:
        """aiohttp's protocol for a connection."""
        return General(self, loop=self._loop, **self._kwargs)

    def joined(self, connection: Connection) -> None:
        """A connection was opened."""
        self._here.add(connection)
        self._empty.clear()
        if self.is_stopping:
            connection.stop()
        elif self._sweep is None:
            self._look_later()

    def left(self, connection: Connection) -> None:
        """A connection was closed, or given to aiohttp."""
        self._here.discard(connection)
        self._tell_if_empty()

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """A connection was given to aiohttp."""
        super().connection_made(handler, transport)
        assert isinstance(handler, General)
        self._elsewhere[handler] = transport
        self._empty.clear()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """A connection that aiohttp had was closed."""
        super().connection_lost(handler, exc)
        assert isinstance(handler, General)
        self._elsewhere.pop(handler, None)
        self._tell_if_empty()

    def pre_shutdown(self) -> None:
        """Closes connections that are idle, and others when what they asked is answered."""
        self.is_stopping = True
        for connection in [*self._here]:
            connection.stop()
        # aiohttp's own way would be deaf to what is still missing of a request.
        self._close_idle()
        self._look_later()

    async def shutdown(self, timeout: float | None = None) -> None:
        """Waits until running requests are answered and their answers sent, at most so many seconds, and cuts off those
        that are left."""
        self.pre_shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0 if self._is_cut else timeout) as self._patience:
                await self._empty.wait()
        self._patience = None
        for transport in [*(connection.transport for connection in self._here), *self._elsewhere.values()]:
            transport.abort()
        await super().shutdown(CANCELLED_S)
        if self._sweep is not None:
            self._sweep.cancel()

    def cut(self) -> None:
        """Waits no longer for running requests, now or when it stops."""
        self._is_cut = True
        if self._patience is not None:
            self._patience.reschedule(self.loop.time())

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        general = request.protocol
        assert isinstance(general, General)
        general.begin(request)
        try:
            response: web.StreamResponse = await self._handler(request)
        finally:
            general.end()
        if self.is_stopping:
            response.force_close()
        return response

    def _tell_if_empty(self) -> None:
        if not self._here and not self._elsewhere:
            self._empty.set()

    def _look_later(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        if self._here or self._elsewhere:
            self._sweep = self.loop.call_later(self._patience_s() / LOOKS, self._close_quiet)

    def _patience_s(self) -> float:
        return STALLED_S if self.is_stopping else IDLE_S

    def _close_idle(self) -> None:
        """Closes what aiohttp has and nobody uses."""
        for general, transport in [*self._elsewhere.items()]:
            if general.is_idle:
                transport.close()

    def _close_quiet(self) -> None:
        now = self.loop.time()
        for connection in [*self._here]:
            self._look(connection.transport, connection.unread, connection.quiet_since, now)
        for general, transport in [*self._elsewhere.items()]:
            self._look(transport, general.unread, general.quiet_since, now)
        if self.is_stopping:
            # One that was refused before its body was complete becomes idle only with the end of that.
            self._close_idle()
        self._look_later()

    def _look(self, transport: asyncio.Transport, unread: Unread, quiet_since: float | None, now: float) -> None:
        """Closes a connection whose client is silent while it is its turn, and cuts off one who does not read."""
        unread.look(transport, now)
        limit = now - self._patience_s()
        if quiet_since is not None and max(quiet_since, unread.since) < limit:
            if unread.size:
                # It has not read its last answer for all that time, and will not.
                transport.abort()
            else:
                transport.close()
        elif unread.size and not self.is_stopping and unread.since < limit:
            # A server that stops gives what waits for its clients all the time that it has itself.
            transport.abort()
