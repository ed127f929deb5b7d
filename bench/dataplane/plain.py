"""Whole answers in a closed loop: wrk asks on every connection again as soon as it has its answer.

wrk corrects its percentiles for coordinated omission: an answer that took longer than twice the average interval of its
connection counts for those that could have been asked meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.dataplane.bodies import SHORT_CHARACTERS, template
from bench.dataplane.meter import ended_children_cpu_s

MAX_TOKENS = 1
_TIMEOUT_S = 30
_SCRIPT = Path(__file__).with_name("wrk.lua")
_ERRORS = ("connect", "read", "write", "status", "timeout")


class Failed(Exception):
    """The client itself could not work."""


@dataclass(frozen=True, slots=True)
class Plain:
    """Requests for whole answers."""

    connections: int
    seconds: float
    """How long, or at most how long when `requests` is given."""
    requests: int = 0
    """Ask so many and end; 0 asks until the time is up."""
    characters: int = SHORT_CHARACTERS
    max_tokens: int = MAX_TOKENS


def parse(output: str) -> dict[str, Any]:
    """Figures and errors of what wrk printed. Raises Failed when the line of figures is not there."""
    lines = [line for line in output.splitlines() if line.startswith("figures ")]
    if not lines:
        raise Failed(f"wrk said: {output.strip()[-300:]}")
    said = json.loads(lines[-1].removeprefix("figures "))
    errors = {name: said[name] for name in _ERRORS if said[name]}
    good = said["requests"] - said["status"]
    return {
        "requests": good,
        "wall_s": said["duration_s"],
        "requests_per_s": good / said["duration_s"],
        "latency_ms": {name: said[f"{name}_ms"] for name in ("p50", "p90", "p99", "max", "mean")},
        "bytes": said["bytes"],
        "errors": errors,
    }


async def run(url: str, load: Plain, run_id: str, first: int = 0) -> dict[str, Any]:
    """Runs wrk once. The numbers of its prompts begin behind `first`. Raises Failed."""
    parts = template(url, run_id, load.max_tokens, stream=False, characters=load.characters)
    before = ended_children_cpu_s()
    with tempfile.TemporaryDirectory() as folder:
        head, tail = Path(folder, "head"), Path(folder, "tail")
        await asyncio.to_thread(head.write_bytes, parts.head)
        await asyncio.to_thread(tail.write_bytes, parts.tail)
        seconds = max(1, round(load.seconds))
        words = ("-t1", f"-c{load.connections}", f"-d{seconds}s", f"--timeout={_TIMEOUT_S}s", "-s", str(_SCRIPT), url)
        script = ("--", str(head), str(tail), str(first), str(load.requests))
        output = await _output("wrk", *words, *script, seconds=seconds)
    figures = parse(output)
    return {**figures, "client_cpu_s": ended_children_cpu_s() - before}


async def _output(*words: str, seconds: float) -> str:
    child = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(seconds + _TIMEOUT_S):
            return (await child.communicate())[0].decode(errors="replace")
    except TimeoutError:
        raise Failed(f"{words[0]} did not end in {seconds + _TIMEOUT_S:.0f} s") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
