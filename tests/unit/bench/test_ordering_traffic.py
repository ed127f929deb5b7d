from __future__ import annotations

from statistics import fmean

import orjson
import pytest

from bench.ordering.traffic import SHAPES, Ask, Shape, simulated, traffic
from lbcore.generation import Dialect, GenerationRequest
from worker.engines.sim.body import read_body

SMALL = Shape(systems=3, system_tokens=100, question_tokens=20, answer_tokens=10)
BLOCK_TOKENS = 16


def systems(asks: list[Ask]) -> set[str]:
    return {ask.messages[0][1] for ask in asks}


def test_traffic_is_the_same_for_a_seed() -> None:
    asks = traffic(SMALL, 5, 20, seed=1)
    assert asks == traffic(SMALL, 5, 20, seed=1)
    assert asks != traffic(SMALL, 5, 20, seed=2)


def test_requests_come_in_order_within_the_time_at_the_rate() -> None:
    asks = traffic(SMALL, 20, 100, seed=1)
    times = [ask.at_s for ask in asks]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] < 100
    assert len(asks) == pytest.approx(2000, rel=0.1)
    assert [ask.number for ask in asks] == list(range(len(asks)))


def test_the_rate_is_there_from_the_begin() -> None:
    asks = traffic(SMALL, 20, 100, seed=1)
    early = sum(ask.at_s < 20 for ask in asks)
    assert early == pytest.approx(len(asks) / 5, rel=0.2)


def test_every_prompt_begins_with_one_of_the_system_prompts_the_first_most_often() -> None:
    asks = traffic(SMALL, 20, 100, seed=1)
    assert len(systems(asks)) == 3
    counts = sorted(sum(ask.messages[0][1] == text for ask in asks) for text in systems(asks))
    assert counts[-1] == pytest.approx(len(asks) * 6 / 11, rel=0.15)


def test_a_turn_repeats_what_was_said_before() -> None:
    asks = traffic(SMALL, 5, 60, seed=1)
    first = {ask.messages[:2]: ask for ask in asks if len(ask.messages) == 2}
    later = [ask for ask in asks if len(ask.messages) == 4 and ask.messages[:2] in first]
    assert later
    for ask in later:
        before = first[ask.messages[:2]]
        assert [role for role, _ in ask.messages] == ["system", "user", "assistant", "user"]
        assert len(ask.messages[2][1]) == 4 * before.output_tokens
        assert ask.at_s - before.at_s >= SMALL.pause_s / 2


def test_lengths_have_the_means_of_the_shape() -> None:
    asks = traffic(Shape(answer_tokens=100), 20, 100, seed=1)
    assert fmean(ask.output_tokens for ask in asks) == pytest.approx(100, rel=0.1)


def test_a_body_is_what_an_openai_server_takes() -> None:
    ask = Ask(0, 0.0, (("system", "Be brief."), ("user", "Who?")), 7)
    body = orjson.loads(ask.body())
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    assert body["max_tokens"] == 7
    assert body["stream"]
    assert body["stream_options"] == {"include_usage": True}


def test_the_simulator_plays_what_the_engine_would_read() -> None:
    asks = traffic(SMALL, 5, 20, seed=1)
    workload = simulated(asks, BLOCK_TOKENS)
    assert workload.block_tokens == BLOCK_TOKENS
    for ask, conversation in zip(asks, workload.conversations, strict=True):
        prompt = read_body(GenerationRequest("", Dialect.CHAT, ask.body())).prompts[0]
        (call,) = conversation.calls
        assert conversation.at_s == ask.at_s
        assert (call.input_tokens, call.output_tokens) == (prompt.tokens, ask.output_tokens)
        assert call.blocks == prompt.block_hashes(BLOCK_TOKENS)


def test_only_prompts_that_begin_alike_share_blocks() -> None:
    asks = traffic(SMALL, 5, 20, seed=1)
    calls = [conversation.calls[0] for conversation in simulated(asks, BLOCK_TOKENS).conversations]
    for ask, call in zip(asks[1:], calls[1:], strict=True):
        is_shared = call.blocks[0] == calls[0].blocks[0]
        assert is_shared == (ask.messages[0] == asks[0].messages[0])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_shapes_have_prompts_that_one_worker_cannot_keep_all_of(shape: Shape) -> None:
    asks = traffic(shape, 8, 60, seed=1)
    assert sum(len(text) for text in systems(asks)) / 4 > 1024 * 64 / 4
