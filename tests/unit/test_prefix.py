"""Hashed beginnings of prompts, and who holds them."""

from __future__ import annotations

import tracemalloc
from collections import OrderedDict

from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from lbcore.prefix import PREFIX_BLOCK_BYTES, PrefixIndex, block_hashes
from lbcore.types import WorkerId

A, B, C = WorkerId("a"), WorkerId("b"), WorkerId("c")


def test_only_whole_blocks_are_hashed() -> None:
    assert block_hashes(b"x" * (PREFIX_BLOCK_BYTES - 1)) == ()
    assert len(block_hashes(b"x" * (3 * PREFIX_BLOCK_BYTES + 1))) == 3


def test_a_hash_is_seeded_with_the_one_before() -> None:
    first, second = block_hashes(b"abcdefghi", block_bytes=4)
    assert first == xxh3_64_intdigest(b"abcd", 0)
    assert second == xxh3_64_intdigest(b"efgh", first)


def test_equal_beginnings_have_equal_hashes_and_what_follows_a_difference_has_not() -> None:
    left = block_hashes(b"sameleftsame", block_bytes=4)
    right = block_hashes(b"sameritesame", block_bytes=4)
    assert [x == y for x, y in zip(left, right, strict=True)] == [True, False, False]


def test_a_worker_that_was_sent_a_prompt_holds_its_beginning() -> None:
    index = PrefixIndex()
    index.add(A, (1, 2, 3))
    assert index.hit_blocks((1, 2, 9)) == {A: 2}
    assert index.hit_blocks((9, 2, 3)) == {}
    assert index.hit_blocks(()) == {}


def test_one_walk_tells_of_all_workers() -> None:
    index = PrefixIndex()
    index.add(A, (1, 2, 3))
    index.add(B, (1,))
    index.add(C, (7, 8))
    assert index.hit_blocks((1, 2, 3, 4)) == {A: 3, B: 1}


def test_many_workers_that_hold_the_same_are_all_found() -> None:
    index = PrefixIndex()
    workers = [WorkerId(f"w{number}") for number in range(100)]
    for worker in workers:
        index.add(worker, (1, 2))
    assert index.hit_blocks((1, 2, 3)) == dict.fromkeys(workers, 2)


def test_adding_says_how_much_was_held_before() -> None:
    index = PrefixIndex()
    assert index.add(A, (1, 2)) == 0
    assert index.add(A, (1, 2, 3)) == 2
    assert index.add(B, (1, 2, 3)) == 0


def test_what_was_used_least_recently_is_forgotten_first_and_from_its_end() -> None:
    index = PrefixIndex()
    index.set_capacity(A, 4)
    index.add(A, (1, 2))
    index.add(A, (5, 6))
    index.add(A, (1,))
    index.add(A, (9,))
    assert index.hit_blocks((1, 2)) == {A: 1}
    assert index.hit_blocks((5, 6)) == {A: 2}


def test_of_a_prompt_longer_than_the_capacity_the_beginning_is_believed() -> None:
    index = PrefixIndex()
    index.set_capacity(A, 2)
    index.add(A, (1, 2, 3))
    assert index.hit_blocks((1, 2, 3)) == {A: 2}


def test_a_smaller_capacity_holds_at_once() -> None:
    index = PrefixIndex()
    index.add(A, (1, 2, 3))
    index.set_capacity(A, 1)
    assert index.hit_blocks((1, 2, 3)) == {A: 1}


def test_a_dropped_worker_holds_nothing_and_takes_nobody_with_it() -> None:
    index = PrefixIndex()
    index.add(A, (1, 2))
    index.add(B, (1,))
    index.drop(A)
    index.drop(A)
    assert index.hit_blocks((1, 2)) == {B: 1}


def test_a_worker_in_the_place_of_a_dropped_one_inherits_nothing() -> None:
    index = PrefixIndex()
    index.add(A, (1, 2))
    index.drop(A)
    index.add(B, (3,))
    assert index.hit_blocks((1, 2)) == {}
    assert index.hit_blocks((3,)) == {B: 1}


