"""An internal service in Python: no HTTP, no gateway; route, generate and fail-over in one call."""

import asyncio
import os

from lbcore.client import Client
from lbcore.generation import Delta, Finished


async def main() -> None:
    async with Client(os.environ.get("LB_SCHEDULER", "127.0.0.1:50050")) as client:
        question = [{"role": "user", "content": "Who are you?"}]
        async for event in client.chat("demo", question, temperature=0):
            match event:
                case Delta(text=text):
                    print(text, end="", flush=True)
                case Finished(prompt_tokens=prompt, output_tokens=output):
                    print(f"\n{prompt} tokens in, {output} out")

        answer = await client.complete("demo", "Q: Who are you?\nA:", temperature=0, max_tokens=100)
        print(answer.text.strip(), answer.finish_reason)


asyncio.run(main())
