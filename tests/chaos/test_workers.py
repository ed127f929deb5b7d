"""Workers are killed, stopped and told to go while they answer, and no client notices."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.chaos.crowd import Ask, Fate
from tests.chaos.fleet import DEMO, SIM, fleet, stories, under_way
from worker.demo import load_faq


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_worker_killed_under_its_answers_costs_nobody_a_word(stream: bool) -> None:
    async with fleet(3, *SIM) as one:
        asks = stories(60, stream=stream)
        expected = await one.crowd.learn(asks)
        one.crowd.first_tokens = 0
        running = asyncio.ensure_future(one.crowd.all(asks, expected))
        if stream:
            await under_way(one.crowd, 60)
        else:
            await asyncio.sleep(1.0)
        next(iter(one.workers.values())).send_signal(signal.SIGKILL)
        await running
        assert one.crowd.fates == {Fate.SAVED: 60}, one.crowd.told[:5]
        await one.quiet()


async def test_an_answer_of_llama_cpp_goes_on_word_for_word() -> None:
    async with fleet(2, *DEMO) as one:
        asks = [Ask("demo", entry.question, 200) for entry in load_faq()[:12]]
        expected = await one.crowd.learn(asks)
        assert [expected[ask].text for ask in asks] == [entry.answer for entry in load_faq()[:12]]
        one.crowd.first_tokens = 0
        running = asyncio.ensure_future(one.crowd.all(asks, expected))
        await under_way(one.crowd, 6)
        next(iter(one.workers.values())).send_signal(signal.SIGKILL)
        await running
        assert one.crowd.fates == {Fate.SAVED: 12}, one.crowd.told[:5]
        await one.quiet()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_worker_that_stands_still_is_found_by_the_silence_of_its_answers(stream: bool) -> None:
    async with fleet(2, *SIM, gateway=("--stall-timeout-s", "1")) as one:
        asks = stories(20, stream=stream)
        expected = await one.crowd.learn(asks)
        one.crowd.first_tokens = 0
        running = asyncio.ensure_future(one.crowd.all(asks, expected))
        if stream:
            await under_way(one.crowd, 20)
        else:
            await asyncio.sleep(1.0)
        victim = next(iter(one.workers.values()))
        victim.send_signal(signal.SIGSTOP)
        try:
            await running
        finally:
            victim.send_signal(signal.SIGCONT)
        assert one.crowd.fates == {Fate.SAVED: 20}, one.crowd.told[:5]
        await one.quiet()


async def test_a_worker_told_to_go_hands_over_what_it_cannot_finish_in_time() -> None:
    async with fleet(2, *SIM, "--drain-timeout-s", "0.3") as one:
        asks = stories(20)
        expected = await one.crowd.learn(asks)
        one.crowd.first_tokens = 0
        running = asyncio.ensure_future(one.crowd.all(asks, expected))
        await under_way(one.crowd, 20)
        victim = next(iter(one.workers.values()))
        victim.send_signal(signal.SIGTERM)
        await running
        assert one.crowd.fates == {Fate.SAVED: 20}, one.crowd.told[:5]
        assert await victim.wait() == 0


async def test_workers_that_are_killed_one_after_the_other_and_come_back_cost_nobody_a_word() -> None:
    async with fleet(4, *SIM) as one:
        asks = stories(100)
        expected = await one.crowd.learn(asks)
        over = asyncio.Event()
        running = asyncio.ensure_future(one.crowd.keep_asking(asks, expected, over))
        for port in [*one.workers, *one.workers]:
            await asyncio.sleep(2.5)
            one.workers[port].send_signal(signal.SIGKILL)
            await one.workers[port].wait()
            await one.start(port)
        over.set()
        await running
        assert set(one.crowd.fates) == {Fate.SAVED}, one.crowd.told[:5]
        assert one.crowd.fates[Fate.SAVED] > 300
        await one.quiet()
