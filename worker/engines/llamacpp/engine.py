"""The embedded engine: llama.cpp in this process, through the package xllamacpp.

llama.cpp serves HTTP on a loopback port of its own, with a key that only this process knows; docs/adr says why we go
through it. A request that waits inside llama.cpp cannot be cancelled there, so requests wait here: never more are
inside than it has sequences.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from itertools import islice
from pathlib import Path

from lbcore.clock import Clock
from lbcore.errors import (
    Cancelled,
    EngineFailed,
    InvalidRequest,
    LoadBalancerError,
    WorkerUnreachable,
)
from lbcore.generation import Failed, GenerationRequest
from lbcore.types import Capacity
from worker.engine import Emit, EngineInfo, EngineLoad
from worker.engines.ends import closed, surprised
from worker.engines.llamacpp.body import Limits, read_body
from worker.engines.llamacpp.call import Call
from worker.engines.llamacpp.gguf import read_gguf
from worker.engines.llamacpp.meter import SpeedMeter
from worker.engines.llamacpp.server import LlamaCppOptions, LlamaCppServer

__all__ = ["LlamaCppEngine", "LlamaCppOptions"]

KV_BLOCK_SIZE = 16
"""llama.cpp keeps its cache by the token; blocks of 16, the size most engines use, make its numbers comparable."""


class LlamaCppEngine:
    """Requests wait here, by priority and then age, and run in llama.cpp.

    A request takes one sequence for each of its choices. One with more choices than there are sequences takes all, and
    llama.cpp runs the rest when some are done.
    """

    def __init__(self, model: Path, options: LlamaCppOptions, clock: Clock) -> None:
        self._model = model
        self._options = options
        self._clock = clock
        self._server: LlamaCppServer | None = None
        self._context_length = 0
        self._limits = Limits(options.n_parallel, tools=False)
        self._meter = SpeedMeter()
        self._calls: dict[str, Call] = {}
        self._turns: list[tuple[int, int]] = []
        self._waiting: dict[tuple[int, int], Call] = {}
        self._serial = 0
        self._free = options.n_parallel
        self._inside: set[Call] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._left_behind: deque[int] = deque(maxlen=options.n_parallel)
        self._idle = asyncio.Event()
        self._broken = asyncio.Event()
        self._failure = ""
        self._closed = False

    async def start(self) -> EngineInfo:
        head = await asyncio.to_thread(read_gguf, self._model)
        self._server = await LlamaCppServer.launch(self._model, head, self._options)
        self._context_length = self._server.context_length
        self._limits = Limits(self._options.n_parallel, self._server.template_has_tools)
        n_parallel = self._options.n_parallel
        return EngineInfo(
            context_length=self._context_length,
            capacity=Capacity(
                max_sequences=n_parallel,
                kv_blocks=n_parallel * self._context_length // KV_BLOCK_SIZE,
                kv_block_size=KV_BLOCK_SIZE,
            ),
            continues=True,
        )

    def submit(self, request: GenerationRequest, emit: Emit) -> None:
        try:
            self._accept(request, emit)
        except LoadBalancerError as error:
            asyncio.get_running_loop().call_soon(emit, Failed(error))
        except Exception as error:
            asyncio.get_running_loop().call_soon(emit, Failed(surprised(error)))

    def abort(self, request_id: str) -> None:
        call = self._calls.get(request_id)
        if call is not None:
            self._stop(call, Cancelled("The request was aborted."))

    def load(self) -> EngineLoad:
        # A sequence keeps what its last request left; llama.cpp takes the one idle longest unless another has a prefix.
        idle = islice(reversed(self._left_behind), self._free)
        return EngineLoad(
            kv_used_blocks=sum(_blocks(call.answer.kv_tokens) for call in self._inside if not call.ended),
            kv_cached_blocks=sum(map(_blocks, idle)),
            prefill_tokens_per_s=self._meter.prefill_tokens_per_s,
            step_time_ms=self._meter.step_time_ms,
        )

    async def failed(self) -> str:
        await self._broken.wait()
        return self._failure

    async def close(self) -> None:
        self._closed = True
        for call in [*self._calls.values()]:
            self._stop(call, closed(bool(call.answer.deltas)))
        # What was left to the event loop comes out, then what llama.cpp has to let go of.
        await asyncio.sleep(0)
        if self._inside:
            self._idle.clear()
            await self._idle.wait()
        server, self._server = self._server, None
        if server is not None:
            await server.close()

    def _accept(self, request: GenerationRequest, emit: Emit) -> None:
        if self._closed or self._failure:
            raise WorkerUnreachable("The engine is closed.")
        running = self._calls.get(request.request_id)
        if running is not None and not running.ended:
            raise InvalidRequest("A request with this id is running.")
        ask = read_body(request, self._limits)
        call = Call(request.request_id, ask, emit, self._context_length, self._heard, self._over)
        self._calls[request.request_id] = call
        self._serial += 1
        call.turn = (-request.priority, self._serial)
        self._waiting[call.turn] = call
        heapq.heappush(self._turns, call.turn)
        self._admit()

    def _admit(self) -> None:
        """Lets requests in while the first in the queue finds enough sequences free: nobody overtakes it."""
        while self._turns and not (self._closed or self._failure):
            call = self._waiting.get(self._turns[0])
            if call is not None:
                if self._sequences(call) > self._free:
                    return
                del self._waiting[call.turn]
                self._free -= self._sequences(call)
                self._inside.add(call)
                self._connect_soon(call)
            heapq.heappop(self._turns)

    def _leave_queue(self, call: Call) -> None:
        """Only the turn stays in the heap, and the heap never grows to more than twice what waits."""
        del self._waiting[call.turn]
        if len(self._turns) > 2 * len(self._waiting):
            self._turns = [*self._waiting]
            heapq.heapify(self._turns)

    def _connect_soon(self, call: Call) -> None:
        connecting = self._connect(call)
        try:
            task = asyncio.create_task(connecting)
        except Exception as error:
            connecting.close()
            asyncio.get_running_loop().call_soon(call.fail, surprised(error))
        else:
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, call: Call) -> None:
        assert self._server is not None
        call.api_key = self._server.api_key
        try:
            if len(call.ask.prompts) > 1:
                # llama.cpp tells of each when it comes to it, and Started must know them all.
                call.answer.expected_prompt_tokens = await self._server.count_tokens(call.ask.prompts)
            if call.ask.begun and not call.go_on(await self._server.count_text(call.ask.begun)):
                return
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: call, self._server.host, self._server.port)
        except ConnectionRefusedError:
            self._break("llama.cpp's server is gone.")
            call.fail(EngineFailed(self._failure))
        except OSError as error:
            call.fail(EngineFailed(f"llama.cpp's server cannot be reached: {error}."))
        except Exception as error:
            # Nobody looks at this task: what it does not tell the request, the request waits for without end.
            call.fail(surprised(error))

    def _heard(self, call: Call) -> None:
        answer = call.answer
        if answer.started:
            self._meter.reached(
                call,
                answer.computed_prompt_tokens,
                answer.prefilled,
                answer.deltas,
                self._sequences(call),
                self._clock.now(),
            )

    def _over(self, call: Call) -> None:
        if self._calls.get(call.request_id) is call:
            del self._calls[call.request_id]
        if call in self._inside:
            self._inside.discard(call)
            self._free += self._sequences(call)
            self._left_behind.append(call.answer.kv_tokens)
            self._meter.left(call, self._clock.now())
            self._admit()
            if not self._inside:
                self._idle.set()

    def _stop(self, call: Call, error: LoadBalancerError) -> None:
        if call in self._inside:
            call.stop(error)
        else:
            del self._calls[call.request_id]
            self._leave_queue(call)
            asyncio.get_running_loop().call_soon(call.fail, error)
            # Those behind it may need fewer sequences than it did.
            self._admit()

    def _break(self, why: str) -> None:
        """llama.cpp is gone for good: ends every request."""
        if not self._failure:
            self._failure = why
            self._broken.set()
            for call in [*self._calls.values()]:
                self._stop(call, EngineFailed(why))

    def _sequences(self, call: Call) -> int:
        return min(call.ask.choices, self._options.n_parallel)


def _blocks(tokens: int) -> int:
    return -(-tokens // KV_BLOCK_SIZE)
