"""What the simulated engine says of its prefix cache is what its next answers show."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import takewhile
from random import Random

import orjson
import pytest
import pytest_asyncio

from lbcore.generation import Dialect, Event, Failed, Finished, GenerationRequest
from lbcore.prefix import block_hashes
from tests.fakes import ManualClock, settle
from worker.engine import EngineInfo
from worker.engines.sim.engine import SimEngine, SimOptions
from worker.prefix_mirror import LINGER_S, PrefixMirror

BLOCK_BYTES = 16
"""Of four tokens, as many as an engine block has."""
OPTIONS = SimOptions(step_ms=0, kv_blocks=24, block_size=4, prefix_events=True)


class Asked:
    """An engine that is asked one thing after another, and what it says that it holds."""

    def __init__(self, engine: SimEngine, info: EngineInfo, clock: ManualClock) -> None:
        assert info.prefixes is not None
        self.engine = engine
        self.clock = clock
        self.mirror: PrefixMirror = info.prefixes
        self._serial = 0

    def held(self, prompt: str) -> int:
        """How many leading byte blocks of a prompt are told to be there."""
        held = self.mirror.held("m")
        return len([*takewhile(held.__contains__, block_hashes(prompt.encode(), BLOCK_BYTES))])

    async def ask(self, prompt: str | list[str], tokens: int = 1) -> Finished:
        self._serial += 1
        data = (prompt if isinstance(prompt, str) else "\0".join(prompt)).encode()
        body = orjson.dumps({"model": "m", "prompt": prompt, "max_tokens": tokens})
        request = GenerationRequest(
            f"r{self._serial}",
            Dialect.COMPLETION,
            body,
            prefix_hashes=block_hashes(data, BLOCK_BYTES),
            prefix_block_bytes=BLOCK_BYTES,
            prompt_bytes=len(data),
        )
        events: list[Event] = []
        self.engine.submit(request, events.append)
        while not events or not isinstance(events[-1], Finished | Failed):
            await settle()
        end = events[-1]
        assert isinstance(end, Finished)
        return end


@pytest_asyncio.fixture()
async def asked() -> AsyncIterator[Asked]:
    clock = ManualClock()
    engine = SimEngine(OPTIONS, clock, ("m",))
    yield Asked(engine, await engine.start(), clock)
    await engine.close()


async def test_a_prompt_is_held_from_its_prefill_on(asked: Asked) -> None:
    prompt = "a" * 40
    assert asked.held(prompt) == 0
    await asked.ask(prompt)
    assert asked.held(prompt) == 2
    assert asked.held(prompt[:32] + "b" * 32) == 2
    assert asked.held("b" + prompt) == 0


async def test_what_makes_room_for_others_is_held_no_more(asked: Asked) -> None:
    await asked.ask("a" * 64)
    await asked.ask("b" * 336)
    assert asked.held("b" * 336) == 21
    assert asked.held("a" * 64) < 4


@pytest.mark.parametrize("seed", range(5))
async def test_it_is_right_about_every_prompt_to_come(asked: Asked, seed: int) -> None:
    rng = Random(seed)
    known = [rng.choice("abc") * BLOCK_BYTES * rng.randint(1, 6)]
    wrong = found = 0
    for _ in range(60):
        # Whole tokens, so that nothing is estimated of where a byte block ends.
        known.append(rng.choice(known)[: BLOCK_BYTES * rng.randint(1, 8)] + rng.choice("abcd") * rng.randint(1, 90) * 4)
        prompt = rng.choice(known)[:320]
        # At least one token of a prompt is always computed.
        expected = min(asked.held(prompt), (len(prompt) // 4 - 1) // 4)
        cached = (await asked.ask(prompt, rng.randint(1, 6))).cached_tokens
        wrong += cached != 4 * expected
        found += cached
    assert wrong == 0
    assert found > 0


async def test_a_request_with_several_prompts_tells_nothing_of_them(asked: Asked) -> None:
    await asked.ask(["a" * 40, "b" * 40])
    assert [asked.held("a" * 40), asked.held("b" * 40)] == [0, 0]
    # But what it left there is found when one of them is asked for.
    await asked.ask("a" * 40)
    assert asked.held("a" * 40) == 2


async def test_nothing_is_remembered_of_requests_that_were_aborted_before_they_began(asked: Asked) -> None:
    request = GenerationRequest(
        "gone", Dialect.COMPLETION, b'{"model": "m", "prompt": "0123456789abcdef"}', prefix_hashes=(1,), prompt_bytes=16
    )
    asked.engine.submit(request._replace(prefix_block_bytes=16), lambda event: None)
    assert len(asked.mirror) == 1
    asked.engine.abort("gone")
    asked.clock.advance(LINGER_S)
    [*asked.mirror.changes(asked.clock.now())]
    assert len(asked.mirror) == 0
