"""Several servers behind one engine: who is asked, who is not, and what others make them do."""

from __future__ import annotations

import asyncio

import pytest

from lbcore.errors import (
    Cancelled,
    Saturated,
    StreamInterrupted,
    WorkerUnreachable,
)
from lbcore.generation import Finished
from tests.contract.engines import Answer
from tests.contract.scripted import (
    USAGE,
    Exchange,
    ScriptedServer,
    bad_ends,
    chunk,
    cut_after,
    hang_up,
    idle,
    passing,
    running,
)
from tests.fakes import ManualClock, settle
from worker.engines.openai.engine import OpenAIEngine


async def unused_url() -> str:
    server = ScriptedServer()
    await server.start()
    await server.stop()
    return server.url


async def test_the_next_server_is_asked_when_one_cannot_be_reached() -> None:
    good = ScriptedServer()
    async with running(good, at=(await unused_url(),)) as watch:
        for _ in range(6):
            assert (await watch.chat("Hello").end()).text() == "Hello there"
    bad = ScriptedServer(hang_up)
    good = ScriptedServer()
    async with running(bad, good) as watch:
        for _ in range(6):
            assert (await watch.chat("Hello").end()).text() == "Hello there"
        assert bad.exchanges
        # A connection that was used before is given a second chance, which is not counted.
        assert 0 < bad_ends(watch)["unreachable"] <= len(bad.exchanges)


async def test_the_next_server_is_asked_when_one_is_busy_and_the_last_one_s_word_counts() -> None:
    servers = [ScriptedServer(lambda it: it.reply(503, {}, **{"Retry-After": "3"})) for _ in range(2)]
    async with running(*servers) as watch:
        answer = await watch.chat("Hello").end()
        assert isinstance(answer.error, Saturated)
        assert [len(server.exchanges) for server in servers] == [1, 1]


async def test_nobody_is_asked_twice_once_something_came() -> None:
    servers = [ScriptedServer(lambda it: cut_after(it, chunk("Hello"))) for _ in range(2)]
    async with running(*servers) as watch:
        assert isinstance((await watch.chat("Hello").end()).error, StreamInterrupted)
        assert sum(len(server.exchanges) for server in servers) == 1


async def test_a_server_that_is_gone_gets_nothing_until_it_is_back() -> None:
    one, other, clock = ScriptedServer(), ScriptedServer(), ManualClock()
    async with running(one, other, clock=clock) as watch:
        assert isinstance(watch.engine, OpenAIEngine)
        first = watch.engine._upstreams[0]
        await one.stop()
        await passing(clock, lambda: not first.is_ready)
        for _ in range(4):
            assert (await watch.chat("Hello").end()).finished
        assert (len(one.exchanges), len(other.exchanges)) == (0, 4)
        await other.stop()
        await passing(clock, lambda: not any(upstream.is_ready for upstream in watch.engine._upstreams))  # type: ignore[attr-defined]
        answer = await watch.chat("Hello").end()
        assert isinstance(answer.error, WorkerUnreachable)
        assert watch.engine.load().unready
        await one.start()
        await passing(clock, lambda: first.is_ready)
        assert not watch.engine.load().unready
        assert (await watch.chat("Hello").end()).finished
        assert len(one.exchanges) == 1


@pytest.mark.parametrize("how", ["health", "slow"])
async def test_a_server_that_is_not_well_gets_nothing(how: str) -> None:
    server, clock = ScriptedServer(), ManualClock()
    async with running(server, clock=clock) as watch:
        assert isinstance(watch.engine, OpenAIEngine)
        server.health_status = 503 if how == "health" else 500
        await passing(clock, lambda: not watch.engine._upstreams[0].is_ready)  # type: ignore[attr-defined]
        assert isinstance((await watch.chat("Hello").end()).error, WorkerUnreachable)
        server.health_status = 200
        await passing(clock, lambda: watch.engine._upstreams[0].is_ready)  # type: ignore[attr-defined]
        assert (await watch.chat("Hello").end()).finished


async def test_those_who_wait_are_told_when_the_last_server_goes() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(chunk("Hello"))
        await asyncio.Event().wait()

    server = ScriptedServer(script)
    async with running(server, upstream_max_sequences=1) as watch:
        served, waiting = watch.chat("Hello"), watch.chat("Hello")
        await served.until(lambda answer: bool(answer.deltas))
        assert len(server.exchanges) == 1
        assert isinstance(watch.engine, OpenAIEngine)
        watch.engine._upstreams[0].lost("it is a test")
        assert isinstance((await waiting.end()).error, WorkerUnreachable)
        assert not served.ended
        watch.abort(served.request_id)
        await served.end()