def test_what_others_begin_is_split_without_making_it_any_younger() -> None:
    index = PrefixIndex()
    index.set_capacity(A, 5)
    for worker in (A, B):
        index.add(worker, (1, 2, 3, 4))
    index.add(A, (9,))
    index.add(B, (1, 2, 7))
    index.add(A, (8,))
    assert index.hit_blocks((1, 2, 3, 4)) == {A: 3, B: 4}
    index.set_capacity(A, 3)
    assert index.hit_blocks((1, 2, 3, 4)) == {A: 1, B: 4}
    assert (index.hit_blocks((9,)), index.hit_blocks((8,))) == ({A: 1}, {A: 1})
    index.set_capacity(A, 2)
    assert index.hit_blocks((1, 2, 3, 4)) == {B: 4}
    assert index.hit_blocks((1, 2, 7)) == {B: 3}


def test_a_conversation_takes_no_more_memory_than_one_long_prompt() -> None:
    # Segments are counted by their cost: 290 bytes each would show beside 8 for a block.
    def size(step: int) -> int:
        tracemalloc.start()
        index = PrefixIndex()
        for end in range(step, 2001, step):
            index.add(A, tuple(range(end)))
        taken = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return taken

    assert size(10) < size(2000) + 10_000


def test_without_workers_nothing_is_kept() -> None:
    index = PrefixIndex()
    index.add(A, (1, 2))
    index.add(B, (1, 2, 3))
    index.drop(A)
    index.drop(B)
    assert len(index) == 0


class BlockByBlock:
    """What a `PrefixIndex` must say, in the plainest way: each worker an LRU of single blocks."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.blocks: dict[WorkerId, OrderedDict[int, None]] = {worker: OrderedDict() for worker in (A, B, C)}

    def add(self, worker: WorkerId, hashes: tuple[int, ...]) -> None:
        held = self.blocks[worker]
        for block in reversed(hashes[: self.capacity]):
            held[block] = None
            held.move_to_end(block)
        while len(held) > self.capacity:
            held.popitem(last=False)

    def hit_blocks(self, hashes: tuple[int, ...]) -> dict[WorkerId, int]:
        hits = {}
        for worker, held in self.blocks.items():
            hits[worker] = next((depth for depth, block in enumerate(hashes) if block not in held), len(hashes))
        return {worker: depth for worker, depth in hits.items() if depth}


# Two letters and few of them, so that prompts share beginnings of every length.
prompts = st.text("xy", max_size=7).map(lambda text: block_hashes(text.encode(), block_bytes=1))


@settings(derandomize=True, max_examples=200, database=None)
@given(st.integers(0, 10), st.lists(st.tuples(st.sampled_from((A, B, C)), prompts), max_size=30), prompts)
def test_it_says_what_an_lru_of_single_blocks_says(
    capacity: int, additions: list[tuple[WorkerId, tuple[int, ...]]], question: tuple[int, ...]
) -> None:
    index, plain = PrefixIndex(), BlockByBlock(capacity)
    for worker in (A, B, C):
        index.set_capacity(worker, capacity)
    for worker, hashes in additions:
        expected = plain.hit_blocks(hashes).get(worker, 0)
        assert index.add(worker, hashes) == expected
        plain.add(worker, hashes)
        assert index.hit_blocks(hashes) == plain.hit_blocks(hashes)
    assert index.hit_blocks(question) == plain.hit_blocks(question)
    assert len(index) == len({block for held in plain.blocks.values() for block in held})


@settings(derandomize=True, max_examples=100, database=None)
@given(st.lists(st.tuples(st.sampled_from((A, B, C)), st.lists(st.integers(0, 5), max_size=8)), max_size=20))
def test_hashes_that_are_no_chain_do_no_lasting_harm(additions: list[tuple[WorkerId, list[int]]]) -> None:
    index = PrefixIndex()
    for worker, hashes in additions:
        index.set_capacity(worker, 6)
        index.add(worker, hashes)
        assert all(0 < depth <= len(hashes) for depth in index.hit_blocks(hashes).values())
    for worker in (A, B, C):
        index.drop(worker)
    assert len(index) == 0
