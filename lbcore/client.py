"""For internal services in Python: one call asks for a route, sends the request there, and fails over.

async with Client("127.0.0.1:50050") as client:
    async for event in client.chat("demo", [{"role": "user", "content": "Who are you?"}]):
        ...
    answer = await client.complete("demo", "Q: Who are you?\\nA:", max_tokens=64)
    first, second = (await client.embed("embedder", ["one text", "another"])).vectors
"""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from uuid import uuid4

import orjson

from lbcore.clock import MonotonicClock
from lbcore.dispatch import Dispatcher
from lbcore.errors import InvalidRequest
from lbcore.generation import Delta, Dialect, Embedding, Event, Finished, FinishReason, GenerationRequest
from lbcore.prefix import block_hashes
from lbcore.types import RouteFacts
from lbcore.wire.clients import GenerationClients
from lbcore.wire.routing_client import RoutingClient


def conversation_bytes(messages: Sequence[Mapping[str, object]]) -> bytes:
    """What is hashed of a conversation of texts: the same bytes as the gateway's, so that both share prefix hits."""
    return b"".join(f"\0{message.get('role')}\0{message.get('content')}".encode() for message in messages)


def token_bytes(tokens: Sequence[int], field: str = "prompt") -> bytes:
    """What is hashed of a prompt of token ids, the same bytes as the gateway's.

    Raises:
        InvalidRequest: something is no token id; blames `field`.
    """
    try:
        return struct.pack(f"<{len(tokens)}I", *tokens)
    except struct.error:
        raise InvalidRequest(f"The {field} is neither text nor a list of token ids.", param=field) from None


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer of one choice."""

    text: str
    finish_reason: FinishReason | None
    usage: Finished


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The vectors of inputs, in their order."""

    vectors: tuple[tuple[float, ...], ...]
    usage: Finished


class Client:
    """Speaks to a scheduler and its workers directly, without a gateway. Use as an async context manager.

    Extra keyword arguments of `chat`, `text`, `complete` and `embed` are fields of the OpenAI body (max_tokens,
    temperature, stop, seed, dimensions, ...). Errors are those of `lbcore.errors`.

    Where requests have to wait, those with the greatest `priority` go first, and among them tenants in turn.
    """

    def __init__(self, scheduler: str, *, timeout_s: float | None = 600.0, tenant: str = "", priority: int = 0) -> None:
        self._routing = RoutingClient(scheduler)
        self._workers = GenerationClients()
        self._dispatcher = Dispatcher(self._routing, self._workers, MonotonicClock())
        self._timeout_s = timeout_s
        self._tenant = tenant
        self._priority = priority

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends all connections."""
        await self._workers.close()
        await self._routing.close()

    async def chat(
        self, model: str, messages: Sequence[Mapping[str, object]], *, request_id: str = "", **fields: object
    ) -> AsyncGenerator[Event, None]:
        """The events of a chat answer as they come; the last one is Finished."""
        body = {"model": model, "messages": messages, **fields}
        prompt = conversation_bytes(messages)
        async with aclosing(self._events(Dialect.CHAT, model, body, prompt, request_id)) as events:
            async for event in events:
                yield event

    async def text(
        self, model: str, prompt: str | Sequence[int], *, request_id: str = "", **fields: object
    ) -> AsyncGenerator[Event, None]:
        """The events of a text completion as they come; `prompt` is text or token ids."""
        hashed = prompt.encode() if isinstance(prompt, str) else token_bytes(prompt)
        body = {"model": model, "prompt": prompt if isinstance(prompt, str) else list(prompt), **fields}
        async with aclosing(self._events(Dialect.COMPLETION, model, body, hashed, request_id)) as events:
            async for event in events:
                yield event

    async def complete(
        self, model: str, prompt: str | Sequence[int] | Sequence[Mapping[str, object]], **fields: object
    ) -> Answer:
        """A whole answer: to a conversation (a list of messages), or to a text or token prompt."""
        if fields.get("n", 1) != 1:
            raise InvalidRequest("complete gives one answer; for more read the events of chat or text.", param="n")
        if prompt and isinstance(prompt[0], Mapping):
            events = self.chat(model, prompt, **fields)  # type: ignore[arg-type]
        else:
            events = self.text(model, prompt, **fields)  # type: ignore[arg-type]
        parts: list[str] = []
        reason: FinishReason | None = None
        usage = Finished(0, 0, 0)
        async with aclosing(events):
            async for event in events:
                match event:
                    case Delta():
                        parts.append(event.text)
                        reason = event.finish_reason or reason
                    case Finished():
                        usage = event
        return Answer("".join(parts), reason, usage)

    async def embed(
        self,
        model: str,
        inputs: str | Sequence[str] | Sequence[Sequence[int]],
        *,
        request_id: str = "",
        **fields: object,
    ) -> Embeddings:
        """The vector of a text, or of each of several texts or lists of token ids."""
        several: list[str | Sequence[int]] = [inputs] if isinstance(inputs, str) else list(inputs)
        body = {"model": model, "input": several, **fields}
        hashed = b"\0".join(one.encode() if isinstance(one, str) else token_bytes(one, "input") for one in several)
        vectors: list[tuple[float, ...]] = []
        usage = Finished(0, 0, 0)
        async with aclosing(self._events(Dialect.EMBEDDING, model, body, hashed, request_id)) as events:
            async for event in events:
                match event:
                    case Embedding():
                        vectors.append(event.vector)
                    case Finished():
                        usage = event
        return Embeddings(tuple(vectors), usage)

    async def _events(
        self, dialect: Dialect, model: str, body: Mapping[str, object], prompt: bytes, request_id: str
    ) -> AsyncGenerator[Event, None]:
        request_id = request_id or uuid4().hex
        request = GenerationRequest(
            request_id, dialect, orjson.dumps(body), timeout_s=self._timeout_s, priority=self._priority
        )
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        facts = RouteFacts(
            request_id=request_id,
            model=model,
            prompt_bytes=len(prompt),
            # Of what is embedded no cache holds a beginning; the gateway hashes none either.
            prefix_hashes=() if dialect is Dialect.EMBEDDING else block_hashes(prompt),
            max_output_tokens=limit if type(limit) is int else 0,
            priority=self._priority,
            tenant=self._tenant,
        )
        async with aclosing(self._dispatcher.batches(facts, request)) as batches:
            async for batch in batches:
                for event in batch:
                    yield event
