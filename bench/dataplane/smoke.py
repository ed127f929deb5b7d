"""Installs and starts each system, and asks it one plain and one streamed question.

python -m bench.dataplane.smoke [names ...] [--folder ~/.cache/lbcore-bench]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

import aiohttp

from bench.dataplane.system import MODEL, Fleet, System
from bench.dataplane.systems import SYSTEMS

TOKENS = 5


async def ask_plain(session: aiohttp.ClientSession, url: str) -> None:
    """Raises ValueError when the answer is not what the workers said."""
    async with session.post(f"{url}/v1/chat/completions", json=_body(stream=False)) as response:
        text = await response.text()
    if response.status != 200:
        raise ValueError(f"plain: {response.status} {text[:300]}")
    content = json.loads(text)["choices"][0]["message"]["content"]
    if len(content.split()) != TOKENS:
        raise ValueError(f"plain: {TOKENS} tokens were asked for, the answer is {content!r}")


async def ask_streamed(session: aiohttp.ClientSession, url: str) -> int:
    """The number of chunks with text. Raises ValueError when the stream is not what the workers sent."""
    async with session.post(f"{url}/v1/chat/completions", json=_body(stream=True)) as response:
        text = await response.text()
    if response.status != 200:
        raise ValueError(f"streamed: {response.status} {text[:300]}")
    events = [line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")]
    if not events or events.pop() != "[DONE]":
        raise ValueError(f"streamed: no [DONE] at the end of {text[-300:]!r}")
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    texts = [piece for choice in choices if (piece := choice["delta"].get("content"))]
    if len("".join(texts).split()) != TOKENS:
        raise ValueError(f"streamed: {TOKENS} tokens were asked for, came {texts}")
    if not any(choice.get("finish_reason") for choice in choices):
        raise ValueError("streamed: no finish reason")
    return len(texts)


def _body(stream: bool) -> dict[str, object]:
    messages = [{"role": "user", "content": "What does a load balancer do?"}]
    return {"model": MODEL, "messages": messages, "max_tokens": TOKENS, "stream": stream}


async def check(system: System, folder: Path) -> str:
    """What there is to say of a system. Raises RuntimeError or ValueError with what failed."""
    if await system.version(folder) is None:
        print(f"{system.name}: installing", flush=True)
        await system.install(folder)
    version = await system.version(folder)
    timeout = aiohttp.ClientTimeout(total=30)
    async with (
        system.start(folder)(Fleet(step_ms=5, stamp=True)) as running,
        aiohttp.ClientSession(timeout=timeout) as session,
    ):
        await ask_plain(session, running.url)
        chunks = await ask_streamed(session, running.url)
        roles = ", ".join(f"{role} {len(pids)}" for role, pids in running.layer.items()) or "none"
        return f"ok  {version}  [{running.flags}]  processes: {roles}; {chunks} chunks for {TOKENS} tokens"


async def run(names: list[str], folder: Path) -> int:
    """Checks them one after another; the number of those that failed."""
    failed = 0
    for name in names:
        try:
            print(f"{name}: {await check(SYSTEMS[name], folder)}", flush=True)
        except (RuntimeError, ValueError, LookupError, aiohttp.ClientError, TimeoutError) as error:
            failed += 1
            print(f"{name}: FAILED  {error!r}" if not str(error) else f"{name}: FAILED  {error}", flush=True)
    return failed


def main() -> None:
    """Check the systems named, or all."""
    parser = argparse.ArgumentParser(description="Installs and starts each system and asks it two questions.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SYSTEMS)}; none means all")
    parser.add_argument("--folder", type=Path, default=Path("~/.cache/lbcore-bench"), help="where they are installed")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in SYSTEMS]
    if unknown:
        parser.error(f"there is no system {unknown[0]!r}")
    sys.exit(1 if asyncio.run(run(arguments.names or list(SYSTEMS), arguments.folder.expanduser())) else 0)


if __name__ == "__main__":
    main()
