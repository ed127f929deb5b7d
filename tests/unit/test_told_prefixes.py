"""Beginnings of prompts as workers tell of them, and as they are expected to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore import told_prefixes
from lbcore.told_prefixes import ToldPrefixes
from lbcore.types import Ticket, WorkerId

A, B = WorkerId("a"), WorkerId("b")
T1, T2 = Ticket(1), Ticket(2)


def hit_blocks(index: ToldPrefixes, hashes: Sequence[int]) -> dict[WorkerId, int]:
    """How many leading blocks each worker holds; only workers that hold the first."""
    return {worker: blocks for workers, blocks in index.holders(hashes) for worker in workers}


def test_a_worker_holds_what_it_told() -> None:
    index = ToldPrefixes()
    index.stored(A, (1, 2, 3))
    index.stored(B, (1,))
    assert hit_blocks(index, (1, 2, 9)) == {A: 2, B: 1}
    assert hit_blocks(index, (9, 1)) == hit_blocks(index, ()) == {}


def test_the_smallest_number_of_blocks_comes_first() -> None:
    index = ToldPrefixes()
    index.stored(A, (1, 2, 3))
    index.stored(B, (1, 2))
    assert [(list(workers), blocks) for workers, blocks in index.holders((1, 2, 3))] == [([B], 2), ([A], 3)]


def test_only_a_run_from_the_beginning_counts() -> None:
    index = ToldPrefixes()
    index.stored(A, (1, 2, 3))
    index.removed(A, (2,))
    assert hit_blocks(index, (1, 2, 3)) == {A: 1}
    index.stored(A, (2,))
    assert hit_blocks(index, (1, 2, 3)) == {A: 3}


def test_what_a_worker_tells_as_a_whole_replaces_what_it_told() -> None:
    index = ToldPrefixes()
    index.stored(A, (1, 2))
    index.replaced(A, (2, 3))
    assert (hit_blocks(index, (1,)), hit_blocks(index, (2, 3))) == ({}, {A: 2})


def test_a_prompt_counts_as_held_from_its_dispatch_until_its_ticket_is_over() -> None:
    index = ToldPrefixes()
    index.expect(A, T1, (1, 2))
    index.expect(A, T2, (1, 5))
    assert hit_blocks(index, (1, 2)) == {A: 2}
    index.over(A, T1)
    assert hit_blocks(index, (1, 2)) == {A: 1}
    index.over(A, T2)
    assert len(index) == 0


def test_what_was_told_of_a_prompt_stays_when_its_ticket_is_over() -> None:
    index = ToldPrefixes()
    index.expect(A, T1, (1, 2))
    index.stored(A, (1,))
    index.over(A, T1)
    assert hit_blocks(index, (1, 2)) == {A: 1}


def test_a_block_that_is_expected_and_given_up_is_expected_still() -> None:
    index = ToldPrefixes()
    index.expect(A, T1, (1,))
    index.stored(A, (1,))
    index.removed(A, (1,))
    assert hit_blocks(index, (1,)) == {A: 1}


def test_of_one_worker_no_more_blocks_are_kept_than_it_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(told_prefixes, "MAX_CAPACITY_UNITS", 3)
    index = ToldPrefixes()
    index.stored(A, (1, 2, 3, 4))
    index.stored(B, (1, 2))
    assert hit_blocks(index, (1, 2, 3, 4)) == {A: 3, B: 2}
    index.removed(A, (3,))
    index.stored(A, (3,))
    assert hit_blocks(index, (1, 2, 3, 4)) == {A: 3, B: 2}


def test_the_place_of_a_worker_that_is_dropped_can_be_taken() -> None:
    index = ToldPrefixes()
    index.stored(A, (1, 2))
    index.expect(A, T1, (3,))
    index.drop(A)
    index.drop(A)
    assert len(index) == 0
    index.stored(B, (2,))
    assert hit_blocks(index, (2,)) == {B: 1}
    index.over(A, T1)
    assert hit_blocks(index, (3,)) == {}


WORKERS = [WorkerId(f"w{number}") for number in range(12)]
blocks = st.lists(st.integers(0, 12), max_size=6).map(tuple)
steps = st.lists(
    st.tuples(
        st.sampled_from(("stored", "removed", "replaced", "expect", "over", "drop")),
        st.sampled_from(WORKERS),
        blocks,
        st.integers(1, 5),
    ),
    max_size=60,
)


@settings(derandomize=True, max_examples=300, database=None)
@given(steps, blocks)
def test_it_is_a_set_of_blocks_and_a_table_of_tickets_for_each_worker(
    happened: list[tuple[str, WorkerId, tuple[int, ...], int]], asked: tuple[int, ...]
) -> None:
    index = ToldPrefixes()
    told: dict[WorkerId, set[int]] = {worker: set() for worker in WORKERS}
    expected: dict[WorkerId, dict[int, set[int]]] = {worker: {} for worker in WORKERS}
    for what, worker, hashes, ticket in happened:
        if what == "expect":
            index.expect(worker, Ticket(ticket), hashes)
            if set(hashes) - told[worker]:
                expected[worker].setdefault(ticket, set(hashes) - told[worker])
        elif what == "over":
            index.over(worker, Ticket(ticket))
            expected[worker].pop(ticket, None)
        elif what == "drop":
            index.drop(worker)
            told[worker], expected[worker] = set(), {}
        else:
            getattr(index, what)(worker, hashes)
            if what == "stored":
                told[worker] |= set(hashes)
            elif what == "removed":
                told[worker] -= set(hashes)
            else:
                told[worker] = set(hashes)
        held = {worker: told[worker].union(*expected[worker].values()) for worker in WORKERS}
        assert len(index) == len(set().union(*held.values()))
        runs = {
            worker: next((depth for depth, block in enumerate(asked) if block not in held[worker]), len(asked))
            for worker in WORKERS
        }
        assert hit_blocks(index, asked) == {worker: run for worker, run in runs.items() if run}
    for worker in WORKERS:
        index.drop(worker)
    assert len(index) == 0
