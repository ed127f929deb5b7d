"""The simulated engine on a manual clock: when its tokens come, and what it measures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest

from lbcore.config import load as load_options
from lbcore.errors import (
    ConfigError,
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    StreamInterrupted,
    WorkerUnreachable,
)
from lbcore.generation import Delta, Dialect, Embedding, Event, Failed, Finished, GenerationRequest, Started
from tests.fakes import ManualClock, settle
from worker.engine import EngineInfo
from worker.engines.sim.engine import MAX_LAG_S, SimEngine, SimOptions
from worker.engines.step_meter import PRIOR_ATTENTION_RATIO

STEP_S = 0.01
OPTIONS = SimOptions(step_ms=10.0, prefill_tokens_per_s=1000.0)


@asynccontextmanager
async def started(options: SimOptions, clock: ManualClock) -> AsyncIterator[SimEngine]:
    engine = SimEngine(options, clock)
    await engine.start()
    yield engine
    await engine.close()


def ask(prompt: object = "abcd", request_id: str = "r", /, **fields: object) -> GenerationRequest:
    return GenerationRequest(request_id, Dialect.COMPLETION, orjson.dumps({"prompt": prompt, **fields}))


def embed(given: object = "abcd", request_id: str = "r", /, **fields: object) -> GenerationRequest:
    return GenerationRequest(request_id, Dialect.EMBEDDING, orjson.dumps({"input": given, **fields}))


def ignore(event: Event) -> None:
    """For answers that do not matter."""


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


async def test_tokens_come_at_the_ends_of_steps() -> None:
    clock = ManualClock(now=0.0)
    async with started(OPTIONS, clock) as engine:
        events: list[Event] = []
        engine.submit(ask("x" * 40, max_tokens=3), events.append)
        await clock.elapse(0.019)
        assert events == [Started(10, 0)]
        await clock.elapse(0.002)
        assert len(events) == 2
        await clock.elapse(0.020)
        assert len(events) == 5
        assert events[-1] == Finished(10, 0, 3)


async def test_late_timers_do_not_slow_the_mean_rate() -> None:
    clock = ManualClock(now=0.0)
    async with started(OPTIONS, clock) as engine:
        events: list[Event] = []
        engine.submit(ask(max_tokens=1000), events.append)
        await settle()
        # Every wake-up comes 3 to 4 ms late, and still a hundred steps take a second.
        for _ in range(80):
            clock.advance(0.013)
            await settle()
        assert 1.04 / STEP_S - 2 <= sum(isinstance(event, Delta) for event in events) <= 1.04 / STEP_S


async def test_a_long_stop_is_not_made_up_for() -> None:
    clock = ManualClock(now=0.0)
    async with started(OPTIONS, clock) as engine:
        events: list[Event] = []
        engine.submit(ask(max_tokens=5000), events.append)
        await settle()
        clock.advance(20.0)
        await settle(1000)
        assert sum(isinstance(event, Delta) for event in events) <= MAX_LAG_S / STEP_S + 2


async def test_an_idle_time_is_not_made_up_for() -> None:
    clock = ManualClock(now=0.0)
    async with started(OPTIONS, clock) as engine:
        await clock.elapse(10.0)
        events: list[Event] = []
        engine.submit(ask(max_tokens=50), events.append)
        await settle(200)
        assert events == [Started(1, 0)]


async def test_an_unpaced_engine_lets_others_run_between_steps() -> None:
    async with started(SimOptions(step_ms=0), ManualClock()) as engine:
        events: list[Event] = []
        engine.submit(ask(max_tokens=100), events.append)
        turns = 0
        while not events or not isinstance(events[-1], Finished):
            await asyncio.sleep(0)
            turns += 1
        assert turns >= 100


async def test_stamps_are_the_monotonic_clock() -> None:
    before = time.monotonic_ns()
    async with started(SimOptions(step_ms=0, stamp=True), ManualClock()) as engine:
        events: list[Event] = []
        engine.submit(ask(max_tokens=20, n=2), events.append)
        await settle(100)
    stamps = [int(stamp) for stamp in text(events).split()]
    assert len(stamps) == 40
    assert stamps == sorted(stamps)
    assert before <= stamps[0] <= stamps[-1] <= time.monotonic_ns()


@pytest.mark.parametrize("field", ["stop", "logprobs"])
async def test_a_stamping_engine_refuses_what_needs_a_known_text(field: str) -> None:
    value: object = "x" if field == "stop" else 1
    async with started(SimOptions(step_ms=0, stamp=True), ManualClock()) as engine:
        events: list[Event] = []
        engine.submit(ask(**{field: value}), events.append)
        await settle()
    (event,) = events
    assert isinstance(event, Failed)
    assert isinstance(event.error, InvalidRequest)
    assert event.error.param == field


async def test_answers_depend_on_the_seeds_and_on_nothing_else() -> None:
    async def answer(engine_seed: int, prompt: str = "abcd", **fields: object) -> str:
        async with started(SimOptions(step_ms=0, seed=engine_seed), ManualClock()) as engine:
            events: list[Event] = []
            engine.submit(ask(prompt, max_tokens=12, **fields), events.append)
            await settle(50)
            return text(events)

    assert await answer(0) == await answer(0) == await answer(0, temperature=2)
    assert len({await answer(0), await answer(1), await answer(0, seed=1), await answer(0, prompt="abce")}) == 4


async def test_the_load_is_true_at_every_step() -> None:
    clock = ManualClock(now=0.0)
    async with started(SimOptions(step_ms=10, max_num_seqs=1, kv_blocks=100), clock) as engine:
        for number in range(2):
            engine.submit(ask("x" * 128, str(number), max_tokens=20), ignore)
        await clock.elapse(0.03)
        assert (engine.load().kv_used_blocks, engine.load().kv_cached_blocks) == (3, 0)
        engine.abort("0")
        assert (engine.load().kv_used_blocks, engine.load().kv_cached_blocks) == (0, 2)
        await clock.elapse(1.0)
        load = engine.load()
        assert (load.kv_used_blocks, load.kv_cached_blocks) == (0, 2)
        assert load.step_time_ms == pytest.approx(10)
        assert load.prefill_tokens_per_s == pytest.approx(20_000, rel=0.05)


async def test_a_preempted_request_loses_no_token() -> None:
    clock = ManualClock(now=0.0)
    options = SimOptions(step_ms=1, kv_blocks=8, block_size=4, max_num_seqs=4, token_budget=8)
    async with started(options, clock) as engine:
        answers: list[list[Event]] = [[], []]
        for number, events in enumerate(answers):
            engine.submit(ask(f"{number}" * 44, str(number), max_tokens=18), events.append)
        await clock.elapse(2.0)
    for events in answers:
        assert events[-1] == Finished(11, 0, 18)
        assert sum(isinstance(event, Delta) for event in events) == 18
        assert sum(isinstance(event, Started) for event in events) == 1


async def test_the_context_is_no_longer_than_the_cache() -> None:
    engine = SimEngine(SimOptions(kv_blocks=10, block_size=16), ManualClock())
    info = await engine.start()
    assert isinstance(info, EngineInfo)
    assert info.context_length == 160
    assert (info.capacity.kv_blocks, info.capacity.kv_block_size, info.capacity.max_sequences) == (10, 16, 64)
    await engine.close()


async def test_an_answer_without_a_limit_is_cut_at_the_context() -> None:
    async with started(SimOptions(step_ms=0, context_length=15), ManualClock()) as engine:
        events: list[Event] = []
        engine.submit(ask("x" * 40), events.append)
        await settle(50)
        assert events[-1] == Finished(10, 0, 5)


async def test_a_token_may_abort_the_other_requests() -> None:
    async with started(SimOptions(step_ms=0), ManualClock()) as engine:
        answers: list[list[Event]] = [[], [], []]

        def abort_others(event: Event) -> None:
            answers[1].append(event)
            if isinstance(event, Delta):
                engine.abort("0")
                engine.abort("2")

        engine.submit(ask("a", "0", max_tokens=9), answers[0].append)
        engine.submit(ask("b", "1", max_tokens=9), abort_others)
        engine.submit(ask("c", "2", max_tokens=9), answers[2].append)
        await settle(50)
        assert isinstance(answers[1][-1], Finished)
        for events in (answers[0], answers[2]):
            assert sum(isinstance(event, Finished | Failed) for event in events) == 1
            assert isinstance(events[-1], Failed)
        assert not any(isinstance(event, Delta) for event in answers[2])


async def test_closing_tells_who_may_be_tried_elsewhere() -> None:
    clock = ManualClock(now=0.0)
    engine = SimEngine(OPTIONS, clock)
    await engine.start()
    answered: list[Event] = []
    engine.submit(ask(max_tokens=50), answered.append)
    await clock.elapse(0.05)
    waiting: list[Event] = []
    engine.submit(ask("abcd", "later", max_tokens=50), waiting.append)
    await engine.close()
    assert isinstance(answered[-1], Failed)
    assert isinstance(answered[-1].error, StreamInterrupted)
    assert isinstance(waiting[-1], Failed)
    assert isinstance(waiting[-1].error, WorkerUnreachable)


async def test_vectors_take_the_time_of_their_prompts_and_no_more() -> None:
    clock = ManualClock(now=0.0)
    async with started(OPTIONS, clock) as engine:
        events: list[Event] = []
        engine.submit(embed(["x" * 40, "y" * 80]), events.append)
        await clock.elapse(0.039)
        assert events == [Started(30, 0)]
        await clock.elapse(0.002)
        assert [type(event) for event in events] == [Started, Embedding, Embedding, Finished]
        assert events[-1] == Finished(30, 0, 0)


async def test_vectors_come_one_after_the_other_as_prompts_are_computed() -> None:
    clock = ManualClock(now=0.0)
    options = SimOptions(step_ms=10.0, prefill_tokens_per_s=1000.0, token_budget=64, embedding_size=3)
    async with started(options, clock) as engine:
        events: list[Event] = []
        engine.submit(embed([f"{number}" * 160 for number in range(4)]), events.append)
        await clock.elapse(0.080)
        assert [event.index for event in events if isinstance(event, Embedding)] == [0]
        await clock.elapse(1.0)
        vectors = [event for event in events if isinstance(event, Embedding)]
        assert [(event.index, len(event.vector)) for event in vectors] == [(index, 3) for index in range(4)]


async def test_nothing_of_what_was_embedded_stays_in_the_cache() -> None:
    async with started(SimOptions(step_ms=0), ManualClock()) as engine:
        for _ in range(2):
            events: list[Event] = []
            engine.submit(embed("x" * 4000), events.append)
            await settle(50)
            assert events[-1] == Finished(1000, 0, 0)
        assert engine.load().kv_cached_blocks == engine.load().kv_used_blocks == 0


async def test_an_input_may_fill_the_context_and_no_more() -> None:
    async with started(SimOptions(step_ms=0, kv_blocks=10, block_size=16), ManualClock()) as engine:
        fits: list[Event] = []
        engine.submit(embed("x" * 640), fits.append)
        beyond: list[Event] = []
        engine.submit(embed(["a", "x" * 644], "beyond"), beyond.append)
        await settle(50)
        assert fits[-1] == Finished(160, 0, 0)
        [failed] = beyond
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, ContextLengthExceeded)
        assert failed.error.param == "input"
        assert failed.error.message == "The context is 160 tokens; the input at 1 has 161."


async def test_closing_leaves_half_embedded_inputs_to_another_engine() -> None:
    clock = ManualClock(now=0.0)
    engine = SimEngine(SimOptions(step_ms=10.0, prefill_tokens_per_s=1000.0, token_budget=64), clock)
    await engine.start()
    events: list[Event] = []
    engine.submit(embed(["x" * 160] * 4), events.append)
    await clock.elapse(0.080)
    await engine.close()
    assert any(isinstance(event, Embedding) for event in events)
    assert isinstance(events[-1], Failed)
    assert isinstance(events[-1].error, WorkerUnreachable)


class BrokenClock(ManualClock):
    """Breaks when the engine sleeps for the first time."""

    async def sleep_until(self, t: float) -> None:
        raise OSError("no timer")


CHUNKED = SimOptions(step_ms=10.0, prefill_tokens_per_s=1000.0, token_budget=64)
"""A step of 64 prompt tokens takes 74 ms."""


def prefilled(engine: SimEngine) -> tuple[int, float]:
    load = engine.load()
    return load.prefilled_tokens, load.prefilled_pairs


async def test_what_is_computed_of_a_prompt_is_told_when_its_step_is_over() -> None:
    clock = ManualClock(now=0.0)
    async with started(CHUNKED, clock) as engine:
        events: list[Event] = []
        engine.submit(ask([1] * 192, max_tokens=2), events.append)
        told = []
        for seconds in (0.073, 0.074, 0.074):
            await clock.elapse(seconds)
            told.append(prefilled(engine))
        assert told == [(0, 0.0), (64, 64**2 / 2), (128, 128**2 / 2)]
        await clock.elapse(0.04)
        assert any(isinstance(event, Delta) for event in events)
        assert prefilled(engine) == (0, 0.0)


async def test_what_was_cached_of_a_prompt_was_not_computed() -> None:
    clock = ManualClock(now=0.0)
    async with started(CHUNKED, clock) as engine:
        engine.submit(ask([1] * 96, max_tokens=1), ignore)
        await clock.elapse(1.0)
        events: list[Event] = []
        engine.submit(ask([1] * 96 + [2] * 100, max_tokens=1), events.append)
        await clock.elapse(0.1)
        assert events == [Started(196, 96)]
        assert prefilled(engine) == (64, (160**2 - 96**2) / 2)


async def test_a_prompt_that_is_aborted_half_way_is_computed_no_further() -> None:
    clock = ManualClock(now=0.0)
    async with started(CHUNKED, clock) as engine:
        engine.submit(ask([1] * 160, max_tokens=2), ignore)
        await clock.elapse(0.1)
        assert prefilled(engine)[0] == 64
        engine.abort("r")
        assert prefilled(engine) == (0, 0.0)


async def test_the_second_of_several_inputs_does_not_wait_any_more_when_the_first_has_its_vector() -> None:
    clock = ManualClock(now=0.0)
    async with started(CHUNKED, clock) as engine:
        events: list[Event] = []
        engine.submit(embed([[1] * 60, [2] * 160]), events.append)
        await clock.elapse(0.1)
        assert isinstance(events[-1], Embedding)
        assert prefilled(engine) == (0, 0.0)


async def test_what_attention_costs_is_told_as_the_batch_measures_it() -> None:
    async with started(OPTIONS, ManualClock()) as engine:
        assert engine.load().attention_ratio == pytest.approx(PRIOR_ATTENTION_RATIO)


async def test_an_engine_that_breaks_says_so_and_ends_every_request() -> None:
    async with started(OPTIONS, BrokenClock()) as engine:
        events: list[Event] = []
        engine.submit(ask(), events.append)
        async with asyncio.timeout(5):
            assert "no timer" in await engine.failed()
        assert isinstance(events[-1], Failed)
        assert isinstance(events[-1].error, EngineFailed)


async def test_a_request_id_in_use_is_refused() -> None:
    clock = ManualClock()
    async with started(OPTIONS, clock) as engine:
        first: list[Event] = []
        second: list[Event] = []
        engine.submit(ask(max_tokens=2), first.append)
        engine.submit(ask(max_tokens=2), second.append)
        await clock.elapse(1.0)
    assert isinstance(first[-1], Finished)
    assert isinstance(second[-1], Failed)


async def test_a_budget_that_cannot_decode_a_full_batch_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="--sim-token-budget"):
        await SimEngine(SimOptions(token_budget=10), ManualClock()).start()


def test_the_options_are_flags() -> None:
    options = load_options(SimOptions, "lb-worker", ["--step-ms", "0", "--stamp"], {})
    assert options == SimOptions(step_ms=0, stamp=True)
