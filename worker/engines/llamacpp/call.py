"""One request inside llama.cpp: a connection of its own to the loopback server, from the first byte to the last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from lbcore.errors import EngineFailed, LoadBalancerError
from lbcore.generation import Delta, Failed, Finished, FinishReason
from worker.engine import Emit
from worker.engines.llamacpp.answer import Answer
from worker.engines.llamacpp.body import Ask
from worker.engines.llamacpp.errors import error_from_body
from worker.engines.llamacpp.sse import AnswerReader, http_post


class Call(asyncio.Protocol):
    """Sends a request and emits what comes back.

    It is over when the connection is: only then has llama.cpp let go of what the request held. `heard` is called after
    every piece of the answer, `over` once, at the very end, and after the last event.
    """

    def __init__(
        self,
        request_id: str,
        ask: Ask,
        emit: Emit,
        context_length: int,
        heard: Callable[[Call], None],
        over: Callable[[Call], None],
    ) -> None:
        self.request_id = request_id
        self.ask = ask
        self.answer = Answer(ask, context_length)
        self.ended = False
        """Whether the last event was emitted."""
        self.turn = (0, 0)
        """Its place in the engine's queue; the lowest goes first."""
        self.api_key = ""
        self._context_length = context_length
        self._emit = emit
        self._heard = heard
        self._over = over
        self._reader = AnswerReader()
        self._transport: asyncio.Transport | None = None
        self._error: LoadBalancerError | None = None

    def go_on(self, begun_tokens: int) -> bool:
        """Takes note of how many tokens there are of the answer already, before it is sent. False when none may follow:
        then it has ended."""
        self.ask = self.ask.behind(begun_tokens)
        self.answer = Answer(self.ask, self._context_length)
        if self.ask.max_tokens is None or self.ask.max_tokens > 0 or self._error is not None:
            return True
        self.ended = True
        self._emit(Delta(finish_reason=FinishReason.LENGTH))
        self._emit(Finished(0, 0, begun_tokens))
        self._over(self)
        return False

    def stop(self, error: LoadBalancerError) -> None:
        """Makes llama.cpp let go of the request; it ends in `error`. The first error counts."""
        if self._error is not None or self.ended:
            return
        self._error = error
        self._hang_up()

    def fail(self, error: LoadBalancerError) -> None:
        """Ends the request at once; for one that has no connection."""
        self._error = self._error or error
        self._end()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._error is None:
            try:
                self._transport.write(http_post(self.ask.path, self.api_key, self.ask.body))
            except Exception as error:
                # The event loop would log it and go on, with a connection that neither side ever ends.
                self._error = EngineFailed(f"llama.cpp could not be asked: {type(error).__name__}.")
        if self._error is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._error is not None or self.ended:
            return
        try:
            for event in self._reader.feed(data):
                self._take(event)
            self._heard(self)
        except LoadBalancerError as error:
            self.stop(error)
        except Exception as error:
            # Whatever shape the answer has, it must not cost the connection its end and the engine its sequences.
            self.stop(EngineFailed(f"llama.cpp answered what we cannot read: {error!r}."))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended and self._error is None:
            reader = self._reader
            if reader.status not in (0, 200) or (reader.complete and not reader.is_stream):
                self._error = self._refusal()
            else:
                self._error = EngineFailed("llama.cpp broke off the answer.")
        self._end()

    def _refusal(self) -> LoadBalancerError:
        try:
            return error_from_body(self._reader.body, self._reader.status, self.ask)
        except Exception as error:
            # Whatever the refusal looks like, the request must end and free its sequences.
            return EngineFailed(f"llama.cpp refused in words we cannot read: {type(error).__name__}.")

    def _take(self, data: bytes) -> None:
        for event in self.answer.take(data):
            # Whoever was told of the last event may have stopped the request.
            if self._error is not None:
                return
            if isinstance(event, Finished):
                self.ended = True
                self._hang_up()
            self._emit(event)

    def _hang_up(self) -> None:
        # Half a close: llama.cpp takes it for a client gone, and its own close tells us that it has let go.
        if self._transport is not None and not self._reader.complete and not self._transport.is_closing():
            with suppress(OSError):
                self._transport.write_eof()

    def _end(self) -> None:
        if not self.ended:
            self.ended = True
            self._emit(Failed(self._error or EngineFailed("llama.cpp broke off the answer.")))
        self._over(self)
