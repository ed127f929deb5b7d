"""The engine for every causal language model that Hugging Face transformers loads, by its own continuous batching.

Requests wait here, by priority and then age: the library would look at each that waits in every step. Tokens are
computed in a thread of their own (`runner.py`); what it tells comes to the event loop once for each step.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import count
from random import Random
from typing import TYPE_CHECKING, TypeVar

from lbcore.clock import Clock
from lbcore.errors import Cancelled, ConfigError, EngineFailed, InvalidRequest, LoadBalancerError, WorkerUnreachable
from lbcore.generation import Failed, GenerationRequest
from lbcore.types import Capacity
from worker.engine import Emit, EngineInfo, EngineLoad
from worker.engines.transformers.body import read_body
from worker.engines.transformers.options import TransformersOptions
from worker.engines.transformers.request import (
    ChoiceSequence,
    Encoded,
    Request,
    check_tokens,
    encode,
    make_sequences,
    told,
)

if TYPE_CHECKING:
    from worker.engines.transformers.model import LoadedModel
    from worker.engines.transformers.runner import Gain, Runner

__all__ = ["TransformersEngine", "TransformersOptions"]

N = TypeVar("N")

PACKAGES = ("torch", "transformers", "psutil")
"""Without the last the library takes a machine for one without memory."""

STOP_WITHIN_S = 10.0
"""How long closing waits for the step that is being computed."""
WATCH_S = 1.0
"""At most so often the watchdog looks."""


class TransformersEngine:
    """A model in this process, and the requests for it."""

    def __init__(self, model: str, options: TransformersOptions, clock: Clock) -> None:
        self._model = model
        self._options = options
        self._clock = clock
        self._loaded: LoadedModel | None = None
        self._runner: Runner | None = None
        self._context_length = 0
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="transformers-tokenizer")
        self._seeds = Random(options.seed if options.seed >= 0 else None)
        self._serial = count()
        self._requests: dict[str, Request] = {}
        self._waiting: list[tuple[int, int, int, ChoiceSequence]] = []
        self._inside: dict[str, ChoiceSequence] = {}
        self._busy = asyncio.Event()
        self._busy_since = 0.0
        self._watchdog: asyncio.Task[None] | None = None
        self._broken = asyncio.Event()
        self._failure = ""
        self._closed = False

    async def start(self) -> EngineInfo:
        options = self._options
        if options.max_batch_tokens < options.max_num_seqs:
            raise ConfigError(
                f"--transformers-max-batch-tokens: {options.max_batch_tokens} is less than "
                f"--transformers-max-num-seqs, {options.max_num_seqs}"
            )
        loop = asyncio.get_running_loop()
        self._loaded, self._runner = loaded, runner = await asyncio.to_thread(self._load, loop)
        # The longest sequence must fit the cache alone, or it could never end.
        self._context_length = min(loaded.context_length, runner.kv_blocks * options.block_size)
        runner.start()
        self._watchdog = asyncio.create_task(self._watch(runner), name="transformers-watchdog")
        return EngineInfo(
            context_length=self._context_length,
            capacity=Capacity(
                max_sequences=options.max_num_seqs,
                kv_blocks=runner.kv_blocks,
                kv_block_size=options.block_size,
            ),
            continues=True,
        )

    def submit(self, request: GenerationRequest, emit: Emit) -> None:
        try:
            self._accept(request, emit)
        except Exception as error:
            asyncio.get_running_loop().call_soon(emit, Failed(told(error, request.continuation)))

    def abort(self, request_id: str) -> None:
        request = self._requests.get(request_id)
        if request is not None:
            emit = request.emit
            self._forget(request)
            asyncio.get_running_loop().call_soon(emit, Failed(Cancelled("The request was aborted.")))

    def load(self) -> EngineLoad:
        runner = self._runner
        if runner is None:
            return EngineLoad()
        return EngineLoad(
            kv_used_blocks=runner.kv_used_blocks,
            kv_cached_blocks=runner.kv_cached_blocks,
            prefill_tokens_per_s=runner.meter.prefill_tokens_per_s,
            step_time_ms=runner.meter.step_time_ms,
            attention_ratio=runner.meter.attention_ratio,
        )

    async def failed(self) -> str:
        await self._broken.wait()
        return self._failure

    async def close(self) -> None:
        self._closed = True
        for request in [*self._requests.values()]:
            self._fail(request, request.closing())
        if self._watchdog is not None:
            self._watchdog.cancel()
            await asyncio.gather(self._watchdog, return_exceptions=True)
            self._watchdog = None
        # What `submit` and `abort` left to the event loop comes out before this returns.
        await asyncio.sleep(0)
        runner, self._runner, self._loaded = self._runner, None, None
        if runner is not None:
            # A thread that hangs was waited for long enough, and one that died is about to end.
            await asyncio.to_thread(runner.stop, 1.0 if self._failure else STOP_WITHIN_S)
        self._encoder.shutdown(wait=False, cancel_futures=True)

    def _load(self, loop: asyncio.AbstractEventLoop) -> tuple[LoadedModel, Runner]:
        try:
            from worker.engines.transformers.model import load_model
            from worker.engines.transformers.runner import Listener, Runner
        except ModuleNotFoundError as error:
            if error.name not in PACKAGES:
                raise ConfigError(f"--engine: another version of transformers is needed: {error}") from None
            raise ConfigError(
                "--engine: transformers needs the packages torch and transformers: pip install 'lbcore[transformers]'"
            ) from None
        except ImportError as error:
            raise ConfigError(f"--engine: another version of transformers is needed: {error}") from None
        loaded = load_model(self._model, self._options)
        listener = Listener(
            begun=partial(_hand_over, loop, self._begun),
            gained=partial(_hand_over, loop, self._gained),
            died=partial(_hand_over, loop, self._died),
        )
        return loaded, Runner(loaded, self._options, self._clock, listener)

    def _accept(self, request: GenerationRequest, emit: Emit) -> None:
        loaded = self._loaded
        if self._closed or self._failure or loaded is None:
            raise WorkerUnreachable("The engine is closed.")
        if request.request_id in self._requests:
            raise InvalidRequest("A request with this id is running.")
        ask = read_body(request, loaded.defaults)
        check_tokens(ask, loaded.vocabulary.size)
        turn = -request.priority, next(self._serial)
        accepted = Request(request.request_id, emit, ask, turn, request.continuation)
        encoding = asyncio.get_running_loop().run_in_executor(
            self._encoder, encode, ask, request.continuation, loaded.vocabulary
        )
        self._requests[request.request_id] = accepted
        encoding.add_done_callback(partial(self._encoded, accepted))

    def _encoded(self, request: Request, encoding: asyncio.Future[Encoded]) -> None:
        if encoding.cancelled():
            return
        error = encoding.exception()
        if request.over:
            return
        try:
            if error is not None:
                raise error
            self._queue(request, encoding.result())
        except Exception as problem:
            self._fail(request, told(problem, request.continuation))

    def _queue(self, request: Request, encoded: Encoded) -> None:
        assert self._loaded is not None
        make_sequences(
            request,
            encoded,
            self._context_length,
            self._loaded.vocabulary,
            self._loaded.end_tokens,
            self._seeds,
        )
        for index, sequence in enumerate(request.sequences):
            if sequence.is_at_its_end:
                self._take(sequence, (), True)
                continue
            heapq.heappush(self._waiting, (*request.turn, index, sequence))
        self._admit()

    def _admit(self) -> None:
        """Lets sequences in while the first that waits finds room."""
        assert self._runner is not None
        while self._waiting and len(self._inside) < self._options.max_num_seqs:
            *_, sequence = heapq.heappop(self._waiting)
            if not self._inside:
                self._busy_since = self._clock.now()
                self._busy.set()
            self._inside[sequence.key] = sequence
            self._runner.add(sequence.key, sequence.prompt, sequence.max_tokens, sequence.chooser)

    def _leave(self, sequence: ChoiceSequence) -> None:
        """A sequence is over, as far as it got."""
        if self._inside.pop(sequence.key, None) is not None and not self._inside:
            self._busy.clear()

    def _forget(self, request: Request) -> None:
        """Frees what a request holds; it tells no more."""
        request.over = True
        self._requests.pop(request.request_id, None)
        for sequence in request.sequences:
            if sequence.key in self._inside:
                self._leave(sequence)
                if self._runner is not None:
                    self._runner.cancel(sequence.key)
        self._waiting = [entry for entry in self._waiting if not entry[-1].request.over]
        heapq.heapify(self._waiting)
        if not (self._closed or self._failure):
            self._admit()

    def _fail(self, request: Request, error: LoadBalancerError) -> None:
        emit = request.emit
        self._forget(request)
        emit(Failed(error))

    def _begun(self, sequences: Sequence[tuple[str, int]]) -> None:
        for key, cached_tokens in sequences:
            sequence = self._inside.get(key)
            if sequence is None:
                continue
            sequence.request.begin(sequence.prompt_index, cached_tokens)

    def _gained(self, gains: Sequence[Gain]) -> None:
        for gain in gains:
            sequence = self._inside.get(gain.key)
            if sequence is None:
                continue
            if gain.failed:
                self._fail(sequence.request, EngineFailed("The engine failed on the request."))
            else:
                self._take(sequence, gain.tokens, gain.is_over)
        if self._runner is not None and not (self._closed or self._failure):
            self._admit()

    def _take(self, sequence: ChoiceSequence, tokens: Sequence[int], is_over: bool) -> None:
        assert self._loaded is not None
        assert self._runner is not None
        request = sequence.request
        try:
            delta = sequence.take(tokens, is_over, self._loaded.vocabulary)
        except Exception as error:
            self._fail(request, told(error))
            return
        if sequence.choice.ended:
            self._leave(sequence)
            if not is_over:
                # It met a stop string, of which the library knows nothing.
                self._runner.cancel(sequence.key)
        if delta is not None:
            request.gain(delta)
        if request.is_complete and not request.over:
            request.over = True
            del self._requests[request.request_id]
            request.emit(request.finished())

    def _died(self, error: str) -> None:
        self._break(f"transformers failed in a step with {error}.")

    def _break(self, why: str) -> None:
        """Nothing will be computed any more: ends every request."""
        if not (self._failure or self._closed):
            self._failure = why
            self._waiting = []
            for request in [*self._requests.values()]:
                self._fail(request, EngineFailed(why))
            self._broken.set()

    async def _watch(self, runner: Runner) -> None:
        """Breaks the engine when there is work and no step ends."""
        limit_s = self._options.hang_timeout_s
        while True:
            await self._busy.wait()
            due = max(runner.beat, self._busy_since) + limit_s
            if self._clock.now() >= due:
                self._break(f"transformers finished no step within {limit_s:g} seconds.")
                return
            await self._clock.sleep_until(max(due, self._clock.now() + WATCH_S))


def _hand_over(loop: asyncio.AbstractEventLoop, hear: Callable[[N], None], news: N) -> None:
    # Nobody hears what comes after the event loop's end.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(hear, news)
