"""`make demo` and `make smoke`: one scheduler, two workers with a real engine, one gateway, and a first answer."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.processes import Ended, Process
from worker.demo import load_faq

WORKERS = 2
STOP_WORDS = """
  base URL   {url}
  python     OpenAI(base_url="{url}", api_key="none")
  curl       curl {url}/chat/completions -H 'Content-Type: application/json' \\
               -d '{{"model": "demo", "messages": [{{"role": "user", "content": "Who are you?"}}]}}'
  env        export OPENAI_BASE_URL={url} OPENAI_API_KEY=none
  metrics    {gateway}/metrics  http://{metrics}/metrics

Ctrl-C stops everything."""


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="check a streamed and a plain answer, then stop")
    parser.add_argument("--port", type=int, default=8000, help="port of the gateway; a free one when it is taken")
    parser.add_argument("--model", default="demo", help="a GGUF file, or demo")
    args = parser.parse_args()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:

        async def start(script: str, *options: str) -> dict[str, object]:
            print(f"$ {' '.join((script, *options))}", flush=True)
            process = await stack.enter_async_context(await Process.start(script, *options))
            return await process.line("ready")

        free = "0"
        scheduler = await start("lb-scheduler", "--port", free, "--metrics-port", free)
        address = str(scheduler["grpc"])
        for _ in range(WORKERS):
            await start("lb-worker", "--model", args.model, "--scheduler", address)
        port = free if args.smoke or not is_free(args.port) else str(args.port)
        gateway = await start("lb-gateway", "--port", port, "--scheduler", address, "--settle-s", "0")
        base = f"http://{gateway['http']}"
        async with aiohttp.ClientSession(base) as http:
            await until_ready(http)
            if args.model != "demo":
                question, expected = "Who are you?", None
            else:
                entry = next(entry for entry in load_faq() if entry.question == "Who are you?")
                question, expected = entry.question, entry.answer
            model = (await (await http.get("/v1/models")).json())["data"][0]["id"]
            print(f"\n> {question}\n", flush=True)
            streamed = await ask_streaming(http, model, question)
            if args.smoke:
                plain = await ask(http, model, question)
                if not streamed or plain != streamed or (expected is not None and plain != expected):
                    print(f"wrong answer: streamed {streamed!r}, plain {plain!r}, expected {expected!r}")
                    return 1
                print("\nstreamed and plain answers are right")
                return 0
        print(STOP_WORDS.format(url=f"{base}/v1", gateway=base, metrics=scheduler["metrics"]), flush=True)
        await stop.wait()
        print("\nstopping", flush=True)
    return 0


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


async def until_ready(http: aiohttp.ClientSession) -> None:
    """Waits until the gateway says that a worker can serve."""
    async with asyncio.timeout(30):
        while (await http.get("/ready")).status != 200:
            await asyncio.sleep(0.05)


def body(model: str, question: str, stream: bool) -> dict[str, object]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "stream": stream,
    }


async def ask(http: aiohttp.ClientSession, model: str, question: str) -> str:
    async with http.post("/v1/chat/completions", json=body(model, question, stream=False)) as response:
        response.raise_for_status()
        return str((await response.json())["choices"][0]["message"]["content"])


async def ask_streaming(http: aiohttp.ClientSession, model: str, question: str) -> str:
    """The answer, printed as it comes."""
    said = ""
    async with http.post("/v1/chat/completions", json=body(model, question, stream=True)) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    text = choice["delta"].get("content") or ""
                    said += text
                    print(text, end="", flush=True)
    print(flush=True)
    return said


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except Ended as error:
        sys.exit(f"demo: {error}")
