"""How much a fleet can take, of open loops and of closed ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lbcore.policies.base import Policy
from lbcore.policies.registry import build_policy
from lbcore.simulator.capacity import at_load, calls_alone, calls_per_s, capacity, users
from lbcore.simulator.generate import poisson
from lbcore.simulator.replay import FleetSpec
from lbcore.simulator.worker import EngineSpec
from lbcore.simulator.workload import Call, Conversation, Workload
from worker.engines.sim.step_time import StepTime

BLOCK = 100
ENGINE = EngineSpec(
    step_time=StepTime(base_ms=10.0, token_ms=1.0), kv_tokens=40_000, max_num_seqs=32, token_budget=1_000_000
)
FLEET = FleetSpec(workers=2, engine=ENGINE)


def default() -> Policy:
    return build_policy("cost")


def talks(number: int, calls: int = 14, context: int = 8000, think_s: float = 300.0) -> Workload:
    """Users who ask about the same context again and again: eight seconds to compute where it is not cached."""
    made = []
    for talk in range(number):
        blocks = range(talk << 32, (talk << 32) + context // BLOCK)
        made.append(Conversation(str(talk), 0.0, [Call(context + 50, 11, blocks, think_s)] * calls))
    return Workload("talks", made, BLOCK, users=1)


def test_an_open_loops_capacity_is_what_is_completed_at_the_objective() -> None:
    workload = poisson(150)
    found = calls_per_s(workload, FLEET, default, tpot_ms=20.0)
    assert found == capacity(workload, FLEET, default, tpot_ms=20.0)
    assert 0.5 < found < calls_per_s(workload, FLEET, default, tpot_ms=200.0)


def test_a_closed_loop_takes_as_many_users_as_their_contexts_fit_the_caches() -> None:
    # Two caches of 40,000 tokens hold four contexts of 8,050 each, and something beside them.
    found = users(talks(24), FLEET, default, tpot_ms=100.0)
    assert 6 <= found <= 10
    twice = replace(FLEET, engine=replace(ENGINE, kv_tokens=80_000))
    assert 1.6 * found <= users(talks(24), twice, default, tpot_ms=100.0) <= 2.6 * found


def test_a_closed_loop_of_few_takes_no_more_than_there_are() -> None:
    assert users(talks(3), FLEET, default, tpot_ms=100.0) == 3


def test_where_tokens_come_too_slowly_for_anybody_one_user_is_what_is_left() -> None:
    assert users(talks(4), FLEET, default, tpot_ms=1.0) == 1


def test_alone_a_user_waits_for_what_is_new_and_for_the_answer() -> None:
    # 8,050 tokens at first and 50 then, at 1 ms each; a step of 10 ms for the prompt and one for each further token.
    first_s, second_s = 300.0 + 8.060 + 0.100, 300.0 + 0.060 + 0.100
    workload = talks(1, calls=2)
    assert calls_alone(workload, ENGINE, 0.0, first_s - 0.01) == 0
    assert calls_alone(workload, ENGINE, 0.0, first_s + 0.01) == 1
    assert calls_alone(workload, ENGINE, 0.0, first_s + second_s - 0.01) == 1
    assert calls_alone(workload, ENGINE, 0.0, first_s + second_s + 0.01) == 2
    assert calls_alone(workload, ENGINE, 310.0, 700.0) == 1


def test_alone_users_take_up_conversations_as_they_become_free() -> None:
    workload = replace(talks(4, calls=1), users=2)
    assert calls_alone(workload, ENGINE, 0.0, 400.0) == 2
    assert calls_alone(workload, ENGINE, 0.0, 700.0) == 4


def test_a_call_that_fits_no_engine_is_not_counted_as_answered() -> None:
    workload = Workload("long", [Conversation("a", 0.0, (Call(50_000, 1), Call(50, 1)))], BLOCK, users=1)
    assert calls_alone(workload, ENGINE, 0.0, 1000.0) == 1


@pytest.mark.parametrize(("load", "expected"), [(0.9, 36), (0.01, 1), (1.05, 42)])
def test_a_load_of_a_closed_loop_is_a_share_of_its_users(load: float, expected: int) -> None:
    assert at_load(talks(2, calls=1), load, 40.0).users == expected


def test_a_load_of_an_open_loop_is_a_share_of_its_rate() -> None:
    faster = at_load(poisson(500), 0.5, 20.0)
    span = faster.conversations[-1].at_s - faster.conversations[0].at_s
    assert faster.calls / span == pytest.approx(10.0)
