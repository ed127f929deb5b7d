"""Hears what vLLM's engine core says of its prefix cache: over ZeroMQ, numbered, and said again where it got lost.

The order of what is heard is kept by the pure half, `InOrder`; the rest is sockets.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import structlog

from lbcore.clock import Clock
from lbcore.generation import GenerationRequest
from worker.engines.vllm.chain import BlockChain, prompt_keys
from worker.prefix_mirror import PrefixMirror

log = structlog.get_logger()

REPLAY_S = 2.0
"""What vLLM gets to say again what was lost; it looks for the question every 0.1 s."""
LONGEST_PATH = 107
"""Bytes in the path of a Unix socket."""
_END = (2**64 - 1).to_bytes(8, "big")
"""The number behind the last batch that is said again."""


class InOrder:
    """Batches of events in the order of their numbers, each once; after a gap that stays one, from nothing."""

    def __init__(self, chain: BlockChain) -> None:
        self._chain = chain
        self.expected = 0
        """The number of the next batch."""
        self.gaps = 0
        """How often something was lost for good."""

    def take(self, number: int, events: Iterable[Any]) -> None:
        """A batch. One that was heard before is passed over; one that comes too early means that others are lost."""
        if number < self.expected:
            return
        if number > self.expected:
            # What was lost may have removed anything.
            self.gaps += 1
            self._chain.cleared()
        self.expected = number + 1
        self._chain.follow(events)


class KvEvents:
    """The prefix cache of one engine core, as a mirror that is kept up to date from `start` to `close`."""

    def __init__(self, clock: Clock) -> None:
        """Raises OSError when there is no place for the sockets."""
        self._clock = clock
        self._mirror: PrefixMirror | None = None
        self._folder = TemporaryDirectory(prefix="lb-worker-")
        self._listening: asyncio.Task[None] | None = None
        if len(os.fsencode(self._path("replay"))) > LONGEST_PATH:
            self._folder.cleanup()
            raise OSError(f"the path {self._path('replay')} is too long for a socket")

    def config(self) -> Any:
        """vLLM's own description of where its core is to say what it stores and removes."""
        from vllm.config.kv_events import KVEventsConfig

        return KVEventsConfig(
            enable_kv_cache_events=True,
            publisher="zmq",
            endpoint=f"ipc://{self._path('events')}",
            replay_endpoint=f"ipc://{self._path('replay')}",
        )

    def start(self, block_size: int, models: Iterable[str]) -> PrefixMirror:
        """Listens from now on; what was said before is asked for when the next is heard. The core is there."""
        mirror = self._mirror = PrefixMirror(block_size, models)
        self._listening = asyncio.get_running_loop().create_task(self._listen(BlockChain(mirror)))
        return mirror

    def prompt(self, request: GenerationRequest, model: str, tokens: Sequence[int], adapter: str) -> None:
        """A request's prompt goes into the core, for a model of this name on top of which `adapter` is, if any."""
        mirror = self._mirror
        if mirror is not None and request.prefix_hashes:
            mirror.prompt(request, model, prompt_keys(tokens, mirror.block_size, adapter), len(tokens))

    def ended(self, request_id: str) -> None:
        """A request has left the core."""
        if self._mirror is not None:
            self._mirror.ended(request_id, self._clock.now())

    async def close(self) -> None:
        """Listens no more. Safe to call twice."""
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        self._folder.cleanup()

    def _path(self, name: str) -> str:
        return os.path.join(self._folder.name, name)

    async def _listen(self, chain: BlockChain) -> None:
        try:
            await self._hear(chain)
        except Exception:
            # Of a vLLM that speaks otherwise than the one this was written for: what was true once is true no more.
            log.exception("prefix_events_failed")
            chain.cleared()

    async def _hear(self, chain: BlockChain) -> None:
        import zmq
        import zmq.asyncio
        from msgspec.msgpack import Decoder
        from vllm.distributed.kv_events import KVEventBatch

        decode: Callable[[bytes], Any] = Decoder(KVEventBatch).decode
        order = InOrder(chain)
        with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as socket:
            # What is not read in time waits here rather than being thrown away there.
            socket.set_hwm(0)
            socket.subscribe(b"")
            socket.connect(f"ipc://{self._path('events')}")
            while True:
                _, number, payload = await socket.recv_multipart()
                await self._take(order, int.from_bytes(number, "big"), payload, decode, context)

    async def _take(
        self, order: InOrder, number: int, payload: bytes, decode: Callable[[bytes], Any], context: Any
    ) -> None:
        lost = number - order.expected
        if lost > 0:
            gaps = order.gaps
            for earlier, again in await self._replay(context, order.expected):
                if earlier < number:
                    order.take(earlier, decode(again).events)
            order.take(number, decode(payload).events)
            log.warning("prefix_events_lost", batches=lost, recovered=gaps == order.gaps)
        else:
            order.take(number, decode(payload).events)

    async def _replay(self, context: Any, begin: int) -> list[tuple[int, bytes]]:
        """Batches from this number on, as far as vLLM has them still."""
        import zmq

        batches: list[tuple[int, bytes]] = []
        with context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            socket.connect(f"ipc://{self._path('replay')}")
            await socket.send_multipart((b"", begin.to_bytes(8, "big")))
            try:
                async with asyncio.timeout(REPLAY_S):
                    while (said := await socket.recv_multipart())[-2] != _END:
                        batches.append((int.from_bytes(said[-2], "big"), said[-1]))
            except TimeoutError:
                pass
        return batches
