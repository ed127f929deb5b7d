"""lbctl against a real scheduler: what it prints, and how it ends."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.conftest import System

pytestmark = pytest.mark.asyncio(loop_scope="module")

LLAMA = "meta-llama/Llama-3.1-8B:latest"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system() -> AsyncIterator[System]:
    """A scheduler alone."""
    async with System() as system:
        await system.start_scheduler("--decode-policy", "random", "--model-policy", f"{LLAMA}:prefill=gie(kv=0)")
        yield system


async def lbctl(*words: str, scheduler: str) -> tuple[int | None, list[str], list[str]]:
    """Its exit status, and the lines on stdout and stderr."""
    child = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("lbctl")),
        *words,
        env={"LB_SCHEDULER": scheduler, "LB_POLICY": "round_robin", "LB_MODEL": "demo"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await child.communicate()
    return child.returncode, out.decode().splitlines(), err.decode().splitlines()


async def test_policies_are_shown_and_set(system: System) -> None:
    address = system.scheduler_address
    order = ("set-policy", "--of", LLAMA, "--phase", "decode", "--to", "dynamo_cost(prefill_scale=2)")
    assert await lbctl(*order, scheduler=address) == (0, [f"{LLAMA}, decode: dynamo_cost(prefill_scale=2)"], [])
    status, out, err = await lbctl("policies", scheduler=address)
    assert (status, err) == (0, [])
    assert [line.split() for line in out] == [
        ["model", "phase", "policy"],
        ["*", "mixed", "cost"],
        ["*", "prefill", "cost"],
        ["*", "decode", "random"],
        [LLAMA, "prefill", "gie(kv=0)"],
        [LLAMA, "decode", "dynamo_cost(prefill_scale=2)"],
    ]


async def test_a_refused_order_is_one_line(system: System) -> None:
    status, out, [line] = await lbctl("set-policy", "--to", "fastest", scheduler=system.scheduler_address)
    assert (status, out) == (1, [])
    assert line.startswith("lbctl set-policy: policy: 'fastest' is no policy; there are ")


async def test_a_scheduler_that_is_not_there_is_one_line() -> None:
    assert await lbctl("policies", scheduler="127.0.0.1:1") == (
        1,
        [],
        ["lbctl policies: No scheduler answers at 127.0.0.1:1."],
    )
