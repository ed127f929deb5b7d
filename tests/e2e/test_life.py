"""Processes that start in any order, die, come back, are told to go, or cannot start at all."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from pathlib import Path

import aiohttp
import openai
import pytest

from tests.e2e.conftest import System
from tools.processes import Process
from worker.demo import GGUF_PATH, load_faq

WHO = next(entry for entry in load_faq() if entry.question == "Who are you?")
LONG = max(load_faq(), key=lambda entry: len(entry.answer))
MESSAGES = [{"role": "user", "content": WHO.question}]
PATH = "/v1/chat/completions"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_workers_and_gateways_started_first_connect_when_the_scheduler_comes() -> None:
    async with System() as system:
        system.scheduler_address = f"127.0.0.1:{free_port()}"
        gateway = await system.start_gateway()
        worker = await system.start("lb-worker", "--model", "demo", "--scheduler", system.scheduler_address)
        await worker.line("ready")
        await worker.line("scheduler_lost")
        await gateway.line("scheduler_lost")
        async with system.openai() as client:
            with pytest.raises(openai.InternalServerError) as caught:
                await client.chat.completions.create(model="demo", messages=MESSAGES)
            assert caught.value.status_code == 503
            assert caught.value.response.headers["Retry-After"]
            port = system.scheduler_address.rpartition(":")[2]
            scheduler = await system.start("lb-scheduler", "--port", port, "--metrics-port", "0")
            await scheduler.line("worker_joined")
            await system.models({"demo"})
            answer = await client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0)
        assert answer.choices[0].message.content == WHO.answer


async def test_after_a_worker_is_killed_every_next_request_succeeds() -> None:
    async with System() as system:
        scheduler = await system.start_scheduler()
        await system.start_gateway()
        victim, _ = await asyncio.gather(*(system.start_worker("--model", "demo") for _ in range(2)))
        await system.models({"demo"})
        async with system.openai() as client:

            async def ask() -> str:
                answer = await client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0)
                return answer.choices[0].message.content

            assert set(await asyncio.gather(*(ask() for _ in range(8)))) == {WHO.answer}
            victim.send_signal(signal.SIGKILL)
            # At once, while nobody but the kernel can know of it yet.
            assert [await ask() for _ in range(10)] == [WHO.answer] * 10
            assert set(await asyncio.gather(*(ask() for _ in range(20)))) == {WHO.answer}
        await scheduler.line("worker_silent")
        await scheduler.line("worker_lost")


async def test_a_killed_worker_that_restarts_on_its_port_is_a_new_epoch_and_serves() -> None:
    async with System() as system:
        # A lease so long that only the new epoch can end it.
        scheduler = await system.start_scheduler("--lease-ttl-s", "60")
        await system.start_gateway()
        port = str(free_port())
        first = await system.start_worker("--model", "demo", "--port", port)
        await system.models({"demo"})
        first.send_signal(signal.SIGKILL)
        await first.wait()
        await system.start_worker("--model", "demo", "--port", port)
        lost = await scheduler.line("worker_lost")
        assert lost["reason"] == "replaced"
        async with system.openai() as client:
            answer = await client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0)
        assert answer.choices[0].message.content == WHO.answer


async def test_a_worker_told_to_go_finishes_what_it_began_and_leaves() -> None:
    async with System() as system:
        scheduler = await system.start_scheduler()
        await system.start_gateway()
        worker = await system.start_worker("--model", "demo")
        await system.models({"demo"})
        async with system.openai() as client:
            stream = await client.chat.completions.create(
                model="demo", messages=[{"role": "user", "content": LONG.question}], temperature=0, stream=True
            )
            chunks = aiter(stream)
            said = [await anext(chunks), await anext(chunks)]
            worker.send_signal(signal.SIGTERM)
            await scheduler.line("worker_draining")
            said += [chunk async for chunk in chunks]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in said) == LONG.answer
        assert await worker.wait() == 0
        await scheduler.line("worker_left")


async def test_a_gateway_told_to_go_finishes_its_streams() -> None:
    async with System() as system:
        await system.start_scheduler()
        gateway = await system.start_gateway()
        await system.start_worker("--model", "demo")
        await system.models({"demo"})
        async with system.openai() as client:
            stream = await client.chat.completions.create(
                model="demo", messages=[{"role": "user", "content": LONG.question}], temperature=0, stream=True
            )
            chunks = aiter(stream)
            said = [await anext(chunks), await anext(chunks)]
            gateway.send_signal(signal.SIGTERM)
            await gateway.line("draining")
            said += [chunk async for chunk in chunks]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in said) == LONG.answer
        assert await gateway.wait() == 0


async def status_of(http: aiohttp.ClientSession, path: str) -> int:
    async with http.get(path) as response:
        return response.status


async def test_a_gateway_told_to_go_is_not_ready_at_once_and_serves_on_until_everybody_has_seen_it() -> None:
    async with System() as system:
        await system.start_scheduler()
        gateway = await system.start_gateway("--settle-s", "1")
        await system.start_worker("--model", "demo")
        await system.models({"demo"})
        async with system.openai() as client, aiohttp.ClientSession(system.gateway_url) as http:
            assert await status_of(http, "/ready") == 200
            gateway.send_signal(signal.SIGTERM)
            await gateway.line("draining")
            assert await status_of(http, "/ready") == 503
            answer = await client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0)
            assert answer.choices[0].message.content == WHO.answer
        assert await gateway.wait() == 0
        async with aiohttp.ClientSession() as http:
            with pytest.raises(aiohttp.ClientConnectorError):
                await http.get(f"{system.gateway_url}/ready")


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_a_gateway_told_twice_ends_at_once(processes: str) -> None:
    async with System() as system:
        await system.start_scheduler()
        gateway = await system.start_gateway("--processes", processes, "--drain-timeout-s", "60")
        await system.start_worker("--model", "sim", "--engine", "sim", "--sim-step-ms", "1000")
        await system.models({"sim"})
        body = {"model": "sim", "messages": MESSAGES, "max_tokens": 50, "stream": True}
        async with aiohttp.ClientSession(system.gateway_url) as http, http.post(PATH, json=body) as response:
            await response.content.readline()
            gateway.send_signal(signal.SIGTERM)
            await gateway.line("draining")
            gateway.send_signal(signal.SIGTERM)
            with pytest.raises(aiohttp.ClientError):
                await response.content.read()
        assert await gateway.wait(10) == 0


async def test_several_gateway_processes_share_the_port_and_one_metrics_page() -> None:
    async with System() as system:
        await system.start_scheduler()
        gateway = await system.start_gateway("--processes", "2")
        await gateway.line("ready", lambda line: line["index"] == 0)
        await gateway.line("ready", lambda line: line["index"] == 1)
        await system.start_worker("--model", "sim", "--engine", "sim")
        await gateway.line("scheduler_connected")
        await system.models({"sim"})
        async with aiohttp.ClientSession(system.gateway_url) as http:
            for _ in range(10):
                # Each on a connection of its own, so that the kernel spreads them.
                body = {"model": "sim", "prompt": "x", "max_tokens": 1}
                async with http.post("/v1/completions", json=body, headers={"Connection": "close"}) as response:
                    assert response.status in (200, 503)
            async with http.get("/metrics") as response:
                page = await response.text()
        counted = [
            float(line.split()[-1]) for line in page.splitlines() if line.startswith("lb_gateway_requests_total{")
        ]
        assert sum(counted) == 10
        gateway.send_signal(signal.SIGTERM)
        assert await gateway.wait() == 0


async def test_processes_whose_supervisor_was_killed_end_and_free_the_port() -> None:
    async with System() as system:
        await system.start_scheduler()
        gateway = await system.start_gateway("--processes", "2")
        await gateway.line("ready", lambda line: line["index"] == 0)
        await gateway.line("ready", lambda line: line["index"] == 1)
        gateway.send_signal(signal.SIGKILL)
        # Their output ends only when all of them have.
        await gateway.wait(20)
        again = await system.start_gateway("--port", system.gateway_url.rpartition(":")[2])
        await again.line("ready")


async def test_a_client_that_goes_away_frees_its_worker() -> None:
    async with System() as system:
        await system.start_scheduler()
        await system.start_gateway()
        # So slow that the requests could not end by themselves before the test does.
        worker = await system.start_worker("--model", "sim", "--engine", "sim", "--sim-step-ms", "200")
        await system.models({"sim"})
        metrics = f"http://{(await worker.line('ready'))['metrics']}/metrics"
        body = {"model": "sim", "messages": MESSAGES, "max_tokens": 5000, "ignore_eos": True}

        async def in_flight(http: aiohttp.ClientSession, expected: int) -> None:
            running, queued = "lb_worker_running_requests", "lb_worker_queued_requests"
            async with asyncio.timeout(10):
                while True:
                    async with http.get(metrics) as response:
                        page = dict(
                            line.rsplit(" ", 1) for line in (await response.text()).splitlines() if line[0] != "#"
                        )
                    if float(page[running]) + float(page[queued]) == expected:
                        return
                    await asyncio.sleep(0.01)

        async with aiohttp.ClientSession() as http:
            url = f"{system.gateway_url}/v1/chat/completions"
            plain = asyncio.create_task(http.post(url, json=body))
            streamed = await http.post(url, json={**body, "stream": True})
            await in_flight(http, 2)
            streamed.close()
            plain.cancel()
            await in_flight(http, 0)


async def test_the_demo_of_the_readme_streams_an_answer_and_a_plain_one() -> None:
    demo = Path(__file__).parents[2] / "tools" / "demo.py"
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(demo), "--smoke", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(120):
        printed, _ = await child.communicate()
    assert child.returncode == 0, printed.decode()
    assert WHO.answer in printed.decode()


@pytest.mark.parametrize("script", ["lb-scheduler", "lb-gateway", "lb-worker"])
async def test_a_port_in_use_is_one_line_and_exit_status_2(script: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        args = ["--port", str(taken.getsockname()[1])]
        args += ["--model", "sim", "--engine", "sim"] if script == "lb-worker" else []
        async with await Process.start(script, *args) as process:
            assert await process.wait() == 2
    assert len(process.errors) == 1, process.errors
    assert "--port: cannot listen on 127.0.0.1" in process.errors[0]
    assert "in use" in process.errors[0]


@pytest.mark.parametrize("content", [None, b"", b"# just text\n" * 100, GGUF_PATH.read_bytes()[:5000]])
async def test_a_model_that_is_missing_or_none_is_one_line_and_exit_status_2(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    async with await Process.start("lb-worker", "--model", str(path)) as process:
        assert await process.wait() == 2
    assert len(process.errors) == 1, process.errors
    assert "model.gguf" in process.errors[0]
