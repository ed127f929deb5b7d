"""The vLLM engine: requests go through vLLM's own serving, load comes from its own scheduler's statistics."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import Any

import structlog

from lbcore.clock import Clock
from lbcore.errors import (
    Cancelled,
    ConfigError,
    EngineFailed,
    InvalidRequest,
    LoadBalancerError,
    WorkerUnreachable,
)
from lbcore.generation import Delta, Embedding, Failed, Finished, GenerationRequest, Started
from lbcore.types import Capacity
from worker.engine import Emit, EngineInfo, EngineLoad
from worker.engines.begun import refusal
from worker.engines.ends import closed, surprised
from worker.engines.vllm.arguments import VllmOptions, read_arguments
from worker.engines.vllm.events import KvEvents
from worker.engines.vllm.serving import Serving
from worker.engines.vllm.speed import EngineSpeed
from worker.engines.vllm.statistics import CoreStatistics, logger_factory
from worker.prefix_mirror import PrefixMirror

__all__ = ["VllmEngine", "VllmOptions"]

log = structlog.get_logger()

WATCH_S = 1.0
"""How often the engine core is looked after."""
CLOSE_TIMEOUT_S = 10.0
"""What the engine core gets to end by itself; then it is killed."""


class _Call:
    """One request in vLLM."""

    __slots__ = ("emit", "error", "prompt_tokens", "sequences", "started", "task", "told", "turn")

    def __init__(self, emit: Emit, turn: tuple[int, int]) -> None:
        self.emit = emit
        self.turn = turn
        """Its place among those that wait; vLLM takes up the lowest first."""
        self.error: LoadBalancerError | None = None
        """What it ends in when it was stopped from outside."""
        self.prompt_tokens = 0
        self.sequences = 0
        """How many of its sequences are in the engine core; 0 until its prompt was handed over."""
        self.started = False
        self.told = False
        """Whether a delta was emitted."""
        self.task: asyncio.Task[Finished]


class VllmEngine:
    """Every request is one task, from the body to the last event."""

    def __init__(self, model: str, names: tuple[str, ...], options: VllmOptions, clock: Clock) -> None:
        self._model = model
        self._names = names
        self._options = options
        self._clock = clock
        self._engine: Any = None
        self._serving: Serving | None = None
        self._statistics = CoreStatistics()
        self._speed = EngineSpeed()
        self._kv_blocks = 0
        self._block_size = 1
        self._calls: dict[str, _Call] = {}
        self._waiting: set[_Call] = set()
        self._serial = 0
        self._progress_at = 0.0
        self._watching: asyncio.Task[None] | None = None
        self._events: KvEvents | None = None
        """What the core says of its prefix cache, where it does."""
        self._broken = asyncio.Event()
        self._failure = ""
        self._closed = False

    async def start(self) -> EngineInfo:
        arguments = await asyncio.to_thread(read_arguments, self._options, self._model, self._names)
        try:
            self._engine = await asyncio.to_thread(self._launch, arguments)
            prefixes = self._mirror(arguments)
            self._serving = await Serving.build(self._engine, arguments, self._speed.prefilled)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"--model: vLLM cannot serve {self._model}: {_one_line(error)}") from None
        config = self._engine.vllm_config
        self._kv_blocks, self._block_size = config.cache_config.num_gpu_blocks or 0, config.cache_config.block_size
        self._watching = asyncio.create_task(self._watch())
        return EngineInfo(
            context_length=config.model_config.max_model_len,
            capacity=Capacity(
                max_sequences=config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size,
                kv_blocks=self._kv_blocks,
                kv_block_size=self._block_size,
                adapter_slots=config.lora_config.max_loras if config.lora_config is not None else 0,
            ),
            adapters=self._serving.adapters,
            continues=self._serving.generates,
            prefixes=prefixes,
        )

    def submit(self, request: GenerationRequest, emit: Emit) -> None:
        loop = asyncio.get_running_loop()
        if self._closed or self._failure or self._serving is None:
            loop.call_soon(emit, Failed(WorkerUnreachable("The engine is closed.")))
        elif request.request_id in self._calls:
            loop.call_soon(emit, Failed(InvalidRequest("A request with this id is running.")))
        else:
            self._serial += 1
            priority = request.priority if self._serving.keeps_priority else 0
            call = self._calls[request.request_id] = _Call(emit, (-priority, self._serial))
            self._waiting.add(call)
            if len(self._calls) == 1:
                self._progress_at = self._clock.now()
            call.task = loop.create_task(self._run(self._serving, request, call))
            call.task.add_done_callback(lambda _: self._ended(request, call))

    def abort(self, request_id: str) -> None:
        call = self._calls.get(request_id)
        if call is not None:
            self._stop(call, Cancelled("The request was aborted."))

    def load(self) -> EngineLoad:
        # An idle core sends no statistics; what it said last may be of requests that were aborted since.
        used = math.ceil(self._statistics.kv_usage * self._kv_blocks) if self._calls else 0
        return EngineLoad(
            kv_used_blocks=used,
            kv_cached_blocks=max(0, min(self._kv_blocks, self._statistics.blocks_filled) - used),
            prefill_tokens_per_s=self._speed.prefill_tokens_per_s,
            step_time_ms=self._speed.step_time_ms,
        )

    async def failed(self) -> str:
        await self._broken.wait()
        return self._failure

    async def close(self) -> None:
        self._closed = True
        if self._watching is not None:
            self._watching.cancel()
        calls = [*self._calls.values()]
        for call in calls:
            self._stop(call, closed(call.told))
        await asyncio.gather(*(call.task for call in calls), return_exceptions=True)
        engine, self._engine, self._serving = self._engine, None, None
        if engine is not None:
            # It would take the end of the core for its death, and say so.
            handler = getattr(engine, "output_handler", None)
            if handler is not None:
                handler.cancel()
                await asyncio.gather(handler, return_exceptions=True)
            await asyncio.to_thread(engine.shutdown, CLOSE_TIMEOUT_S)
        if self._events is not None:
            await self._events.close()

    def _launch(self, arguments: Any) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        engine_arguments = AsyncEngineArgs.from_cli_args(arguments)
        config = engine_arguments.create_engine_config(UsageContext.OPENAI_API_SERVER)
        if self._options.prefix_events:
            self._ask_for_events(config)
        return AsyncLLM.from_vllm_config(
            config,
            stat_loggers=[logger_factory(self._statistics, self._speed, self._stepped)],
            enable_log_requests=engine_arguments.enable_log_requests,
            disable_log_stats=engine_arguments.disable_log_stats,
        )

    def _ask_for_events(self, config: Any) -> None:
        """Has the core say what its prefix cache holds, unless it has none or says so to somebody else already.

        Of several cores nobody here knows which one a request goes to, and what one holds is of no use to the others.
        """
        if not config.cache_config.enable_prefix_caching or config.parallel_config.data_parallel_size > 1:
            return
        if config.kv_events_config is not None:
            log.info("prefix_events_elsewhere", reason="--kv-events-config sends them to somebody else")
            return
        try:
            self._events = KvEvents(self._clock)
        except OSError as error:
            log.warning("prefix_events_off", reason=str(error))
            return
        config.kv_events_config = self._events.config()

    def _mirror(self, arguments: Any) -> PrefixMirror | None:
        if self._events is None:
            return None
        adapters = (module.name for module in arguments.lora_modules or ())
        return self._events.start(self._engine.vllm_config.cache_config.block_size, [*self._names, *adapters])

    async def _run(self, serving: Serving, request: GenerationRequest, call: _Call) -> Finished:
        """Emits everything but the end."""

        def entered(tokens: int, sequences: int) -> None:
            call.prompt_tokens += tokens
            call.sequences += sequences

        def left() -> None:
            call.sequences -= 1

        prompted = None
        if self._events is not None and request.prefix_hashes:
            prompted = partial(self._events.prompt, request)
        async for event in serving.events(request, entered, left, prompted):
            match event:
                case Finished():
                    return event
                case Started():
                    if call.started:
                        continue
                    self._take_up(call)
                case Delta() | Embedding():
                    call.told = True
            call.emit(event)
            if call.error is not None:
                # Whoever was told may have stopped the request; the task is cancelled only where it waits.
                raise call.error
        raise EngineFailed("vLLM broke off the answer.")

    def _ended(self, request: GenerationRequest, call: _Call) -> None:
        """The request's task is over, perhaps before it began."""
        del self._calls[request.request_id]
        self._waiting.discard(call)
        call.sequences = 0
        if self._events is not None:
            self._events.ended(request.request_id)
        if call.task.cancelled() or call.error is not None:
            call.emit(Failed(call.error or Cancelled("The request was stopped.")))
            return
        error = call.task.exception()
        if error is None:
            self._statistics.filled(call.task.result(), self._block_size)
            call.emit(call.task.result())
        elif isinstance(error, LoadBalancerError):
            call.emit(Failed(refusal(error, request.continuation)))
        else:
            call.emit(Failed(surprised(error)))

    def _stop(self, call: _Call, error: LoadBalancerError) -> None:
        if call.error is None:
            call.error = error
            call.task.cancel()

    def _stepped(self) -> None:
        """The engine core has made a step."""
        self._progress_at = self._clock.now()
        # Those whose first token came in this step tell so themselves, with what was cached; their tasks run first.
        asyncio.get_running_loop().call_soon(self._mark_running)

    def _mark_running(self) -> None:
        if not self._waiting:
            return
        waiting = sum(call.sequences for call in self._waiting)
        running = self._statistics.running - (sum(call.sequences for call in self._calls.values()) - waiting)
        for call in sorted(self._waiting, key=lambda call: call.turn):
            if running <= 0:
                return
            if call.sequences:
                running -= call.sequences
                self._take_up(call)
                call.emit(Started(call.prompt_tokens))

    def _take_up(self, call: _Call) -> None:
        call.started = True
        self._waiting.discard(call)

    async def _watch(self) -> None:
        """Finds out when the engine core is dead, or alive and doing nothing."""
        while True:
            await self._clock.sleep_until(self._clock.now() + WATCH_S)
            if self._engine.errored:
                return self._break("vLLM's engine core has died.")
            waits = any(call.sequences for call in self._calls.values())
            if not waits:
                self._progress_at = self._clock.now()
            silent_s = self._clock.now() - self._progress_at
            if silent_s > self._options.hang_timeout_s:
                return self._break(f"vLLM's engine core hangs: requests wait, and no step for {silent_s:.0f} s.")

    def _break(self, why: str) -> None:
        self._failure = why
        self._broken.set()
        for call in [*self._calls.values()]:
            self._stop(call, EngineFailed(why))


def _one_line(error: Exception) -> str:
    text = str(error)
    if isinstance(error, ValueError) and hasattr(error, "errors"):
        # Pydantic's own text goes on with the whole configuration.
        first = error.errors()[0]
        text = " ".join([*map(str, first["loc"]), first["msg"]])
    return " ".join(text.split())[:400] or type(error).__name__
