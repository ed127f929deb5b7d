"""The simulated engine: `SimBatch` driven by a clock, answering with deterministic words. It computes nothing.

A first-class engine for tests, demonstrations and measurements of everything around an engine. The same body gets the
same answer from every worker with the same seed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from lbcore.clock import Clock
from lbcore.config import at_least, option, positive
from lbcore.errors import (
    Cancelled,
    ConfigError,
    EngineFailed,
    InvalidRequest,
    LoadBalancerError,
    WorkerUnreachable,
)
from lbcore.generation import Event, Failed, Finished, GenerationRequest, Started
from lbcore.types import Capacity
from worker.engine import Emit, EngineInfo, EngineLoad
from worker.engines import fields
from worker.engines.ends import closed
from worker.engines.sim.batch import SimBatch, StepOutcome
from worker.engines.sim.plan import Output, Planner
from worker.engines.sim.step_time import plain_step_time
from worker.engines.step_meter import StepMeter
from worker.prefix_mirror import PrefixMirror

MAX_LAG_S = 1.0
"""How far behind its schedule a paced engine catches up. Timers are late by a millisecond and garbage collections by
tens; past a second the process was stopped, and a burst of all the steps it missed would be no engine's behaviour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimOptions:
    """The options of the simulated engine."""

    step_ms: float = option(
        5.0,
        help="time of a step that decodes one sequence, in ms; 0 computes as fast as the machine can",
        check=at_least(0),
    )
    prefill_tokens_per_s: float = option(20_000.0, help="speed of computing prompts", check=positive)
    kv_blocks: int = option(8192, help="KV blocks in the cache", check=at_least(1))
    block_size: int = option(16, help="tokens in one KV block", check=at_least(1))
    max_num_seqs: int = option(64, help="sequences that run at once", check=at_least(1))
    token_budget: int = option(
        2048, help="tokens computed in one step, prompts and decoding together", check=at_least(1)
    )
    context_length: int = option(131_072, help="longest prompt plus answer, in tokens", check=at_least(2))
    seed: int = option(0, help="what the answers depend on beside the request")
    embedding_size: int = option(64, help="numbers in the vector of an input", check=at_least(1))
    prefix_events: bool = option(False, help="tell the scheduler what the prefix cache holds")
    stamp: bool = option(False, help="make each token's text the time it was emitted: CLOCK_MONOTONIC in nanoseconds")


@dataclass(slots=True, eq=False)
class _Request:
    """One accepted request: who hears of it, and its choices."""

    request_id: str
    emit: Emit
    prompt_tokens: int = 0
    cached_tokens: int = 0
    started: bool = False
    output_tokens: int = 0
    """What it will have in the end, over all choices."""
    begun: tuple[int, int] = (0, 0)
    """Of its prompt tokens those of an answer that another worker began, and the tokens that had there."""
    produced: bool = False
    """Whether any choice has its first token."""
    choices: list[_Choice] = field(default_factory=list)
    open_choices: int = 0
    """Those of them that have not ended."""

    def finished(self) -> Finished:
        """Its end."""
        begun_prompt_tokens, begun_tokens = self.begun
        prompt_tokens = self.prompt_tokens - begun_prompt_tokens
        return Finished(prompt_tokens, min(self.cached_tokens, prompt_tokens), self.output_tokens + begun_tokens)


@dataclass(slots=True, eq=False)
class _Choice:
    """One sequence of the batch, and what it has yet to emit: a delta for each token that the batch will give it, or
    one vector at its end."""

    request: _Request
    emit: Emit
    output: Output
    leads: bool
    """Whether it is the first with its prompt: what the others find in the cache, this one has computed."""
    cached_tokens: int = 0
    """Of its prompt."""


