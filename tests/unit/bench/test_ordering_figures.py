from __future__ import annotations

import json
from statistics import StatisticsError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.ordering.client import read
from bench.ordering.figures import Answer, figures, played_figures, rank_correlation
from bench.ordering.fleets import CONTENDERS, Engine
from bench.ordering.traffic import Shape, simulated, traffic
from lbcore.policies.registry import build_policy
from lbcore.simulator.outcome import Objective, summarise
from lbcore.simulator.replay import Replay

GOOD = Answer(asked_s=1.0, first_s=1.5, last_s=2.5, prompt_tokens=100, cached_tokens=64, output_tokens=11)


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def stream(usage: object, done: bytes = b"data: [DONE]\n\n") -> bytes:
    delta = {"choices": [{"index": 0, "delta": {"content": "one "}}], "usage": None}
    return event(delta) + event({"choices": [], "usage": usage}) + done


def test_an_answer_knows_its_times() -> None:
    assert GOOD.ttft_ms == pytest.approx(500)
    assert GOOD.tpot_ms == pytest.approx(100)


def test_an_answer_of_one_token_has_no_time_per_further_one() -> None:
    assert Answer(0.0, 1.0, 1.0, 10, 0, 1).tpot_ms == 0


def test_figures_of_answers() -> None:
    late = Answer(2.0, 5.0, 5.1, 100, 0, 2)
    found = figures([GOOD, late], (1, 1), objective=Objective(1000, 150))
    assert (found.calls, found.failed, found.requests) == (2, 0, (1, 1))
    assert found.ttft.mean == pytest.approx(1750)
    assert found.tpot.p50 == pytest.approx(100)
    assert found.goodput == 0.5
    assert found.hit_rate == pytest.approx(0.32)


def test_a_failed_call_has_no_times_and_is_not_served_well() -> None:
    found = figures([GOOD, Answer(2.0, error="status 503")], (1,), objective=Objective(1000, 150))
    assert (found.calls, found.failed, found.goodput) == (2, 1, 0.5)
    assert found.ttft.p99 == pytest.approx(500)
    assert found.hit_rate == pytest.approx(0.64)


def test_the_first_calls_are_left_out() -> None:
    assert figures([Answer(0.0, error="cut off"), GOOD], (2,), skip=1).failed == 0


def test_figures_of_nothing() -> None:
    found = figures([], ())
    assert (found.calls, found.goodput, found.hit_rate, found.ttft.mean) == (0, 0.0, 0.0, 0.0)


def test_a_replay_comes_to_what_the_simulator_says() -> None:
    engine = Engine(workers=2)
    asks = traffic(Shape(systems=4), 4, 10, seed=1)
    played = Replay(
        simulated(asks, engine.block_tokens), engine.simulated(), build_policy("least_requests"), seed=1
    ).run()
    found, said = played_figures(played, 2), summarise(played, Objective(1000, 100), 2)
    assert (found.calls, found.failed) == (len(asks) - 2, 0)
    assert sum(found.requests) == len(asks)
    assert found.ttft.mean == pytest.approx(said.ttft.mean)
    assert found.tpot.p99 == pytest.approx(said.tpot.p99)
    assert (found.goodput, found.hit_rate) == (said.goodput, said.hit_rate)


def test_an_idle_engine_takes_one_step_and_the_prompt() -> None:
    assert Engine(step_ms=40, prefill_tokens_per_s=6000).idle_ttft_ms(60) == pytest.approx(50)


def test_the_engine_and_the_simulator_have_the_same_cache() -> None:
    engine = Engine()
    words = engine.words()
    assert words[words.index("--sim-kv-blocks") + 1] == "1024"
    assert words[words.index("--sim-block-size") + 1] == "64"
    assert engine.simulated().engine.kv_tokens == 1024 * 64


def test_every_contender_has_a_policy_that_can_be_simulated() -> None:
    for contender in CONTENDERS.values():
        build_policy(contender.policy)


def test_a_stream_says_what_was_cached() -> None:
    usage = {"prompt_tokens": 90, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 64}}
    assert read(stream(usage), 1.0, 2.0, 3.0) == Answer(1.0, 2.0, 3.0, 90, 64, 5)


def test_a_stream_without_details_has_cached_nothing() -> None:
    usage = {"prompt_tokens": 90, "completion_tokens": 5, "prompt_tokens_details": None}
    assert read(stream(usage), 1.0, 2.0, 3.0).cached_tokens == 0


@pytest.mark.parametrize(
    ("content", "first_s", "error"),
    [
        (stream({"prompt_tokens": 9, "completion_tokens": 5}, done=b""), 2.0, "cut off"),
        (stream(None), 2.0, "no usage"),
        (stream({"prompt_tokens": 9, "completion_tokens": 5}), -1.0, "no token"),
        (b"", -1.0, "cut off"),
    ],
)
def test_a_stream_that_is_not_whole_is_an_error(content: bytes, first_s: float, error: str) -> None:
    assert read(content, 1.0, first_s, first_s).error == error


def test_the_same_order_has_correlation_one_and_the_opposite_minus_one() -> None:
    real = {"a": 1.0, "b": 2.0, "c": 30.0}
    assert rank_correlation(real, {"a": 5.0, "b": 6.0, "c": 7.0}) == pytest.approx(1)
    assert rank_correlation(real, {"a": 7.0, "b": 6.0, "c": 5.0}) == pytest.approx(-1)


def test_equal_values_share_their_places() -> None:
    assert rank_correlation({"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 1.0, "b": 1.0, "c": 2.0}) == pytest.approx(
        0.866, abs=1e-3
    )


def test_only_names_that_both_have_count() -> None:
    assert rank_correlation({"a": 1.0, "b": 2.0, "x": 0.0}, {"b": 2.0, "a": 1.0}) == pytest.approx(1)


def test_one_name_has_no_order() -> None:
    with pytest.raises(StatisticsError):
        rank_correlation({"a": 1.0}, {"a": 1.0})


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=8, unique=True))
def test_correlation_sees_the_order_alone(values: list[int]) -> None:
    real = {str(index): float(value) for index, value in enumerate(values)}
    assert rank_correlation(real, {name: value**3 + 1 for name, value in real.items()}) == pytest.approx(1)
