"""Internal services: the Python client and a client that knows nothing but reflection, against the real processes."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from lbcore.client import Client
from lbcore.errors import ContextLengthExceeded, ModelNotFound
from lbcore.generation import Delta, Finished, FinishReason, Started
from tests.e2e.conftest import System
from worker.demo import load_faq

pytestmark = pytest.mark.asyncio(loop_scope="module")

WHO = next(entry for entry in load_faq() if entry.question == "Who are you?")
EXAMPLES = Path(__file__).parents[2] / "examples"


async def test_one_call_routes_and_generates(demo_system: System) -> None:
    async with Client(demo_system.scheduler_address) as client:
        events = [
            event async for event in client.chat("demo", [{"role": "user", "content": WHO.question}], temperature=0)
        ]
    assert isinstance(events[0], Started)
    assert "".join(event.text for event in events if isinstance(event, Delta)) == WHO.answer
    assert isinstance(events[-1], Finished)
    assert (events[-1].prompt_tokens, events[-1].cached_tokens) == (events[0].prompt_tokens, events[0].cached_tokens)
    assert events[-1].output_tokens > 1


async def test_the_simulated_engine_tells_every_token_by_its_id(demo_system: System) -> None:
    async with Client(demo_system.scheduler_address) as client:
        events = [event async for event in client.text("sim", "hello", max_tokens=30)]
    assert sum(len(event.token_ids) for event in events if isinstance(event, Delta)) == 30


async def test_complete_gives_the_whole_answer(demo_system: System) -> None:
    async with Client(demo_system.scheduler_address) as client:
        answer = await client.complete("demo", f"Q: {WHO.question}\nA:", temperature=0, max_tokens=200)
    assert answer.text.strip() == WHO.answer
    assert answer.finish_reason is FinishReason.STOP


async def test_errors_are_those_of_the_tree(demo_system: System) -> None:
    async with Client(demo_system.scheduler_address) as client:
        with pytest.raises(ModelNotFound):
            await client.complete("nobody", "x")
        with pytest.raises(ContextLengthExceeded):
            await client.complete("demo", "worker " * 4000)


@pytest.mark.parametrize("example", ["grpc_client.py", "grpc_generic.py", "openai_client.py"])
async def test_the_examples_run_as_they_are(demo_system: System, example: str) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / example),
        env={
            "LB_SCHEDULER": demo_system.scheduler_address,
            "OPENAI_BASE_URL": f"{demo_system.gateway_url}/v1",
            "PATH": "",
        },
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        printed, _ = await child.communicate()
    assert child.returncode == 0
    assert WHO.answer in printed.decode()
