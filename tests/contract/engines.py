"""The engines under the contract, one row each, and the watcher that holds every answer to the laws of order.

A new engine is one row in `ENGINES`. What it cannot do is left out of `offers`; then it has to refuse that by name.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import count, pairwise

import orjson

from lbcore.clock import MonotonicClock
from lbcore.errors import InvalidRequest
from lbcore.generation import (
    Continuation,
    Delta,
    Dialect,
    Embedding,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    Started,
)
from lbcore.types import Capacity
from tests.contract.upstreams import LlamaCppHttpServer, VllmHttpServer, WithUpstream
from worker import demo
from worker.engine import Engine, EngineInfo
from worker.engines.llamacpp.engine import LlamaCppEngine, LlamaCppOptions
from worker.engines.sim.engine import SimEngine, SimOptions
from worker.engines.transformers.engine import TransformersEngine, TransformersOptions
from worker.engines.vllm.engine import VllmEngine, VllmOptions

NO_TEXT = "\N{REPLACEMENT CHARACTER}"

TIMEOUT_S = 20.0
"""Longer than any answer here takes on a busy machine; it only keeps a broken engine from hanging the tests."""


class Feature(Enum):
    """What an engine may or may not offer. The value is the field by which it is refused."""

    CHOICES = "n"
    LOGPROBS = "logprobs"
    TOKEN_PROMPT = "prompt"
    STOP = "stop"
    SEED = "seed"
    IGNORE_EOS = "ignore_eos"
    JSON_OUTPUT = "response_format"
    FORCED_TOOL = "tool_choice"
    LOGIT_BIAS = "logit_bias"
    ECHO = "echo"
    SUFFIX = "suffix"
    SEVERAL_PROMPTS = "prompt[]"
    EMBEDDINGS = "model"

    @property
    def field(self) -> str:
        return self.value.removesuffix("[]")


TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]

PROBES: Mapping[Feature, tuple[Dialect, Mapping[str, object]]] = {
    Feature.CHOICES: (Dialect.CHAT, {"n": 2}),
    Feature.LOGPROBS: (Dialect.CHAT, {"logprobs": True, "top_logprobs": 2}),
    Feature.TOKEN_PROMPT: (Dialect.COMPLETION, {"prompt": [5, 6, 7]}),
    Feature.STOP: (Dialect.CHAT, {"stop": ["end"]}),
    Feature.SEED: (Dialect.CHAT, {"seed": 5}),
    Feature.IGNORE_EOS: (Dialect.CHAT, {"ignore_eos": True}),
    Feature.JSON_OUTPUT: (Dialect.CHAT, {"response_format": {"type": "json_object"}}),
    Feature.FORCED_TOOL: (Dialect.CHAT, {"tools": TOOLS, "tool_choice": "required"}),
    Feature.LOGIT_BIAS: (Dialect.CHAT, {"logit_bias": {"5": 1}}),
    Feature.ECHO: (Dialect.COMPLETION, {"echo": True}),
    Feature.SUFFIX: (Dialect.COMPLETION, {"suffix": "end"}),
    Feature.SEVERAL_PROMPTS: (Dialect.COMPLETION, {"prompt": ["one", "two"]}),
    Feature.EMBEDDINGS: (Dialect.EMBEDDING, {"input": "x"}),
}
"""A request that uses each feature and little else."""


@dataclass(frozen=True)
class EngineCase:
    """An engine as the contract tests make it."""

    name: str
    create: Callable[[], Engine]
    offers: frozenset[Feature]
    tells_token_ids: bool = True
    tells_kv_blocks: bool = True
    caches_prefixes: bool = True
    counts_prompt_first: bool = True
    """Whether Started tells the exact counts of the prompt; otherwise Finished has them first."""
    shared: bool = False
    """Whether one engine serves all tests, because it takes long to start. Its tests run in one event loop."""
    continues: bool = False
    """Whether it goes on with what another engine of its kind began."""
    generates: bool = True
    """Whether it makes text. One that makes embeddings alone is held to their laws only."""
    extra: str = ""
    """The extra of this project that it needs and that the usual environment has not: it is tested only when named."""


_SIM_OFFERS = frozenset(
    {
        Feature.CHOICES,
        Feature.LOGPROBS,
        Feature.TOKEN_PROMPT,
        Feature.STOP,
        Feature.SEED,
        Feature.IGNORE_EOS,
        Feature.SEVERAL_PROMPTS,
    }
)

_LLAMACPP_OFFERS = _SIM_OFFERS | {Feature.JSON_OUTPUT, Feature.LOGIT_BIAS}


def _sim(options: SimOptions) -> Callable[[], Engine]:
    return lambda: SimEngine(options, MonotonicClock())


def _llamacpp(options: LlamaCppOptions) -> Callable[[], Engine]:
    return lambda: LlamaCppEngine(demo.GGUF_PATH, options, MonotonicClock())


VLLM_ON_CPU = "--enforce-eager --dtype float32 --max-model-len 1024 --block-size 32 --no-async-scheduling"
"""What the demo model needs of vLLM on a machine without a GPU."""


def _vllm(arguments: str) -> Callable[[], Engine]:
    options = VllmOptions(args=f"{VLLM_ON_CPU} {arguments}")
    return lambda: VllmEngine(str(demo.HF_PATH), ("m",), options, MonotonicClock())


def _transformers(options: TransformersOptions) -> Callable[[], Engine]:
    return lambda: TransformersEngine(str(demo.HF_PATH), options, MonotonicClock())


def _openai_llamacpp(slots: int, n_ctx: int) -> Callable[[], Engine]:
    return lambda: WithUpstream(LlamaCppHttpServer(slots, n_ctx))


def _openai_vllm(arguments: str) -> Callable[[], Engine]:
    return lambda: WithUpstream(VllmHttpServer(f"{VLLM_ON_CPU} {arguments}"))


_serial = count(1)

ENGINES = (
    EngineCase(
        "sim", _sim(SimOptions(step_ms=0, context_length=4096)), _SIM_OFFERS | {Feature.EMBEDDINGS}, continues=True
    ),
    EngineCase(
        "sim-paced",
        _sim(SimOptions(step_ms=0.2, prefill_tokens_per_s=1e6, context_length=4096)),
        _SIM_OFFERS | {Feature.EMBEDDINGS},
        continues=True,
    ),
    # So few blocks that a crowd has to queue and is preempted.
    EngineCase(
        "sim-cramped",
        _sim(SimOptions(step_ms=0, kv_blocks=80, block_size=8, token_budget=64)),
        _SIM_OFFERS | {Feature.EMBEDDINGS},
        continues=True,
    ),
    EngineCase(
        "llamacpp", _llamacpp(LlamaCppOptions(n_ctx=1024)), _LLAMACPP_OFFERS, tells_token_ids=False, continues=True
    ),
    # Fewer sequences than choices are asked for at once, and prompts in many steps.
    EngineCase(
        "llamacpp-cramped",
        _llamacpp(LlamaCppOptions(n_ctx=512, n_parallel=3, n_batch=32)),
        _LLAMACPP_OFFERS,
        tells_token_ids=False,
        continues=True,
    ),
    # Another server's HTTP, here llama.cpp's, whose page says nothing of its KV cache.
    EngineCase(
        "openai",
        _openai_llamacpp(8, 1024),
        _LLAMACPP_OFFERS,
        tells_token_ids=False,
        tells_kv_blocks=False,
        continues=True,
    ),
    # Fewer sequences than choices are asked for at once.
    EngineCase(
        "openai-cramped",
        _openai_llamacpp(3, 512),
        _LLAMACPP_OFFERS,
        tells_token_ids=False,
        tells_kv_blocks=False,
        continues=True,
    ),
    EngineCase(
        "openai-embeddings",
        lambda: WithUpstream(LlamaCppHttpServer(embeds=True)),
        frozenset({Feature.EMBEDDINGS}),
        tells_token_ids=False,
        tells_kv_blocks=False,
        generates=False,
    ),
    EngineCase(
        "openai-vllm",
        _openai_vllm(
            "--max-num-seqs 32 --enable-prompt-tokens-details --enable-auto-tool-choice --tool-call-parser hermes"
        ),
        frozenset(Feature) - {Feature.SUFFIX, Feature.EMBEDDINGS},
        counts_prompt_first=False,
        shared=True,
        continues=True,
    ),
    EngineCase(
        "openai-vllm-embeddings",
        _openai_vllm("--runner pooling --convert embed"),
        frozenset({Feature.EMBEDDINGS}),
        counts_prompt_first=False,
        generates=False,
        shared=True,
        extra="vllm",
    ),
    EngineCase(
        "vllm",
        _vllm("--max-num-seqs 32 --enable-auto-tool-choice --tool-call-parser hermes"),
        frozenset(Feature) - {Feature.SUFFIX, Feature.EMBEDDINGS},
        counts_prompt_first=False,
        shared=True,
        continues=True,
        extra="vllm",
    ),
    # Few sequences, prompts in many steps, and so few blocks that long answers are preempted.
    EngineCase(
        "vllm-cramped",
        _vllm("--max-num-seqs 4 --max-num-batched-tokens 64 --num-gpu-blocks-override 70"),
        frozenset(Feature) - {Feature.SUFFIX, Feature.FORCED_TOOL, Feature.EMBEDDINGS},
        counts_prompt_first=False,
        shared=True,
        continues=True,
        extra="vllm",
    ),
    EngineCase(
        "vllm-embeddings",
        _vllm("--runner pooling --convert embed"),
        frozenset({Feature.EMBEDDINGS}),
        counts_prompt_first=False,
        generates=False,
        shared=True,
    ),
    EngineCase(
        "transformers",
        _transformers(TransformersOptions(context_length=1024)),
        _SIM_OFFERS | {Feature.LOGIT_BIAS},
        continues=True,
        extra="transformers",
    ),
    # So few blocks that sequences are preempted, fewer sequences than choices, and prompts in many steps.
    EngineCase(
        "transformers-cramped",
        _transformers(TransformersOptions(context_length=512, max_num_seqs=3, max_batch_tokens=24, kv_blocks=36)),
        _SIM_OFFERS | {Feature.LOGIT_BIAS},
        continues=True,
        extra="transformers",
    ),
)


class Answer:
    """The events of one request. Watches the laws that hold at every moment; `check` adds those of the end."""

    def __init__(
        self,
        case: EngineCase,
        request_id: str,
        several_prompts: bool,
        inside_call: Callable[[], bool],
        continuation: Continuation | None = None,
    ) -> None:
        self.request_id = request_id
        self.continuation = continuation
        self.events: list[Event] = []
        self.on_event: Callable[[], None] = lambda: None
        """Called after each event, from inside `emit`."""
        self.tells_token_ids = case.tells_token_ids
        self._counts_prompt_first = case.counts_prompt_first
        self._several_prompts = several_prompts
        self._inside_call = inside_call
        self._thread = threading.get_ident()
        self._violations: list[str] = []
        self._news = asyncio.Event()

    def emit(self, event: Event) -> None:
        if threading.get_ident() != self._thread:
            self._violations.append(f"{event} came on another thread")
            return
        if self._inside_call():
            self._violations.append(f"{event} came from inside submit or abort")
        if self.ended:
            self._violations.append(f"{event} came after the end")
        if isinstance(event, Started) and self.events:
            self._violations.append(f"{event} was not the first")
        self.events.append(event)
        self._news.set()
        self.on_event()

    @property
    def ended(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], Finished | Failed)

    @property
    def deltas(self) -> list[Delta]:
        return [event for event in self.events if isinstance(event, Delta)]

    @property
    def embeddings(self) -> list[Embedding]:
        return [event for event in self.events if isinstance(event, Embedding)]

    @property
    def started(self) -> Started:
        assert isinstance(self.events[0], Started)
        return self.events[0]

    @property
    def finished(self) -> Finished:
        assert isinstance(self.events[-1], Finished), self.events[-1]
        return self.events[-1]

    @property
    def error(self) -> Exception:
        assert isinstance(self.events[-1], Failed), self.events[-1]
        return self.events[-1].error

    def text(self, choice: int = 0) -> str:
        return "".join(delta.text for delta in self.deltas if delta.choice == choice)

    def token_ids(self, choice: int = 0) -> list[int]:
        return [token for delta in self.deltas if delta.choice == choice for token in delta.token_ids]

    def finish_reason(self, choice: int = 0) -> FinishReason:
        (reason,) = (delta.finish_reason for delta in self.deltas if delta.choice == choice and delta.finish_reason)
        return reason

    async def until(self, reached: Callable[[Answer], bool]) -> None:
        """Returns once `reached`, or when the answer has ended."""
        async with asyncio.timeout(TIMEOUT_S):
            while not (reached(self) or self.ended):
                self._news.clear()
                await self._news.wait()

    async def end(self) -> Answer:
        await self.until(lambda answer: answer.ended)
        return self

    def check(self) -> None:
        """The laws of a whole answer. Raises AssertionError."""
        assert self.ended, f"no end after {self.events}"
        assert not self._violations, self._violations
        by_choice = defaultdict[int, list[Delta]](list)
        for delta in self.deltas:
            by_choice[delta.choice].append(delta)
            delta.text.encode()
            assert self.tells_token_ids or not delta.token_ids
        for deltas in by_choice.values():
            for one, following in pairwise(deltas):
                # A model may produce bytes that are no text by itself; a character that was torn shows at both ends.
                assert not (one.text.endswith(NO_TEXT) and following.text.startswith(NO_TEXT)), "torn character"
        assert not (self.deltas and self.embeddings)
        assert [event.index for event in self.embeddings] == list(range(len(self.embeddings)))
        assert len({len(event.vector) for event in self.embeddings}) <= 1, "vectors of several sizes"
        if not isinstance(self.events[-1], Finished):
            return
        usage = self.events[-1]
        if self.continuation is not None:
            # What is computed and what is told of the whole differ by what there was before.
            assert 0 <= usage.cached_tokens <= usage.prompt_tokens
            assert usage.output_tokens >= sum(len(delta.token_ids) for delta in self.deltas)
            return
        # Of several prompts the engine may know only some when the request starts.
        assert 0 <= self.started.prompt_tokens <= usage.prompt_tokens
        assert 0 <= self.started.cached_tokens <= usage.cached_tokens < usage.prompt_tokens
        if self._counts_prompt_first and not self._several_prompts:
            assert self.started.prompt_tokens == usage.prompt_tokens
            assert self.started.cached_tokens == usage.cached_tokens
        assert sorted(by_choice) == list(range(len(by_choice)))
        for deltas in by_choice.values():
            assert [delta.finish_reason is None for delta in deltas] == [True] * (len(deltas) - 1) + [False]
        if self.tells_token_ids or self.embeddings:
            assert usage.output_tokens == sum(len(delta.token_ids) for delta in self.deltas)


NOT_STARTED = EngineInfo(context_length=0, capacity=Capacity())


class Watch:
    """An engine at work, and every answer it was asked for. The engine is a new one unless one is given."""

    def __init__(self, case: EngineCase, engine: Engine | None = None, info: EngineInfo = NOT_STARTED) -> None:
        self.case = case
        self.engine = engine or case.create()
        self.answers: list[Answer] = []
        self.info = info
        self._inside_call = False

    async def start(self) -> None:
        self.info = await self.engine.start()

    def submit(
        self,
        dialect: Dialect,
        body: bytes | Mapping[str, object],
        request_id: str = "",
        continuation: Continuation | None = None,
    ) -> Answer:
        prompt = None if isinstance(body, bytes) else body.get("prompt", body.get("input"))
        several_prompts = isinstance(prompt, list) and any(isinstance(one, str | list) for one in prompt)
        request_id = request_id or f"auto-{next(_serial)}"
        answer = Answer(self.case, request_id, several_prompts, lambda: self._inside_call, continuation)
        self.answers.append(answer)
        raw = body if isinstance(body, bytes) else orjson.dumps(body)
        self._inside_call = True
        self.engine.submit(GenerationRequest(request_id, dialect, raw, continuation=continuation), answer.emit)
        self._inside_call = False
        return answer

    def chat(self, content: str, request_id: str = "", /, **fields: object) -> Answer:
        messages = [{"role": "user", "content": content}]
        return self.submit(Dialect.CHAT, {"model": "m", "messages": messages, "temperature": 0, **fields}, request_id)

    def complete(self, prompt: object, request_id: str = "", /, **fields: object) -> Answer:
        return self.submit(Dialect.COMPLETION, {"model": "m", "prompt": prompt, "temperature": 0, **fields}, request_id)

    def embed(self, inputs: object, request_id: str = "", /, **fields: object) -> Answer:
        return self.submit(Dialect.EMBEDDING, {"model": "m", "input": inputs, **fields}, request_id)

    def long(self, content: str = "Tell me a long story.", request_id: str = "") -> Answer:
        """An answer that goes on for a while, if nobody stops it."""
        fields: dict[str, object] = {"ignore_eos": True} if Feature.IGNORE_EOS in self.case.offers else {}
        return self.submit(
            Dialect.CHAT,
            {
                "messages": [{"role": "user", "content": content}],
                "temperature": 0,
                "max_tokens": min(400, self.info.context_length // 2),
                **fields,
            },
            request_id,
        )

    def abort(self, request_id: str) -> None:
        self._inside_call = True
        self.engine.abort(request_id)
        self._inside_call = False

    def probe(self, feature: Feature) -> Answer:
        """A request that uses a feature."""
        dialect, fields = PROBES[feature]
        if dialect is Dialect.EMBEDDING:
            return self.submit(dialect, fields)
        prompt = {"messages": [{"role": "user", "content": "x"}]} if dialect is Dialect.CHAT else {"prompt": "x"}
        return self.submit(dialect, {**prompt, "max_tokens": 2, **fields})

    async def offers(self, feature: Feature) -> bool:
        """Whether the engine offers a feature. One it does not offer it must refuse by name, and that is tried here."""
        if feature in self.case.offers:
            return True
        answer = await self.probe(feature).end()
        assert isinstance(answer.error, InvalidRequest), f"{feature} is neither offered nor refused"
        assert (answer.error.param or "").startswith(feature.field)
        return False

    async def leave(self) -> None:
        """Ends what runs, leaves the engine to others, and holds every answer to the laws."""
        for request_id in {answer.request_id for answer in self.answers if not answer.ended}:
            self.abort(request_id)
        for answer in self.answers:
            await answer.end()
            answer.check()

    async def close(self) -> None:
        """Closes the engine and holds every answer to the laws."""
        await self.engine.close()
        for answer in self.answers:
            answer.check()
