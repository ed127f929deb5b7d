"""Hashed beginnings of prompts, and who holds them."""

from __future__ import annotations

import tracemalloc
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from math import ceil
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from lbcore.prefix import PREFIX_BLOCK_BYTES, PrefixIndex, block_hashes, bytes_of
from lbcore.types import Ticket, WorkerId

A, B, C = WorkerId("a"), WorkerId("b"), WorkerId("c")


def hit_blocks(index: PrefixIndex, hashes: Sequence[int]) -> dict[WorkerId, int]:
    """How many leading blocks each worker holds; only workers that hold the first."""
    return {worker: blocks for workers, blocks in index.holders(hashes) for worker in workers}


def test_only_whole_blocks_are_hashed() -> None:
    assert block_hashes(b"x" * (PREFIX_BLOCK_BYTES - 1)) == ()
    assert len(block_hashes(b"x" * (3 * PREFIX_BLOCK_BYTES + 1))) == 3


def test_a_block_has_256_bytes_or_the_power_of_two_up_to_a_sixteenth_of_where_it_begins() -> None:
    end = blocks = 0
    while end < 2**32:
        size = bytes_of(blocks + 1) - end
        assert size == max(256, 1 << (end // 16).bit_length() - 1 if end >= 16 else 0)
        blocks, end = blocks + 1, bytes_of(blocks + 1)
    assert (bytes_of(0), bytes_of(32), bytes_of(33), bytes_of(48)) == (0, 8192, 8704, 16_384)
    assert bytes_of(blocks + 1) == bytes_of(blocks) == 2**32
    assert len(block_hashes(bytes(200_000))) == 104


def test_a_hash_is_of_its_growing_block() -> None:
    data = Random(1).randbytes(70_000)
    previous = 0
    for blocks, found in enumerate(block_hashes(data)):
        previous = xxh3_64_intdigest(data[bytes_of(blocks) : bytes_of(blocks + 1)], previous)
        assert found == previous


@settings(derandomize=True, max_examples=200, database=None)
@given(st.integers(0, 40_000), st.integers(0, 40_000), st.sampled_from((0, 100, 256, 3000)))
def test_prompts_that_share_so_many_bytes_share_the_blocks_that_end_within_them(
    shared: int, others: int, block_bytes: int
) -> None:
    begun = Random(shared).randbytes(shared)
    left = block_hashes(begun + b"l" * others, block_bytes)
    right = block_hashes(begun + b"r" * others, block_bytes)
    common = block_hashes(begun, block_bytes)
    count = len(common)
    assert left[:count] == right[:count] == common
    assert not set(left[count:]) & set(right[count:])
    assert bytes_of(count, block_bytes) <= shared < bytes_of(count + 1, block_bytes)
    assert bytes_of(len(left), block_bytes) <= shared + others < bytes_of(len(left) + 1, block_bytes)
    if not block_bytes:
        assert shared - bytes_of(count) < max(256, shared / 16)


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
    assert hit_blocks(index, (1, 2, 9)) == {A: 2}
    assert hit_blocks(index, (9, 2, 3)) == {}
    assert hit_blocks(index, ()) == {}


def test_one_walk_tells_of_all_workers() -> None:
    index = PrefixIndex()
    index.add(A, (1, 2, 3))
    index.add(B, (1,))
    index.add(C, (7, 8))
    assert hit_blocks(index, (1, 2, 3, 4)) == {A: 3, B: 1}


def test_many_workers_that_hold_the_same_are_all_found() -> None:
    index = PrefixIndex()
    workers = [WorkerId(f"w{number}") for number in range(100)]
    for worker in workers:
        index.add(worker, (1, 2))
    assert hit_blocks(index, (1, 2, 3)) == dict.fromkeys(workers, 2)


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
    assert hit_blocks(index, (1, 2)) == {A: 1}
    assert hit_blocks(index, (5, 6)) == {A: 2}


def test_what_an_open_request_uses_is_forgotten_after_what_none_does() -> None:
    index = PrefixIndex()
    index.set_capacity(A, 4)
    index.add(A, (1, 2), ticket=Ticket(1))
    index.add(A, (5, 6))
    index.add(A, (8, 9))
    assert (hit_blocks(index, (1, 2)), hit_blocks(index, (5, 6))) == ({A: 2}, {})


def test_a_prompt_was_used_last_when_its_request_ended() -> None:
    index = PrefixIndex()
    index.set_capacity(A, 4)
    index.add(A, (1, 2), ticket=Ticket(1))
    index.add(A, (5, 6))
    index.over(A, Ticket(1), computed=True)
    index.over(A, Ticket(1), computed=True)
    index.add(A, (9,))
    assert (hit_blocks(index, (1, 2)), hit_blocks(index, (5, 6))) == ({A: 2}, {A: 1})


def test_a_prompt_that_was_never_computed_is_no_younger_for_the_end_of_its_request() -> None:
    index = PrefixIndex()
    index.set_capacity(A, 4)
    index.add(A, (1, 2), ticket=Ticket(1))
    index.add(A, (5, 6))
    index.over(A, Ticket(1), computed=False)
    index.add(A, (9,))
    assert (hit_blocks(index, (1, 2)), hit_blocks(index, (5, 6))) == ({A: 1}, {A: 2})


def test_where_more_is_in_use_than_there_is_room_for_the_last_prompts_are_believed() -> None:
    index = PrefixIndex()
    index.set_capacity(A, 100)
    for number in range(200):
        index.add(A, (number, 1000 + number), ticket=Ticket(number + 1))
    assert len(index) == 100
    assert hit_blocks(index, (199, 1199)) == {A: 2}
    for number in range(200):
        index.over(A, Ticket(number + 1), computed=True)
    index.drop(A)
    assert len(index) == 0


def test_of_a_prompt_longer_than_the_capacity_the_beginning_is_believed() -> None:
    index = PrefixIndex()
    index.set_capacity(A, 2)
    index.add(A, (1, 2, 3))
    assert hit_blocks(index, (1, 2, 3)) == {A: 2}


def test_a_block_counts_as_the_bytes_it_has() -> None:
    deep = tuple(range(1, 50))
    index = PrefixIndex()
    index.set_capacity(A, 38)
    assert index.add(A, deep) == 0
    # 32 units of one block each, then blocks of two units, of which three fit.
    assert hit_blocks(index, deep) == {A: 35}
    index.set_capacity(A, 37)
    assert hit_blocks(index, deep) == {A: 34}


def test_a_block_of_another_size_counts_as_the_units_it_begins() -> None:
    for block_bytes, expected in ((1, 8), (256, 8), (257, 4), (1024, 2), (2**32 - 1, 0)):
        index = PrefixIndex()
        index.set_capacity(A, 8)
        index.add(A, tuple(range(10)), block_bytes)
        assert hit_blocks(index, range(10)) == ({A: expected} if expected else {})


def test_nothing_is_believed_beyond_the_longest_prompt_there_can_be() -> None:
    index = PrefixIndex()
    index.set_capacity(A, 2**40)
    index.add(A, range(100_000))
    held = hit_blocks(index, range(100_000))[A]
    assert (held, bytes_of(held)) == (len(index), 2**32)


def test_blocks_of_one_size_go_on_where_growing_ones_are_the_same() -> None:
    data = Random(2).randbytes(20_000)
    growing, even = block_hashes(data), block_hashes(data, PREFIX_BLOCK_BYTES)
    index = PrefixIndex()
    index.add(A, growing)
    # The 33rd begins at 8 KiB and has 512 bytes rather than 256.
    assert index.add(A, even, PREFIX_BLOCK_BYTES) == 32
    assert (hit_blocks(index, growing), hit_blocks(index, even)) == ({A: len(growing)}, {A: len(even)})
    # Both go on where they went on before, each in its own way.
    index.set_capacity(A, (bytes_of(len(growing)) + len(even) * PREFIX_BLOCK_BYTES - 8192) // PREFIX_BLOCK_BYTES)
    assert (hit_blocks(index, growing), hit_blocks(index, even)) == ({A: len(growing)}, {A: len(even)})
    index.add(A, (1,))
    assert (hit_blocks(index, growing), hit_blocks(index, even)) == ({A: len(growing) - 1}, {A: len(even)})


def test_a_smaller_capacity_holds_at_once() -> None:
    index = PrefixIndex()
    index.add(A, (1, 2, 3))
    index.set_capacity(A, 1)
    assert hit_blocks(index, (1, 2, 3)) == {A: 1}


def test_a_dropped_worker_holds_nothing_and_takes_nobody_with_it() -> None:
    index = PrefixIndex()
    index.add(A, (1, 2))
    index.add(B, (1,))
    index.drop(A)
    index.drop(A)
    assert hit_blocks(index, (1, 2)) == {B: 1}


def test_a_worker_in_the_place_of_a_dropped_one_inherits_nothing() -> None:
    index = PrefixIndex()
    index.add(A, (1, 2))
    index.drop(A)
    index.add(B, (3,))
    assert hit_blocks(index, (1, 2)) == {}
    assert hit_blocks(index, (3,)) == {B: 1}


def test_what_others_begin_is_split_without_making_it_any_younger() -> None:
    index = PrefixIndex()
    index.set_capacity(A, 5)
    for worker in (A, B):
        index.add(worker, (1, 2, 3, 4))
    index.add(A, (9,))
    index.add(B, (1, 2, 7))
    index.add(A, (8,))
    assert hit_blocks(index, (1, 2, 3, 4)) == {A: 3, B: 4}
    index.set_capacity(A, 3)
    assert hit_blocks(index, (1, 2, 3, 4)) == {A: 1, B: 4}
    assert (hit_blocks(index, (9,)), hit_blocks(index, (8,))) == ({A: 1}, {A: 1})
    index.set_capacity(A, 2)
    assert hit_blocks(index, (1, 2, 3, 4)) == {B: 4}
    assert hit_blocks(index, (1, 2, 7)) == {B: 3}


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
    """What a `PrefixIndex` must say, in the plainest way: each worker an LRU of single blocks and their units."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.blocks: dict[WorkerId, OrderedDict[int, int]] = {worker: OrderedDict() for worker in (A, B, C)}

    def add(self, worker: WorkerId, hashes: tuple[int, ...], block_bytes: int) -> None:
        held = self.blocks[worker]
        for depth, block in reversed([*enumerate(hashes)]):
            size = bytes_of(depth + 1, block_bytes) - bytes_of(depth, block_bytes)
            held[block] = ceil(size / PREFIX_BLOCK_BYTES)
            held.move_to_end(block)
        while sum(held.values()) > self.capacity:
            held.popitem(last=False)

    def hit_blocks(self, hashes: tuple[int, ...]) -> dict[WorkerId, int]:
        hits = {}
        for worker, held in self.blocks.items():
            hits[worker] = next((depth for depth, block in enumerate(hashes) if block not in held), len(hashes))
        return {worker: depth for worker, depth in hits.items() if depth}


@cache
def chain(text: str) -> tuple[int, ...]:
    """Hashes of a prompt with a block for each letter."""
    return block_hashes(text.encode(), block_bytes=1)


# Two letters and few of them, so that prompts share beginnings of every length; after 30 more, their blocks grow.
short = st.text("xy", max_size=7)
deep = st.tuples(st.sampled_from(("", "x" * 30)), short).map("".join)
workers = st.sampled_from((A, B, C))


def agree(capacity: int, additions: list[tuple[WorkerId, str]], question: str, block_bytes: int) -> None:
    index, plain = PrefixIndex(), BlockByBlock(capacity)
    for worker in (A, B, C):
        index.set_capacity(worker, capacity)
    for worker, text in additions:
        hashes = chain(text)
        expected = plain.hit_blocks(hashes).get(worker, 0)
        assert index.add(worker, hashes, block_bytes) == expected
        plain.add(worker, hashes, block_bytes)
        assert hit_blocks(index, hashes) == plain.hit_blocks(hashes)
    assert hit_blocks(index, chain(question)) == plain.hit_blocks(chain(question))
    assert len(index) == len({block for held in plain.blocks.values() for block in held})


@settings(derandomize=True, max_examples=200, database=None)
@given(st.integers(0, 10), st.lists(st.tuples(workers, short), max_size=30), short, st.sampled_from((0, 1, 256, 600)))
def test_it_says_what_an_lru_of_single_blocks_says(
    capacity: int, additions: list[tuple[WorkerId, str]], question: str, block_bytes: int
) -> None:
    agree(capacity, additions, question, block_bytes)


@settings(derandomize=True, max_examples=200, database=None)
@given(st.integers(28, 70), st.lists(st.tuples(workers, deep), max_size=20), deep)
def test_it_says_so_of_blocks_that_grow_too(
    capacity: int, additions: list[tuple[WorkerId, str]], question: str
) -> None:
    agree(capacity, additions, question, 0)


@settings(derandomize=True, max_examples=100, database=None)
@given(
    st.lists(st.tuples(workers, st.integers(0, 3), st.integers(0, 60), st.sampled_from((0, 256, 1000))), max_size=20),
    st.integers(0, 300),
)
def test_no_worker_is_believed_to_hold_more_bytes_than_it_has_room_for(
    additions: list[tuple[WorkerId, int, int, int]], capacity: int
) -> None:
    index = PrefixIndex()
    for worker, seed, thousands, block_bytes in additions:
        index.set_capacity(worker, capacity)
        hashes = block_hashes(Random(seed).randbytes(thousands * 1000), block_bytes)
        index.add(worker, hashes, block_bytes)
        held = hit_blocks(index, hashes).get(worker, 0)
        assert bytes_of(held, block_bytes) <= capacity * PREFIX_BLOCK_BYTES
        if not block_bytes:
            # And as much of the last prompt as fits.
            assert held == min(len(hashes), len(block_hashes(bytes(capacity * PREFIX_BLOCK_BYTES))))


@settings(derandomize=True, max_examples=200, database=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9), st.integers(1, 6)), max_size=40), st.integers(8, 20))
def test_all_prompts_in_use_are_held_as_long_as_there_is_room_for_them(
    happened: list[tuple[bool, int, int]], capacity: int
) -> None:
    index = PrefixIndex()
    index.set_capacity(A, capacity)
    prompts = {length: tuple(range(100 * length, 100 * length + length)) for length in range(1, 10)}
    open_prompts: dict[int, tuple[int, ...]] = {}
    for begins, length, ticket in happened:
        if begins and ticket not in open_prompts:
            used = {*open_prompts.values(), prompts[length]}
            if sum(map(len, used)) <= capacity:
                open_prompts[ticket] = prompts[length]
                index.add(A, prompts[length], ticket=Ticket(ticket))
        else:
            open_prompts.pop(ticket, None)
            index.over(A, Ticket(ticket), computed=True)
        assert all(hit_blocks(index, prompt) == {A: len(prompt)} for prompt in open_prompts.values())


@settings(derandomize=True, max_examples=200, database=None)
@given(
    st.lists(st.tuples(workers, deep, st.integers(0, 6), st.sampled_from((None, False, True))), max_size=40),
    st.integers(1, 60),
)
def test_whatever_begins_and_ends_nobody_holds_more_than_there_is_room_for_and_nothing_is_left(
    happened: list[tuple[WorkerId, str, int, bool | None]], capacity: int
) -> None:
    index = PrefixIndex()
    for worker in (A, B, C):
        index.set_capacity(worker, capacity)
    for worker, text, ticket, computed in happened:
        if computed is None:
            index.add(worker, chain(text), ticket=Ticket(ticket))
        else:
            index.over(worker, Ticket(ticket), computed=computed)
        held = hit_blocks(index, chain(text))
        assert all(bytes_of(blocks) <= capacity * PREFIX_BLOCK_BYTES for blocks in held.values())
        assert len(index) <= 3 * capacity
    for worker in (A, B, C):
        index.drop(worker)
    assert len(index) == 0


@settings(derandomize=True, max_examples=100, database=None)
@given(st.lists(st.tuples(st.sampled_from((A, B, C)), st.lists(st.integers(0, 5), max_size=8)), max_size=20))
def test_hashes_that_are_no_chain_do_no_lasting_harm(additions: list[tuple[WorkerId, list[int]]]) -> None:
    index = PrefixIndex()
    for worker, hashes in additions:
        index.set_capacity(worker, 6)
        index.add(worker, hashes)
        assert all(0 < depth <= len(hashes) for depth in hit_blocks(index, hashes).values())
    for worker in (A, B, C):
        index.drop(worker)
    assert len(index) == 0
