"""The simulated batch in virtual time: what it promises in any order of events, and how it behaves in known ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engines.sim.batch import SimBatch, StepOutcome
from worker.engines.sim.step_time import SEQUENCE_RATIO, plain_step_time

BLOCK_SIZE = 4


def make(
    *,
    kv_blocks: int = 64,
    max_num_seqs: int = 4,
    token_budget: int = 16,
    step_ms: float = 10.0,
    prefill_tokens_per_s: float = 1000.0,
) -> SimBatch[int]:
    return SimBatch(
        step_time=plain_step_time(step_ms, prefill_tokens_per_s),
        kv_blocks=kv_blocks,
        block_size=BLOCK_SIZE,
        max_num_seqs=max_num_seqs,
        token_budget=token_budget,
    )


def hashes(family: int, tokens: int) -> tuple[int, ...]:
    """The block hashes of a prompt: prompts of one family begin alike."""
    return tuple(family * 1000 + index for index in range(tokens // BLOCK_SIZE))


@dataclass
class Run:
    """What came out of a batch so far."""

    batch: SimBatch[int]
    steps: int = 0
    duration_ms: float = 0.0

    def __post_init__(self) -> None:
        self.tokens: Counter[int] = Counter()
        self.started: dict[int, int] = {}
        self.first_token_ms: dict[int, float] = {}
        self.finished: list[int] = []
        self.preempted: list[int] = []

    def step(self) -> StepOutcome[int]:
        outcome = self.batch.step()
        self.steps += 1
        self.duration_ms += outcome.duration_ms
        self.tokens.update(outcome.decoding)
        self.tokens.update(outcome.finished)
        assert not self.started.keys() & dict(outcome.started).keys()
        self.started.update(outcome.started)
        for key in outcome.first:
            assert self.tokens[key] == 1
            self.first_token_ms[key] = self.duration_ms
        self.finished += outcome.finished
        self.preempted += outcome.preempted
        return outcome

    def drain(self, max_steps: int = 20_000) -> Run:
        for _ in range(max_steps):
            if not self.batch.has_work:
                return self
            self.step()
        raise AssertionError("the batch does not come to an end")


def audit(batch: SimBatch[int]) -> None:
    """Recounts from the sequences what the pool says of itself."""
    blocks = batch.blocks
    running = batch._running.values()
    assert blocks.free + blocks.used + blocks.cached == blocks.total
    assert blocks.free >= 0
    assert all(count > 0 for count in blocks.holders.values())
    assert blocks.used == len(blocks.holders) + sum(sequence.anonymous for sequence in running)
    assert sum(blocks.holders.values()) == sum(sequence.shared for sequence in running)
    assert all(sequence.anonymous >= 0 for sequence in running)
    for sequence in batch._decoding.values():
        computed = sequence.target + batch._step - sequence.joined_step
        assert sequence.shared + sequence.anonymous == -(-computed // BLOCK_SIZE)


def assert_empty(batch: SimBatch[int]) -> None:
    load = batch.load()
    assert not batch.has_work
    assert (load.queued_requests, load.running_requests) == (0, 0)
    assert (load.queued_prompt_tokens, load.tokens_in_flight, load.kv_used_blocks) == (0, 0, 0)


@dataclass(frozen=True)
class Add:
    family: int
    prompt_tokens: int
    output_tokens: int
    hashed_tokens: int


@dataclass(frozen=True)
class Abort:
    which: int


@dataclass(frozen=True)
class Steps:
    count: int


Action = Add | Abort | Steps

ACTIONS = st.lists(
    st.one_of(
        st.builds(Add, st.integers(0, 2), st.integers(1, 24), st.integers(0, 20), st.integers(0, 44)),
        st.builds(Abort, st.integers(0, 30)),
        st.builds(Steps, st.integers(1, 6)),
    ),
    max_size=40,
)


def play(batch: SimBatch[int], actions: Sequence[Action]) -> tuple[Run, dict[int, Add], set[int], list[object]]:
    """Plays the actions and lets the batch run out; returns what happened, what was added and aborted, and a trace."""
    run, added, aborted, trace = Run(batch), dict[int, Add](), set[int](), list[object]()
    for action in [*actions, Steps(0)]:
        match action:
            case Add(family, prompt_tokens, output_tokens, hashed_tokens):
                key = len(added)
                hashed = min(hashed_tokens, prompt_tokens + output_tokens)
                batch.add(key, prompt_tokens, output_tokens, hashes(family, hashed))
                added[key] = action
            case Abort(which):
                if batch.abort(which):
                    aborted.add(which)
            case Steps(count):
                for _ in range(count):
                    outcome = run.step()
                    trace.append((outcome.duration_ms, outcome.started, outcome.finished, tuple(outcome.decoding)))
                    audit(batch)
        audit(batch)
    return run.drain(), added, aborted, trace


@given(ACTIONS, st.integers(11, 24), st.integers(1, 6), st.integers(1, 20))
def test_every_sequence_ends_once_and_nothing_is_left(
    actions: list[Action], kv_blocks: int, max_num_seqs: int, token_budget: int
) -> None:
    batch = make(kv_blocks=kv_blocks, max_num_seqs=max_num_seqs, token_budget=token_budget)
    run, added, aborted, _ = play(batch, actions)
    assert len(run.finished) == len(set(run.finished))
    assert set(run.finished) == added.keys() - aborted
    for key in run.finished:
        # What ends without a token is heard of once all the same.
        assert run.tokens[key] == max(1, added[key].output_tokens)
        assert run.started[key] < added[key].prompt_tokens
    assert_empty(batch)
    audit(batch)


@given(ACTIONS, st.integers(11, 24), st.integers(1, 6), st.integers(1, 20))
def test_no_step_exceeds_its_limits(
    actions: list[Action], kv_blocks: int, max_num_seqs: int, token_budget: int
) -> None:
    batch = make(kv_blocks=kv_blocks, max_num_seqs=max_num_seqs, token_budget=token_budget)
    for number, action in enumerate(actions):
        if isinstance(action, Add):
            batch.add(number, action.prompt_tokens, action.output_tokens, hashes(action.family, action.hashed_tokens))
        outcome = batch.step()
        load = batch.load()
        assert outcome.prefill_tokens + outcome.decode_tokens <= token_budget
        assert load.running_requests <= max_num_seqs
        assert len(outcome.decoding) + len(outcome.finished) <= max_num_seqs
        assert load.queued_prompt_tokens >= 0
        assert load.tokens_in_flight >= 0


@given(ACTIONS)
def test_the_same_events_have_the_same_outcome(actions: list[Action]) -> None:
    assert play(make(kv_blocks=12), actions)[3] == play(make(kv_blocks=12), actions)[3]


@given(ACTIONS)
def test_the_load_is_what_was_added_minus_what_was_done(actions: list[Action]) -> None:
    batch = make(kv_blocks=12, max_num_seqs=3)
    run, open_prompts = Run(batch), dict[int, int]()
    for number, action in enumerate(actions):
        if isinstance(action, Add):
            batch.add(number, action.prompt_tokens, action.output_tokens)
            open_prompts[number] = action.prompt_tokens
        elif isinstance(action, Abort) and batch.abort(action.which):
            del open_prompts[action.which]
        run.step()
        open_prompts = {key: tokens for key, tokens in open_prompts.items() if key not in run.finished}
        load = batch.load()
        assert load.queued_requests + load.running_requests == len(open_prompts)
        assert load.tokens_in_flight == sum(open_prompts.values()) + sum(run.tokens[key] for key in open_prompts)


def test_a_lone_sequence_costs_its_prefill_and_one_step_per_token() -> None:
    run = Run(make())
    run.batch.add(0, 8, 5)
    run.drain()
    assert run.steps == 5
    assert run.first_token_ms[0] == pytest.approx(10 + 8)
    assert run.duration_ms == pytest.approx(10 + 8 + 4 * 10)


def test_a_larger_batch_has_longer_steps() -> None:
    run = Run(make())
    for key in range(4):
        run.batch.add(key, 1, 10)
    assert run.step().duration_ms == pytest.approx(10 + 4)
    assert run.step().duration_ms == pytest.approx(10 * (1 + 3 * SEQUENCE_RATIO))


def test_a_step_without_work_takes_no_time() -> None:
    assert make().step() == StepOutcome()


def test_a_long_prompt_is_computed_in_chunks_beside_the_decoding_sequences() -> None:
    run = Run(make(token_budget=16))
    run.batch.add(0, 1, 30)
    run.step()
    run.batch.add(1, 40, 2)
    spent = [run.step() for _ in range(3)]
    assert [outcome.prefill_tokens for outcome in spent] == [15, 15, 10]
    assert [outcome.decode_tokens for outcome in spent] == [1, 1, 1]
    assert list(spent[2].first) == [1]
    assert run.tokens[0] == 4


def test_a_chunk_leaves_what_is_left_of_the_budget_to_the_next_prompt() -> None:
    run = Run(make(token_budget=16))
    run.batch.add(0, 20, 2)
    run.batch.add(1, 4, 2)
    assert [run.step().prefill_tokens for _ in range(2)] == [16, 8]
    assert run.first_token_ms.keys() == {0, 1}


def test_a_cached_prefix_shortens_the_prefill() -> None:
    run = Run(make(token_budget=64))
    for key, tokens in ((0, 43), (1, 43), (2, 30)):
        run.batch.add(key, tokens, 1, hashes(7, tokens))
        run.drain()
    assert run.started == {0: 0, 1: 40, 2: 28}
    assert run.first_token_ms[1] - run.first_token_ms[0] == pytest.approx(10 + 3)


def test_of_a_wholly_cached_prompt_the_last_block_is_computed_all_the_same() -> None:
    run = Run(make())
    for key in range(2):
        run.batch.add(key, 8, 1, hashes(7, 8))
        run.drain()
    assert run.started == {0: 0, 1: 4}


def test_sequences_of_one_step_share_what_the_first_computes() -> None:
    run = Run(make(token_budget=64))
    for key in range(3):
        run.batch.add(key, 20, 4, hashes(7, 20))
    assert run.step().prefill_tokens == 20 + 4 + 4
    assert run.batch.load().kv_used_blocks == 5


def test_decoded_blocks_are_reused_when_their_hashes_are_known() -> None:
    run = Run(make(token_budget=64))
    run.batch.add(0, 8, 13, hashes(7, 20))
    run.drain()
    run.batch.add(1, 24, 1, hashes(7, 24))
    run.drain()
    assert run.started[1] == 20


def test_decoded_blocks_are_found_while_their_sequence_goes_on() -> None:
    run = Run(make(token_budget=64))
    run.batch.add(0, 8, 40, hashes(7, 48))
    for _ in range(14):
        run.step()
    run.batch.add(1, 24, 1, hashes(7, 24))
    run.step()
    assert run.started[1] == 20


def test_a_full_cache_queues() -> None:
    run = Run(make(kv_blocks=8))
    run.batch.add(0, 20, 8)
    run.batch.add(1, 16, 2)
    run.step()
    load = run.batch.load()
    assert (load.queued_requests, load.running_requests, load.kv_used_blocks) == (1, 1, 5)
    assert load.queued_prompt_tokens == 16 + 4
    run.drain()
    assert run.finished == [0, 1]
    assert run.preempted == []


def test_a_full_batch_queues() -> None:
    run = Run(make(max_num_seqs=2))
    for key in range(3):
        run.batch.add(key, 1, 3)
    run.step()
    assert run.batch.load().queued_requests == 1
    run.drain()
    assert run.finished == [0, 1, 2]


def test_a_blocked_head_is_taken_up_as_soon_as_an_abort_makes_room() -> None:
    run = Run(make(kv_blocks=8))
    run.batch.add(0, 20, 8)
    run.batch.add(1, 16, 2)
    run.step()
    run.step()
    assert run.batch.abort(0)
    assert [key for key, _ in run.step().started] == [1]


def test_what_waits_behind_a_blocked_head_moves_up_when_the_head_is_aborted() -> None:
    run = Run(make(kv_blocks=8))
    run.batch.add(0, 20, 8)
    run.batch.add(1, 16, 2)
    run.batch.add(2, 4, 2)
    run.step()
    assert run.step().started == []
    assert run.batch.abort(1)
    assert [key for key, _ in run.step().started] == [2]


def test_a_preempted_sequence_comes_before_those_that_never_ran() -> None:
    run = Run(make(kv_blocks=8))
    for key in range(3):
        run.batch.add(key, 12, 16)
    while not run.preempted:
        run.step()
    had = run.tokens[1]
    while run.tokens[1] == had:
        assert 2 not in run.started
        run.step()
    run.drain()
    assert run.finished == [0, 1, 2]


def test_admission_leaves_a_few_blocks_to_those_who_decode() -> None:
    run = Run(make(kv_blocks=200, token_budget=1000))
    run.batch.add(0, 400, 3)
    run.batch.add(1, 400, 3)
    run.step()
    assert run.started.keys() == {0}
    run.drain()
    run.batch.add(2, 797, 3)
    run.drain()
    assert run.finished == [0, 1, 2]


def test_when_decoding_runs_out_of_blocks_the_youngest_is_preempted_and_recovers() -> None:
    run = Run(make(kv_blocks=8))
    run.batch.add(0, 12, 16)
    run.batch.add(1, 12, 16)
    run.drain()
    assert run.preempted[0] == 1
    assert 0 not in run.preempted
    assert run.finished == [0, 1]
    assert run.tokens == {0: 16, 1: 16}
    assert_empty(run.batch)


def test_what_a_preempted_sequence_had_computed_is_not_computed_again_if_it_is_still_cached() -> None:
    run = Run(make(kv_blocks=8, token_budget=64))
    run.batch.add(0, 12, 16)
    run.batch.add(1, 12, 16, hashes(7, 28))
    while not run.preempted:
        run.step()
    before = run.batch.load()
    assert before.queued_requests == 1
    assert before.queued_prompt_tokens == 12 + run.tokens[1]
    run.drain()
    assert run.tokens[1] == 16


def test_the_decoding_view_forgets_an_aborted_sequence() -> None:
    run = Run(make())
    run.batch.add(0, 1, 5)
    run.batch.add(1, 1, 5)
    outcome = run.step()
    assert set(outcome.decoding) == {0, 1}
    assert run.batch.abort(0)
    assert set(outcome.decoding) == {1}


def test_a_sequence_without_output_ends_with_its_prompt_and_never_decodes() -> None:
    run = Run(make(token_budget=16))
    run.batch.add(0, 40, 0)
    run.batch.add(1, 8, 0)
    run.step()
    assert run.batch.load().tokens_in_flight == 48
    outcomes = [run.step(), run.step()]
    assert [outcome.decode_tokens for outcome in outcomes] == [0, 0]
    assert run.finished == [0, 1]
    assert run.first_token_ms == {}
    assert run.duration_ms == pytest.approx(3 * 10.0 + 48)
    assert_empty(run.batch)
    audit(run.batch)


def test_a_sequence_without_output_may_fill_the_whole_cache() -> None:
    run = Run(make(kv_blocks=4, token_budget=16))
    run.batch.add(0, 16, 0)
    assert run.drain().finished == [0]


@pytest.mark.parametrize("steps", [0, 1, 2, 4], ids=["waiting", "in prefill", "chunked twice", "decoding"])
def test_an_aborted_sequence_frees_everything(steps: int) -> None:
    run = Run(make(token_budget=16))
    run.batch.add(0, 40, 9)
    for _ in range(steps):
        run.step()
    assert run.batch.abort(0)
    assert not run.batch.abort(0)
    assert_empty(run.batch)
    audit(run.batch)
    assert run.batch.step() == StepOutcome()


def test_an_unknown_sequence_cannot_be_aborted() -> None:
    assert not make().abort(5)


@pytest.mark.parametrize(("prompt_tokens", "output_tokens"), [(0, 1), (1, -1), (200, 57)])
def test_a_sequence_that_could_never_run_is_refused(prompt_tokens: int, output_tokens: int) -> None:
    with pytest.raises(ValueError, match="token"):
        make(kv_blocks=64).add(0, prompt_tokens, output_tokens)


def test_a_key_in_use_is_refused() -> None:
    batch = make()
    batch.add(0, 1, 1)
    with pytest.raises(ValueError, match="already"):
        batch.add(0, 1, 1)


def test_the_measured_speeds_are_those_of_the_options() -> None:
    run = Run(make(step_ms=5.0, prefill_tokens_per_s=500.0))
    run.batch.add(0, 1, 3)
    run.drain()
    run.batch.add(1, 12, 30)
    run.drain()
    load = run.batch.load()
    assert load.step_time_ms == pytest.approx(5.0)
    # What attention might cost, before it was measured, is a hundredth of a per mille of so short a prompt.
    assert load.prefill_tokens_per_s == pytest.approx(500, rel=1e-4)
