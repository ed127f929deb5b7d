"""Quiet steps taken many at once are the steps that would have been taken one by one."""

from __future__ import annotations

from copy import deepcopy

from hypothesis import given
from hypothesis import strategies as st

from worker.engines.sim.batch import SimBatch
from worker.engines.sim.step_time import StepTime

SEQUENCES = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 60), st.integers(0, 12)),
    min_size=1,
    max_size=8,
)
"""Prompt tokens, output tokens, and steps before it comes."""


def batch(kv_blocks: int) -> SimBatch[int]:
    step_time = StepTime(base_ms=10.0, token_ms=0.5, sequence_ms=0.3, pair_ms=0.001, context_ms=0.01)
    return SimBatch(step_time=step_time, kv_blocks=kv_blocks, block_size=8, max_num_seqs=4, token_budget=16)


def filled(sequences: list[tuple[int, int, int]], kv_blocks: int) -> SimBatch[int]:
    made = batch(kv_blocks)
    for key, (prompt, output, wait) in enumerate(sequences):
        for _ in range(wait):
            made.step()
        made.add(key, prompt, output, tuple(hash((key, block)) for block in range((prompt + output) // 8)))
    return made


@given(SEQUENCES, st.integers(16, 64))
def test_a_batch_that_coasts_goes_on_as_one_that_steps(sequences: list[tuple[int, int, int]], kv_blocks: int) -> None:
    coasting = filled(sequences, kv_blocks)
    stepping = deepcopy(coasting)
    now = ends = 0.0
    while coasting.has_work:
        quiet = coasting.quiet_steps()
        taken, ends = coasting.coast(quiet, ends, float("inf"))
        assert taken == quiet
        for _ in range(quiet):
            outcome = stepping.step()
            assert not outcome.started
            assert not outcome.first
            assert not outcome.finished
            assert not outcome.preempted
            assert not outcome.prefill_tokens
            now += outcome.duration_ms / 1000
        assert now == ends
        assert coasting.state() == stepping.state()
        one, other = coasting.step(), stepping.step()
        assert one._replace(decoding=()) == other._replace(decoding=())
        assert list(one.decoding) == list(other.decoding)
        now += one.duration_ms / 1000
        ends = now
    assert not stepping.has_work


def test_a_step_that_is_not_over_in_time_is_not_taken() -> None:
    made = filled([(4, 50, 0), (4, 60, 0)], kv_blocks=64)
    made.step()
    quiet = made.quiet_steps()
    # Each has four tokens in a block of eight: four more steps fill it.
    assert quiet == 4
    step_s = (10.0 + 0.3 + 0.01 * 8) / 1000
    assert made.coast(quiet, 5.0, 5.0 + 0.9 * step_s) == (0, 5.0)
    taken, ends = made.coast(quiet, 5.0, 5.0 + 1.9 * step_s)
    assert taken == 1
    assert 5.0 < ends < 5.0 + 1.5 * step_s
    assert made.quiet_steps() == quiet - 1
