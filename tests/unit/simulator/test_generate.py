"""Made-up traffic."""

from __future__ import annotations

from itertools import pairwise

import pytest

from lbcore.simulator.generate import GENERATORS, multi_turn, one_prefix
from lbcore.simulator.workload import Workload


@pytest.fixture(params=sorted(GENERATORS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def made(name: str, calls: int = 500, seed: int = 1) -> Workload:
    return GENERATORS[name](calls, seed)


def test_it_makes_about_as_many_calls_as_asked_for_at_about_one_a_second(name: str) -> None:
    workload = made(name)
    assert 500 <= workload.calls <= 512
    assert 250 < workload.conversations[-1].at_s < 1000


def test_a_seed_makes_the_same_traffic_again_and_another_one_other(name: str) -> None:
    assert made(name) == made(name)
    assert made(name) != made(name, seed=2)


def test_conversations_come_in_order_of_time(name: str) -> None:
    starts = [talk.at_s for talk in made(name).conversations]
    if name != "bursts":
        assert starts == sorted(starts)
    assert all(second - first > -0.1 for first, second in pairwise(starts))


def test_no_prompt_has_more_blocks_than_it_and_its_answer_fill(name: str) -> None:
    workload = made(name)
    for talk in workload.conversations:
        for call in talk.calls:
            assert len(call.blocks) <= (call.input_tokens + call.output_tokens) // workload.block_tokens


def test_one_prefix_is_shared_by_all_and_the_rest_by_nobody() -> None:
    prompts = [talk.calls[0].blocks for talk in one_prefix(100).conversations]
    assert len({tuple(blocks[:32]) for blocks in prompts}) == 1
    own = [block for blocks in prompts for block in blocks[32:]]
    assert len(own) == len(set(own))


def test_a_turn_begins_with_all_that_was_said_before() -> None:
    for talk in multi_turn(200).conversations:
        for before, after in pairwise(talk.calls):
            said = before.input_tokens + before.output_tokens
            assert after.input_tokens > said
            assert tuple(after.blocks[: len(before.blocks)]) == tuple(before.blocks)