async def test_what_waits_is_cancelled_without_the_server_and_others_go_on() -> None:
    go_on = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.send(chunk("Hello"))
        await go_on.wait()
        await exchange.answer("!")

    server = ScriptedServer(script)
    async with running(server, upstream_max_sequences=2) as watch:
        running_ones = [watch.chat("Hello") for _ in range(2)]
        waiting = [watch.chat("Hello", f"w{number}") for number in range(3)]
        for answer in running_ones:
            await answer.until(lambda answer: bool(answer.deltas))
        watch.abort("w1")
        await settle(2)
        assert isinstance(waiting[1].error, Cancelled)
        assert len(server.exchanges) == 2
        go_on.set()
        for answer in (*running_ones, waiting[0], waiting[2]):
            assert (await answer.end()).text() == "Hello!"
        assert len(server.exchanges) == 4


async def test_the_server_with_less_to_do_is_asked() -> None:
    go_on = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await go_on.wait()
        await exchange.answer("Hello")

    servers = [ScriptedServer(script, owner="vllm") for _ in range(2)]
    # Somebody else keeps the first busy.
    servers[0].page = "vllm:num_requests_running 4\nvllm:num_requests_waiting 0\n"
    clock = ManualClock()
    async with running(*servers, clock=clock) as watch:
        await passing(clock, lambda: watch.engine.load().other_running_requests == 4)
        answers = [watch.chat("Hello") for _ in range(8)]
        await servers[1].happened.until(lambda: len(servers[1].exchanges) == 6)
        assert len(servers[0].exchanges) == 2
        go_on.set()
        for answer in answers:
            await answer.end()


async def test_others_are_told_from_us() -> None:
    go_on = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await go_on.wait()
        await exchange.answer("Hello")

    page = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="x"} %d.0
vllm:num_requests_waiting{engine="0",model_name="x"} %d.0
vllm:kv_cache_usage_perc{engine="0",model_name="x"} 0.5
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="1000"} 1.0
"""
    server, clock = ScriptedServer(script, owner="vllm", max_model_len=4096), ManualClock()
    server.page = page % (0, 0)
    async with running(server, clock=clock) as watch:
        assert watch.info.context_length == 4096
        assert (watch.info.capacity.kv_blocks, watch.info.capacity.kv_block_size) == (1000, 16)
        answers = [watch.chat("Hello") for _ in range(3)]
        await server.happened.until(lambda: len(server.exchanges) == 3)
        server.page = page % (2, 1)
        looks = server.looks
        await passing(clock, lambda: server.looks > looks + 8)
        load = watch.engine.load()
        assert (load.other_running_requests, load.other_queued_requests, load.kv_used_blocks) == (0, 0, 500)
        server.page = page % (4, 6)
        await passing(clock, lambda: watch.engine.load().other_queued_requests)
        load = watch.engine.load()
        assert (load.other_running_requests, load.other_queued_requests) == (4, 3)
        go_on.set()
        for answer in answers:
            await answer.end()
        await idle(watch)
        # Ours had 40 tokens to compute each.
        assert watch.engine.load().other_queued_prompt_tokens == 40 * watch.engine.load().other_queued_requests


async def test_one_that_was_refused_somewhere_holds_up_nobody() -> None:
    refused = asyncio.Event()

    async def refuse_first(it: Exchange) -> None:
        if not refused.is_set():
            refused.set()
            await it.reply(429, {})
        else:
            await it.send(chunk("Hello", "stop", usage=USAGE), "[DONE]")

    async def go_on(it: Exchange) -> None:
        await it.send(chunk("Hello"))
        await asyncio.Event().wait()

    picky, full = ScriptedServer(refuse_first), ScriptedServer(go_on)
    async with running(picky, full, upstream_max_sequences=1) as watch:
        # One fills the server that never ends, one is refused by the other, and the rest must not wait for either.
        answers = [watch.chat("Hello", f"r{number}") for number in range(6)]
        ended: list[Answer] = []
        while len(ended) < 5:
            await asyncio.wait(
                [asyncio.ensure_future(answer.end()) for answer in answers if not answer.ended],
                return_when=asyncio.FIRST_COMPLETED,
            )
            ended = [answer for answer in answers if answer.ended]
        assert sum(isinstance(answer.events[-1], Finished) for answer in ended) >= 4
        for answer in answers:
            watch.abort(answer.request_id)
            await answer.end()
