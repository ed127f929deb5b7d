"""Clients that ask on and on, read every byte strictly, and know what each answer should have been."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import aiohttp
import orjson

HUNG_S = 60.0
"""An answer that is not there after so long will not come: no fault here lasts half as long."""


class Fate(StrEnum):
    """How a request ended for its client."""

    SAVED = "saved"
    """With the whole answer, word for word."""
    REFUSED = "failed with a clean error"
    """With OpenAI's error object, as a status or as an event, and a connection that goes on."""
    BROKEN = "broken off"
    """With half of an answer and no word why."""
    WRONG = "wrong"
    """With an answer that lacks tokens, or has some twice."""
    HUNG = "hung"


class Ask(NamedTuple):
    """One question."""

    model: str
    content: str
    max_tokens: int
    stream: bool = True

    def body(self) -> dict[str, object]:
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": self.content}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": self.stream,
        }


class Reply(NamedTuple):
    """What came."""

    text: str
    finish_reason: str
    error: str = ""


@dataclass
class Crowd:
    """Asks a gateway, and counts what becomes of it."""

    url: str
    fates: Counter[Fate] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)
    """What went wrong, one line each."""
    first_tokens: int = 0
    """Answers whose first token is there, so far."""

    async def learn(self, asks: Sequence[Ask]) -> dict[Ask, Reply]:
        """The answers when nothing goes wrong."""
        async with self._session() as http:
            replies = await asyncio.gather(*(self._reply(http, ask) for ask in asks))
        for reply in replies:
            assert not reply.error, reply
        return dict(zip(asks, replies, strict=True))

    async def one(self, http: aiohttp.ClientSession, ask: Ask, expected: Reply) -> Fate:
        """Asks once."""
        try:
            async with asyncio.timeout(HUNG_S):
                reply = await self._reply(http, ask)
        except TimeoutError:
            return self._count(Fate.HUNG, f"{ask}")
        except (aiohttp.ClientError, ValueError) as error:
            return self._count(Fate.BROKEN, f"{type(error).__name__}: {error}")
        if reply.error:
            return self._count(Fate.REFUSED, reply.error)
        if reply != expected:
            return self._count(Fate.WRONG, f"{reply.text!r} in place of {expected.text!r}")
        return self._count(Fate.SAVED, "")

    async def all(self, asks: Sequence[Ask], expected: dict[Ask, Reply]) -> list[Fate]:
        """Asks all at once."""
        async with self._session() as http:
            return [*await asyncio.gather(*(self.one(http, ask, expected[ask]) for ask in asks))]

    async def keep_asking(self, asks: Sequence[Ask], expected: dict[Ask, Reply], over: asyncio.Event) -> None:
        """Each asks again as soon as it has its answer, until it is over; then what is under way comes to its end."""

        async def client(http: aiohttp.ClientSession, ask: Ask) -> None:
            while not over.is_set():
                await self.one(http, ask, expected[ask])

        async with self._session() as http:
            await asyncio.gather(*(client(http, ask) for ask in asks))

    def _count(self, fate: Fate, what: str) -> Fate:
        self.fates[fate] += 1
        if what:
            self.told.append(f"{fate}: {what}")
        return fate

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            self.url, connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
        )

    async def _reply(self, http: aiohttp.ClientSession, ask: Ask) -> Reply:
        async with http.post("/v1/chat/completions", json=ask.body()) as response:
            if response.status != 200:
                error = orjson.loads(await response.read())["error"]
                return Reply("", "", f"{response.status} {error['code']}")
            if not ask.stream:
                choice = orjson.loads(await response.read())["choices"][0]
                return Reply(choice["message"]["content"], choice["finish_reason"])
            return await self._read_stream(response)

    async def _read_stream(self, response: aiohttp.ClientResponse) -> Reply:
        texts: list[str] = []
        roles, finish_reason, error, done = 0, "", "", False
        while line := await response.content.readline():
            if line == b"\n":
                continue
            if done or not line.startswith(b"data: "):
                raise ValueError(f"{line!r} in a stream")
            data = line[6:].strip()
            if data == b"[DONE]":
                done = True
                continue
            event = orjson.loads(data)
            if "error" in event:
                error = f"in the stream: {event['error']['code']}"
                continue
            for choice in event["choices"]:
                delta = choice["delta"]
                roles += "role" in delta
                text = delta.get("content") or ""
                if text and not texts:
                    self.first_tokens += 1
                texts += [text] if text else []
                finish_reason = choice["finish_reason"] or finish_reason
        if not error and not done:
            raise ValueError("a stream without an end")
        if roles > 1:
            raise ValueError(f"{roles} roles in a stream")
        return Reply("".join(texts), finish_reason, error)
