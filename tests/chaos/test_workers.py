"""Workers are killed, stopped and told to go while they answer, and no client notices."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.chaos.crowd import Ask, Fate
from tests.chaos.fleet import DEMO, SIM, fleet, stories
from worker.demo import load_faq


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_worker_killed_under_its_answers_costs_nobody_a_word(stream: bool) -> None:
    async with fleet(3, *SIM) as one:
        async with one.hurt(stories(60, stream=stream), 60, stream=stream) as victim:
            victim.send_signal(signal.SIGKILL)
        await one.quiet()


async def test_an_answer_of_llama_cpp_goes_on_word_for_word() -> None:
    async with fleet(2, *DEMO) as one:
        asks = [Ask("demo", entry.question, 200) for entry in load_faq()[:24]]
        async with one.hurt(asks, 6) as victim:
            victim.send_signal(signal.SIGKILL)
        await one.quiet()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_worker_that_stands_still_is_found_by_the_silence_of_its_answers(stream: bool) -> None:
    async with fleet(2, *SIM, gateway=("--stall-timeout-s", "1")) as one:
        victim = next(iter(one.workers.values()))
        try:
            async with one.hurt(stories(20, stream=stream), 20, stream=stream):
                victim.send_signal(signal.SIGSTOP)
        finally:
            victim.send_signal(signal.SIGCONT)
        await one.quiet()


async def test_a_worker_told_to_go_hands_over_what_it_cannot_finish_in_time() -> None:
    async with fleet(2, *SIM, "--drain-timeout-s", "0.3") as one:
        async with one.hurt(stories(20), 20) as victim:
            victim.send_signal(signal.SIGTERM)
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
        assert await one.lost_attempts() > 0, "nobody was hurt"
        await one.quiet()