class SimEngine:
    """The `Engine` whose batch is simulated."""

    def __init__(self, options: SimOptions, clock: Clock, names: tuple[str, ...] = ()) -> None:
        """`names` are those by which clients ask for the model; what the cache holds is told of these."""
        self._options = options
        self._clock = clock
        self._prefixes = PrefixMirror(options.block_size, names) if options.prefix_events else None
        # The longest sequence must fit the cache alone, or it could never end.
        self._context_length = min(options.context_length, options.kv_blocks * options.block_size)
        self._planner = Planner(self._context_length, options.seed, options.stamp, options.embedding_size)
        self._batch: SimBatch[_Choice] = SimBatch(
            step_time=plain_step_time(options.step_ms, options.prefill_tokens_per_s),
            kv_blocks=options.kv_blocks,
            block_size=options.block_size,
            max_num_seqs=options.max_num_seqs,
            token_budget=options.token_budget,
        )
        if options.prefix_events:
            self._batch.blocks.watch()
        self._paced = options.step_ms > 0
        # Paced steps take the time that the batch gives them; unpaced ones have to be measured.
        self._meter = self._batch.meter if self._paced else StepMeter()
        #: The request whose prompt is in work, and the tokens and pairs of it that are computed, as of the last step
        #: that is over: the batch is ahead of the clock by the step that has just begun.
        self._prefilled: tuple[_Request, int, float] | None = None
        self._requests: dict[str, _Request] = {}
        self._work = asyncio.Event()
        self._broken = asyncio.Event()
        self._failure = ""
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> EngineInfo:
        options = self._options
        if options.token_budget < options.max_num_seqs:
            raise ConfigError(
                f"--sim-token-budget: {options.token_budget} is less than --sim-max-num-seqs, {options.max_num_seqs}"
            )
        self._task = asyncio.create_task(self._run(), name="sim-engine")
        return EngineInfo(
            context_length=self._context_length,
            capacity=Capacity(
                max_sequences=options.max_num_seqs, kv_blocks=options.kv_blocks, kv_block_size=options.block_size
            ),
            continues=not options.stamp,
            prefixes=self._prefixes,
        )

    def submit(self, request: GenerationRequest, emit: Emit) -> None:
        try:
            self._accept(request, emit)
        except LoadBalancerError as error:
            asyncio.get_running_loop().call_soon(emit, Failed(error))

    def abort(self, request_id: str) -> None:
        request = self._requests.get(request_id)
        if request is not None:
            self._forget(request)
            asyncio.get_running_loop().call_soon(request.emit, Failed(Cancelled("The request was aborted.")))

    def load(self) -> EngineLoad:
        blocks = self._batch.blocks
        tokens, pairs = 0, 0.0
        if self._prefilled is not None:
            request, tokens, pairs = self._prefilled
            if self._requests.get(request.request_id) is not request:
                tokens, pairs = 0, 0.0
        return EngineLoad(
            kv_used_blocks=blocks.used,
            kv_cached_blocks=blocks.cached,
            prefill_tokens_per_s=self._meter.prefill_tokens_per_s,
            step_time_ms=self._meter.step_time_ms,
            attention_ratio=self._meter.attention_ratio,
            prefilled_tokens=tokens,
            prefilled_pairs=pairs,
        )

    async def failed(self) -> str:
        await self._broken.wait()
        return self._failure

    async def close(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        for request in list(self._requests.values()):
            self._forget(request)
            request.emit(Failed(closed(request.produced)))
        # What `submit` and `abort` left to the event loop comes out before this returns.
        await asyncio.sleep(0)

    def _accept(self, request: GenerationRequest, emit: Emit) -> None:
        if self._closed or self._failure:
            raise WorkerUnreachable("The engine is closed.")
        if request.request_id in self._requests:
            raise InvalidRequest("A request with this id is running.")
        accepted = _Request(request.request_id, emit)
        planned = self._planner.plan(request)
        if self._prefixes is not None and request.prefix_hashes and len(planned) == 1:
            prompt, tokens = planned[0][:2]
            model = str(fields.json_object(request.body).get("model"))
            self._prefixes.prompt(request, model, prompt.block_hashes(self._options.block_size), tokens)
        for prompt, prompt_tokens, is_cached, answers, begun in planned:
            accepted.begun = begun
            accepted.prompt_tokens += prompt_tokens
            hashes = prompt.block_hashes(self._options.block_size) if is_cached else ()
            leads = True
            for tokens, output in answers:
                choice = _Choice(accepted, emit, output, leads)
                leads = False
                accepted.choices.append(choice)
                accepted.output_tokens += tokens
                self._batch.add(choice, prompt_tokens, tokens, hashes)
        accepted.open_choices = len(accepted.choices)
        self._requests[request.request_id] = accepted
        self._work.set()

    def _forget(self, request: _Request) -> None:
        """Frees what an unfinished request holds; its choices emit no more."""
        self._leave(request)
        for choice in request.choices:
            choice.emit = _ignore
            self._batch.abort(choice)
        request.choices.clear()

    def _leave(self, request: _Request) -> None:
        del self._requests[request.request_id]
        if self._prefixes is not None:
            self._prefixes.ended(request.request_id, self._clock.now())

    def _tell_changes(self, prefixes: PrefixMirror) -> None:
        stored, removed = self._batch.blocks.changes()
        for key in removed:
            prefixes.removed(key)
        prefixes.stored(stored)

    async def _run(self) -> None:
        try:
            await self._steps()
        except Exception as error:
            self._failure = f"The simulated engine failed: {error!r}."
            for request in list(self._requests.values()):
                self._forget(request)
                request.emit(Failed(EngineFailed(self._failure)))
            self._broken.set()

    async def _steps(self) -> None:
        batch, clock = self._batch, self._clock
        due = clock.now()
        while True:
            if not batch.has_work:
                self._work.clear()
                await self._work.wait()
                due = clock.now()
            began = clock.now()
            outcome = batch.step()
            took_s = clock.now() - began
            for choice, cached_tokens in outcome.started:
                _start(choice, cached_tokens)
            if self._paced:
                # From the last due time, not from now: what one timer is late the next wait is shorter.
                due = max(due + outcome.duration_ms / 1000, began - MAX_LAG_S)
                await clock.sleep_until(due)
            else:
                # What else this process does meanwhile is no work of the engine's.
                await asyncio.sleep(0)
            began = clock.now()
            if self._prefixes is not None:
                self._tell_changes(self._prefixes)
            self._emit(outcome)
            if not self._paced:
                took_s += clock.now() - began
                self._meter.observe(outcome.prefill_tokens, outcome.decode_tokens, took_s * 1000)
            self._note_prefilled()

    def _note_prefilled(self) -> None:
        """What is computed of the prompt in work, unless its request has had a token or a vector already: then none of
        its prompt counts as waiting any more."""
        self._prefilled = None
        prefilling = self._batch.prefilling
        if prefilling is None:
            return
        choice, computed = prefilling
        request = choice.request
        if not request.produced and request.open_choices == len(request.choices):
            cached = choice.cached_tokens
            self._prefilled = request, computed - cached, (computed**2 - cached**2) / 2

    def _emit(self, outcome: StepOutcome[_Choice]) -> None:
        for choice in outcome.first:
            choice.request.produced = True
        # A copy, since whoever is told of a token may abort a request.
        for choice in tuple(outcome.decoding):
            choice.emit(next(choice.output))
        for choice in outcome.finished:
            choice.emit(next(choice.output))
            request = choice.request
            request.open_choices -= 1
            if not request.open_choices and self._requests.get(request.request_id) is request:
                self._leave(request)
                # They know their request: without this none of it would go before somebody looked for cycles.
                request.choices.clear()
                request.emit(request.finished())


def _start(choice: _Choice, cached_tokens: int) -> None:
    request = choice.request
    choice.cached_tokens = cached_tokens
    if choice.leads:
        request.cached_tokens += cached_tokens
    if not request.started:
        request.started = True
        choice.emit(Started(request.prompt_tokens, cached_tokens))


def _ignore(event: Event) -> None:
    """Where the tokens of an aborted choice go."""
