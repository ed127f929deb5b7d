"""What vLLM's own serving layer costs per token, to compare `bench/engine.py --engine vllm` with: its JSON, no HTTP.

VLLM_CPU_KVCACHE_SPACE=1 .venv-engines/bin/python -m bench.vllm_serving [words of vLLM's own]
"""

from __future__ import annotations

import asyncio
import importlib.util
import shlex
import sys
import time
from typing import Any

from worker import demo
from worker.engines.vllm.arguments import VllmOptions, read_arguments

STREAMS, MAX_TOKENS, REPEAT = (16, 64), 200, 3
WORDS = "--enforce-eager --dtype float32 --max-num-seqs 64 --block-size 32"


async def answer(serving: Any, number: int) -> None:
    """One streamed chat, read to its end."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    messages = [{"role": "user", "content": f"Question {number}: what does a load balancer do?"}]
    body = {"model": "demo", "messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS, "ignore_eos": True}
    request = ChatCompletionRequest.model_validate({**body, "stream": True})
    async for _ in await serving.create_chat_completion(request):
        pass


async def run(words: str) -> None:
    """Starts vLLM once and measures in rounds."""
    from starlette.datastructures import State
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = read_arguments(VllmOptions(args=words), str(demo.HF_PATH), ["demo"])
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(arguments))
    state = State()
    await init_app_state(engine, state, arguments, await engine.get_supported_tasks())
    for _ in range(REPEAT):
        for streams in STREAMS:
            cpu = time.thread_time()
            await asyncio.gather(*(answer(state.openai_serving_chat, number) for number in range(streams)))
            tokens = streams * MAX_TOKENS
            print(f"{streams:3} streams: CPU per token {(time.thread_time() - cpu) / tokens * 1e6:5.1f} us", flush=True)
    engine.shutdown()


def main() -> None:
    """Measure, where there is a vLLM."""
    if importlib.util.find_spec("vllm") is None:
        print("vLLM is not installed here; make test-engines installs it into .venv-engines")
        return
    asyncio.run(run(shlex.join(sys.argv[1:]) or WORDS))


if __name__ == "__main__":
    main()
