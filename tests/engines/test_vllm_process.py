"""A whole system with a real vLLM worker: what clients see, and how the worker ends when its core is gone or hangs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import grpc
import openai
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.contract.engines import VLLM_ON_CPU
from tests.e2e.conftest import System
from tools.processes import Process
from worker.demo import load_faq

LONG = max(load_faq(), key=lambda entry: len(entry.answer))
WITHIN_S = 120


async def start_vllm_worker(system: System, *options: str) -> Process:
    arguments = ("--model", "demo", "--engine", "vllm", "--scheduler", system.scheduler_address)
    worker = await system.start("lb-worker", *arguments, *options, "--", *VLLM_ON_CPU.split())
    await worker.line("registered", within_s=WITHIN_S)
    return worker


def core_of(worker: Process) -> int:
    """The process of vLLM's engine core."""
    threads = Path(f"/proc/{worker.child.pid}/task").glob("*/children")
    children = [pid for thread in threads for pid in thread.read_text().split()]
    (core,) = (pid for pid in children if "VLLM" in Path(f"/proc/{pid}/comm").read_text())
    return int(core)


async def health_ends(address: str) -> None:
    """Returns once the worker at this address does not call itself serving any more."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            async for answer in stub.Watch(health_pb2.HealthCheckRequest()):
                if answer.status != health_pb2.HealthCheckResponse.SERVING:
                    return
        except grpc.aio.AioRpcError:
            return


@pytest.mark.parametrize(
    ("number", "why"), [(signal.SIGKILL, "died"), (signal.SIGSTOP, "hangs")], ids=["killed", "stopped"]
)
async def test_a_worker_whose_core_fails_answers_everyone_and_ends_with_an_error(
    number: signal.Signals, why: str
) -> None:
    async with System() as system:
        await system.start_scheduler()
        await system.start_gateway()
        worker = await start_vllm_worker(system, "--vllm-hang-timeout-s", "3")
        await system.models({"demo"})
        ready = await worker.line("ready")
        watching = asyncio.ensure_future(health_ends(str(ready["grpc"])))
        async with system.openai() as client, asyncio.timeout(WITHIN_S):
            streams = [
                await client.chat.completions.create(
                    model="demo",
                    messages=[{"role": "user", "content": LONG.question}],
                    max_tokens=900,
                    extra_body={"ignore_eos": True},
                    stream=True,
                )
                for _ in range(4)
            ]
            await anext(aiter(streams[0]))
            os.kill(core_of(worker), number)
            for stream in streams:
                with pytest.raises(openai.APIError):
                    async for _ in stream:
                        pass
        failed = await worker.line("engine_failed")
        assert why in failed["reason"]
        await asyncio.wait_for(watching, WITHIN_S)
        assert await worker.wait(WITHIN_S) == 1


async def test_vllm_through_gateway_and_scheduler() -> None:
    async with System() as system:
        await system.start_scheduler()
        await system.start_gateway()
        worker = await start_vllm_worker(system, "--served-model-name", "demo,second")
        await system.models({"demo", "second"})
        async with system.openai() as client:
            for entry in load_faq()[:5]:
                answer = await client.chat.completions.create(
                    model="second", messages=[{"role": "user", "content": entry.question}], temperature=0
                )
                assert answer.choices[0].message.content == entry.answer
            with pytest.raises(openai.BadRequestError) as refused:
                await client.chat.completions.create(
                    model="demo", messages=[{"role": "user", "content": "Hello"}], max_tokens=2000
                )
            assert refused.value.code == "context_length_exceeded"
            assert refused.value.param == "messages"
            assert "1024" in refused.value.message
        # Engines have much to say, and none of it may break the stream of JSON lines.
        assert all(line["event"] for line in worker.lines), [line for line in worker.lines if not line["event"]]
        assert await worker.stop() == 0
        assert not [error for error in worker.errors if "Traceback" in error], json.dumps(worker.errors[-30:])
