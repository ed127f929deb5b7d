"""What vLLM says of its prefix cache is what its next answers show. Needs vLLM."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Sequence
from itertools import takewhile
from random import Random

import orjson
import pytest
import pytest_asyncio

from lbcore.client import conversation_bytes
from lbcore.generation import Dialect, Event, Failed, Finished, GenerationRequest
from lbcore.prefix import PREFIX_BLOCK_BYTES, block_hashes
from tests.contract.engines import Watch
from tests.engines.test_vllm import create, running, until, write_adapter
from worker.engines.vllm import events
from worker.engines.vllm.engine import VllmEngine
from worker.prefix_mirror import PrefixMirror

SIZE = 32
"""Tokens in a block of the engine."""
BLOCK_BYTES = 4 * SIZE
"""Of a prompt of tokens, that has four bytes for each: a byte block is a block of the engine."""
BLOCKS = 40
"""Of the engine; vLLM keeps one for itself."""


class Asked:
    """A small vLLM that is asked one thing after another, and what it says that it holds."""

    def __init__(self, watch: Watch) -> None:
        assert isinstance(watch.engine, VllmEngine)
        assert watch.info.prefixes is not None
        self.engine = watch.engine
        self.mirror: PrefixMirror = watch.info.prefixes
        self._serial = 0

    def held(self, tokens: Sequence[int], model: str = "m") -> int:
        """How many leading blocks of a prompt are told to be there."""
        held = self.mirror.held(model)
        return len([*takewhile(held.__contains__, hashes_of(tokens))])

    async def ask(self, tokens: Sequence[int], model: str = "m") -> int:
        """Has a prompt computed, waits until it is told, and returns how many of its tokens were in the cache."""
        body = {"prompt": [*tokens], "max_tokens": 1}
        usage = await self.send(Dialect.COMPLETION, body, data_of(tokens), model, BLOCK_BYTES)
        await until(lambda: self.held(tokens, model) == len(tokens) // SIZE)
        return usage.cached_tokens

    async def send(
        self, dialect: Dialect, body: dict[str, object], data: bytes, model: str, block_bytes: int
    ) -> Finished:
        self._serial += 1
        request = GenerationRequest(
            f"r{self._serial}",
            dialect,
            orjson.dumps({"model": model, **body}),
            prefix_hashes=block_hashes(data, block_bytes),
            prefix_block_bytes=block_bytes,
            prompt_bytes=len(data),
        )
        seen: list[Event] = []
        self.engine.submit(request, seen.append)
        await until(lambda: bool(seen) and isinstance(seen[-1], Finished | Failed))
        end = seen[-1]
        assert isinstance(end, Finished), end
        return end

    async def empty(self) -> None:
        """Has vLLM forget all."""
        assert await self.engine._engine.reset_prefix_cache()
        # It says so with its next step.
        await self.ask([7] * SIZE)


def data_of(tokens: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(tokens)}I", *tokens)


def hashes_of(tokens: Sequence[int]) -> tuple[int, ...]:
    return block_hashes(data_of(tokens), BLOCK_BYTES)


def draw(rng: Random, blocks: int) -> list[int]:
    return [rng.randrange(10, 300) for _ in range(blocks * SIZE)]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def asked(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Asked]:
    """One engine for all tests, with an adapter."""
    adapter = tmp_path_factory.mktemp("lora") / "fancy"
    write_adapter(adapter)
    lora = f"--enable-lora --max-lora-rank 8 --lora-modules fancy={adapter}"
    async with running(create(f"--max-num-seqs 4 --num-gpu-blocks-override {BLOCKS} {lora}")) as watch:
        yield Asked(watch)


async def test_a_shared_beginning_is_told_by_exactly_its_byte_blocks(asked: Asked) -> None:
    await asked.empty()
    rng = Random(1)
    shared = draw(rng, 5)
    [*asked.mirror.changes(0.0)]
    await asked.ask(shared + draw(rng, 1)[:20])
    [report] = asked.mirror.changes(0.0)
    assert (report.model, {*report.stored}, report.removed) == ("m", {*hashes_of(shared)}, ())
    assert await asked.ask(shared + draw(rng, 2)[:50]) == len(shared)
    [report] = asked.mirror.changes(0.0)
    assert len(report.stored) == 1


async def test_what_is_told_is_what_is_found_while_the_cache_overflows(asked: Asked) -> None:
    await asked.empty()
    rng = Random(2)
    prompts = [draw(rng, 4)]
    removed = found = 0
    wrong = []
    for turn in range(80):
        prompts.append(
            rng.choice(prompts)[: SIZE * rng.randint(1, 8)] + draw(rng, rng.randint(1, 12))[rng.randrange(SIZE) :]
        )
        prompt = rng.choice(prompts[-6:])[: 24 * SIZE]
        # At least one token of a prompt is always computed.
        expected = min(asked.held(prompt), (len(prompt) - 1) // SIZE) * SIZE
        cached = await asked.ask(prompt)
        found += cached
        removed += sum(len(report.removed) for report in asked.mirror.changes(0.0))
        if cached != expected:
            wrong.append((turn, expected, cached))
    assert wrong == []
    assert found > 0
    assert removed > 2 * BLOCKS


async def test_the_beginning_of_a_conversation_is_known_to_within_a_block(asked: Asked) -> None:
    """A byte block or an engine block, whichever ends later, and what an estimate from bytes misses."""
    await asked.empty()
    messages = [{"role": "system", "content": "You answer what is asked about the load balancer. " * 12}]
    for turn in range(6):
        messages.append({"role": "user", "content": f"What does a worker do when it is told to drain, {turn}?"})
        data = conversation_bytes(messages)
        held = len([*takewhile(asked.mirror.held("m").__contains__, block_hashes(data))])
        usage = await asked.send(Dialect.CHAT, {"messages": messages, "max_tokens": 8}, data, "m", 0)
        await until(lambda data=data: block_hashes(data)[0] in asked.mirror.held("m"))  # type: ignore[misc]
        believed = held * PREFIX_BLOCK_BYTES * usage.prompt_tokens / len(data)
        missed = PREFIX_BLOCK_BYTES * usage.prompt_tokens / len(data) + SIZE
        assert usage.cached_tokens - missed <= believed <= usage.cached_tokens + SIZE / 4
        assert bool(held) == bool(turn)
        messages.append({"role": "assistant", "content": "It finishes what runs and takes nothing new."})


async def test_what_an_adapter_made_is_told_of_the_adapter(asked: Asked) -> None:
    await asked.empty()
    prompt = draw(Random(3), 4)
    await asked.ask(prompt, "fancy")
    assert (asked.held(prompt, "fancy"), asked.held(prompt)) == (4, 0)
    assert await asked.ask(prompt + prompt) == 0
    assert (asked.held(prompt, "fancy"), asked.held(prompt)) == (4, 4)


async def test_a_cache_that_was_emptied_is_told_empty(asked: Asked) -> None:
    prompt = draw(Random(4), 4)
    await asked.ask(prompt)
    await asked.empty()
    assert asked.held(prompt) == 0
    assert await asked.ask(prompt) == 0


async def test_what_nobody_listened_to_is_asked_for_again(asked: Asked) -> None:
    rng = Random(5)
    await asked.empty()
    first, second, third = draw(rng, 4), draw(rng, 4), draw(rng, 4)
    await asked.ask(first)
    await deafened(asked, first, second)
    await asked.ask(third)
    await until(lambda: asked.held(first) == asked.held(second) == 4)


async def test_what_cannot_be_heard_again_is_not_believed(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = Random(6)
    await asked.empty()
    first, second, third = draw(rng, 4), draw(rng, 4), draw(rng, 4)
    await asked.ask(first)
    monkeypatch.setattr(events, "REPLAY_S", 0.0)
    await deafened(asked, first, second)
    await asked.ask(third)
    assert (asked.held(first), asked.held(second), asked.held(third)) == (0, 0, 4)


async def test_events_that_cannot_be_read_leave_nothing_believed(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = draw(Random(7), 4)
    await asked.ask(prompt)

    def fail(*_: object) -> None:
        raise ValueError("What is this?")

    monkeypatch.setattr(events.InOrder, "take", fail)
    body = {"prompt": draw(Random(8), 2), "max_tokens": 1}
    await asked.send(Dialect.COMPLETION, body, b"x", "m", BLOCK_BYTES)
    await until(lambda: asked.held(prompt) == 0)


async def deafened(asked: Asked, *prompts: Sequence[int]) -> None:
    """Has prompts computed while nobody listens, then listens again, with a mirror that knows nothing."""
    listener = asked.engine._events
    assert listener is not None
    assert listener._listening is not None
    listener._listening.cancel()
    for tokens in prompts:
        await asked.send(Dialect.COMPLETION, {"prompt": [*tokens], "max_tokens": 1}, data_of(tokens), "m", BLOCK_BYTES)
    asked.mirror = listener.start(SIZE, ["m", "alias", "fancy"])
    for tokens in prompts:
        request = GenerationRequest("again", Dialect.COMPLETION, b"", prefix_hashes=hashes_of(tokens))
        request = request._replace(prefix_block_bytes=BLOCK_BYTES, prompt_bytes=4 * len(tokens))
        listener.prompt(request._replace(request_id=str(tokens[0])), "m", tokens, "")
