"""The block pool against a plain model: who holds what, and what was used least recently."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.engines.sim.blocks import BlockPool


def test_taking_prefers_free_blocks_and_then_evicts_the_least_recently_used() -> None:
    pool = BlockPool(4)
    for block_hash in (1, 2, 3):
        assert pool.take(1)
        pool.share([block_hash], 0, 1)
        pool.drop([block_hash], 1, 0)
    assert (pool.free, pool.used, pool.cached) == (1, 0, 3)
    assert pool.take(2)
    assert (pool.free, pool.used, pool.cached) == (0, 2, 2)
    assert pool.hits([1], 1) == (0, 0)
    assert pool.hits([2, 3], 2) == (2, 2)


def test_taking_too_many_takes_none() -> None:
    pool = BlockPool(3)
    assert pool.take(2)
    assert not pool.take(2)
    assert (pool.free, pool.used) == (1, 2)


def test_a_prefix_is_evicted_from_its_end() -> None:
    pool = BlockPool(3)
    assert pool.take(3)
    pool.share([1, 2, 3], 0, 3)
    pool.drop([1, 2, 3], 3, 0)
    assert pool.take(1)
    assert pool.hits([1, 2, 3], 3) == (2, 2)


def test_a_hit_ends_at_the_first_gap() -> None:
    pool = BlockPool(4)
    assert pool.take(2)
    pool.share([1, 2, 3], 0, 1)
    pool.share([1, 2, 3], 2, 3)
    assert pool.hits([1, 2, 3], 3) == (1, 0)
    assert pool.hits([1, 2, 3], 0) == (0, 0)


def test_two_who_computed_the_same_keep_one_copy() -> None:
    pool = BlockPool(4)
    assert pool.take(2)
    for _ in range(2):
        pool.share([7], 0, 1)
    assert (pool.free, pool.used, pool.holders) == (3, 1, {7: 2})
    pool.drop([7], 1, 0)
    assert pool.cached == 0
    pool.drop([7], 1, 0)
    assert (pool.free, pool.used, pool.cached) == (3, 0, 1)


def test_held_blocks_are_not_evicted() -> None:
    pool = BlockPool(2)
    assert pool.take(1)
    pool.share([1], 0, 1)
    pool.drop([1], 1, 0)
    pool.hold([1], 1)
    assert not pool.take(2)
    assert pool.take(1)
    assert pool.hits([1], 1) == (1, 0)


@given(
    total=st.integers(1, 12),
    prefixes=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), max_size=40),
    leave_first=st.booleans(),
    told_every=st.integers(1, 5),
)
def test_no_block_is_lost_or_made_and_who_watches_knows_of_each(
    total: int, prefixes: list[tuple[int, int]], leave_first: bool, told_every: int
) -> None:
    pool = BlockPool(total)
    pool.watch()
    told: set[int] = set()
    present: list[tuple[list[int], int]] = []
    for turn, (family, length) in enumerate(prefixes):
        hashes = [family * 100 + index for index in range(length)]
        hit, idle_hit = pool.hits(hashes, length)
        # One more block without a hash, as for a prompt's last tokens.
        needed = length - hit + 1
        if needed + idle_hit <= pool.available:
            pool.hold(hashes, hit)
            assert pool.take(needed)
            pool.share(hashes, hit, length)
            present.append((hashes, length))
        elif present:
            hashes, length = present.pop(0 if leave_first else -1)
            pool.drop(hashes, length, 1)
        distinct = {block_hash for hashes, _ in present for block_hash in hashes}
        assert pool.used == len(distinct) + len(present)
        assert pool.free >= 0
        assert set(pool.holders) == distinct
        assert sum(pool.holders.values()) == sum(length for _, length in present)
        if turn % told_every == 0:
            stored, removed = pool.changes()
            assert not told & set(stored)
            assert told >= set(removed)
            told = (told | set(stored)) - set(removed)
            assert told == {block_hash for block_hash in range(300) if block_hash in pool}
