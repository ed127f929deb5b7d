"""Decisions that say why they were made, and are made again, by real processes."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

import aiohttp

from lbcore.simulator.traces import read_trace
from tests.e2e.conftest import System

SYSTEM_PROMPT = "You are a helpful assistant of the city's library. " * 30


async def lbctl(*words: str) -> tuple[int | None, list[str], list[str]]:
    """Its exit status, and the lines on stdout and stderr."""
    child = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("lbctl")),
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await child.communicate()
    return child.returncode, out.decode().splitlines(), err.decode().splitlines()


async def test_decisions_are_told_asked_for_recorded_and_made_again_and_requests_traced(tmp_path: Path) -> None:
    decisions, trace, prompt = tmp_path / "decisions", tmp_path / "trace.jsonl", tmp_path / "prompt"
    prompt.write_text(SYSTEM_PROMPT)
    async with System() as system:
        scheduler = await system.start_scheduler("--decision-log", str(decisions))
        gateway = await system.start_gateway("--debug-headers", "--trace", str(trace), "--processes", "2")
        sim = ("--model", "sim", "--engine", "sim", "--sim-step-ms", "1")
        await asyncio.gather(*(system.start_worker(*sim, "--worker-id", name) for name in ("w0", "w1")))
        await system.models({"sim"})
        async with aiohttp.ClientSession(system.gateway_url) as http:
            for number in range(20):
                body = {"model": "sim", "prompt": f"{SYSTEM_PROMPT}{number}", "max_tokens": 3}
                headers = {"X-LB-Explain": "1", "X-Tenant-ID": "alice", "Connection": "close"}
                async with http.post("/v1/completions", json=body, headers=headers) as response:
                    assert response.status == 200
                    said = json.loads(response.headers["X-LB-Decision"])
                    assert said["worker"] in ("w0", "w1")
                    assert {one["worker"] for one in said["candidates"]} == {"w0", "w1"}

        where = ("--scheduler", system.scheduler_address)
        status, out, err = await lbctl("explain", "--model", "sim", "--prompt-file", str(prompt), *where)
        assert (status, err) == (0, [])
        match = re.match(r"to (w[01]), by cost: .*; it holds [\d,]+ of [\d,]+ prompt tokens", out[0])
        assert match, out
        assert [line.split()[0] for line in out[3:]] == ["worker", match[1], "w1" if match[1] == "w0" else "w0"]
        unknown = await lbctl("explain", "--model", "gone", "--prompt-bytes", "100", *where)
        assert unknown == (1, [], ["lbctl explain: No worker serves the model `gone`."])
        assert await scheduler.stop() == 0
        assert await gateway.stop() == 0
    alone = await lbctl("explain", "--model", "sim", *where)
    assert alone == (1, [], [f"lbctl explain: No scheduler answers at {where[1]}."])

    assert await lbctl("rerun", str(decisions)) == (0, ["20 decisions again: 20 alike, 0 different"], [])
    status, [line], _ = await lbctl("rerun", str(decisions), "--policy", "round_robin")
    assert (status, line.startswith("20 decisions by round_robin: ")) == (0, True)

    workload = read_trace(trace, "own")
    assert workload.calls == 20
    calls = [talk.calls[0] for talk in workload.conversations]
    assert len({call.blocks[0] for call in calls}) == 1
    assert {call.output_tokens for call in calls} == {3}
    assert "alice" not in trace.read_text()
