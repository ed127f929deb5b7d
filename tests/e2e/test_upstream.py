"""A whole system behind a worker of another one: its gateway is an OpenAI server like any other."""

from __future__ import annotations

import asyncio
import signal

import openai
import pytest

from tests.e2e.conftest import System
from worker.demo import load_faq

FAQ = load_faq()[:8]


async def ask(client: openai.AsyncOpenAI, model: str, question: str) -> str:
    answer = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0
    )
    return answer.choices[0].message.content or ""


async def test_a_server_behind_a_worker_may_go_and_come_back() -> None:
    async with System() as inner, System() as outer:
        await asyncio.gather(inner.start_scheduler(), outer.start_scheduler())
        inner_gateway = await inner.start_gateway()
        await inner.start_worker("--model", "demo")
        await inner.models({"demo"})
        await outer.start_gateway()
        key = {"LB_UPSTREAM_API_KEY": "not-for-the-log"}
        worker = await outer.start_worker(
            *("--engine", "openai", "--model", "demo", "--served-model-name", "behind"),
            *("--upstream", inner.gateway_url, "--upstream-poll-s", "0.1"),
            env=key,
        )
        await outer.models({"behind"})
        async with outer.openai() as client:
            assert [await ask(client, "behind", entry.question) for entry in FAQ] == [entry.answer for entry in FAQ]
            inner_gateway.send_signal(signal.SIGKILL)
            await worker.line("engine_unready")
            with pytest.raises(openai.InternalServerError) as refused:
                await ask(client, "behind", FAQ[0].question)
            assert refused.value.status_code == 503
            port = inner.gateway_url.rpartition(":")[2]
            again = await inner.start("lb-gateway", "--port", port, "--scheduler", inner.scheduler_address)
            await again.line("ready")
            await worker.line("engine_ready")
            async with asyncio.timeout(20):
                while True:
                    try:
                        assert await ask(client, "behind", FAQ[1].question) == FAQ[1].answer
                        break
                    except openai.InternalServerError:
                        # The scheduler hears of it a moment later.
                        await asyncio.sleep(0.05)
        said = "\n".join([*map(str, worker.lines), *worker.errors])
        assert "not-for-the-log" not in said
        assert await worker.stop() == 0
