"""What an engine says of its prefix cache reaches the scheduler, through every door, and comes true."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from lbcore.client import Client, conversation_bytes
from lbcore.prefix import block_hashes
from lbcore.types import RouteFacts
from lbcore.wire.admin_client import explain_route
from tests.e2e.conftest import System

pytestmark = pytest.mark.asyncio(loop_scope="module")

BLOCK = 16
"""Tokens in an engine block; a byte block has four times as many."""
WORKER = ("--model", "sim", "--engine", "sim", "--sim-step-ms", "1", "--sim-kv-blocks", "256", "--sim-prefix-events")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system() -> AsyncIterator[System]:
    """A worker with a small KV cache, of 4,096 tokens, that says what is in it."""
    async with System() as system:
        await system.start_scheduler()
        await system.start_gateway()
        await system.start_worker(*WORKER)
        await system.models({"sim"})
        yield system


async def believed(system: System, messages: list[dict[str, str]]) -> float:
    """Tokens of a conversation that the scheduler thinks its one worker holds."""
    data = conversation_bytes(messages)
    facts = RouteFacts("", "sim", len(data), block_hashes(data))
    _, explanation = await explain_route(system.scheduler_address, facts)
    return explanation.candidates[0].cached_tokens


def talk(name: str, size: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{name} " * (size // (len(name) + 1))}]


async def ask(system: System, door: str, messages: list[dict[str, str]]) -> int:
    """Has a conversation answered, and returns how many of its tokens were cached."""
    if door == "client":
        async with Client(system.scheduler_address) as client:
            return (await client.complete("sim", messages, max_tokens=4)).usage.cached_tokens
    async with system.openai() as openai:
        answer = await openai.chat.completions.create(model="sim", messages=messages, max_tokens=4)  # type: ignore[call-overload]
    assert answer.usage is not None
    return (answer.usage.prompt_tokens_details or answer.usage).cached_tokens or 0


@pytest.mark.parametrize("door", ["gateway", "client"])
async def test_what_the_engine_holds_is_believed_and_what_it_gave_up_is_not(system: System, door: str) -> None:
    first, others = talk(f"{door} first", 4096), [talk(f"{door} {number}", 6000) for number in range(3)]
    assert await ask(system, door, first) == 0
    held = await believed(system, first)
    # 1,024 tokens and a few, less what does not fill a byte block or an engine block.
    assert 900 <= held <= 1030
    assert held - BLOCK <= await ask(system, door, first) <= 1030
    for other in others:
        await ask(system, door, other)
    async with asyncio.timeout(20):
        while (left := await believed(system, first)) == held:
            await asyncio.sleep(0.01)
    assert await believed(system, others[-1]) > 1300
    assert left - BLOCK <= await ask(system, door, first) <= left + 5 * BLOCK
