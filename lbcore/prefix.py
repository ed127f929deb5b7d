"""Which worker holds which beginning of a prompt: chained block hashes, and an index from them to workers.

The index is a belief, made of what was sent where. It asks no engine and reads no text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import compress

from xxhash import xxh3_64_intdigest

from lbcore.types import WorkerId

PREFIX_BLOCK_BYTES = 256
"""Bytes of prompt in one hashed block: about 64 tokens.

A shared beginning is cut to whole blocks, so on average half a block is not believed: 32 tokens, 3 ms of prefill at
10,000 tokens/s. A prompt of 100,000 tokens is 1,600 hashes: 12.5 KiB on the wire and 0.2 ms to hash. Half the size
would save 1.5 ms and double the price.
"""

DEFAULT_CAPACITY_BLOCKS = 4096
"""Blocks believed of a worker that does not say how many it holds: 1 MiB of text, about 260,000 tokens."""

_TO_SELECTORS = bytes.maketrans(b"01", b"\0\1")
_FEW = 8
"""Workers up to which finding one bit after another is faster than spelling the whole mask out."""


def block_hashes(data: bytes, block_bytes: int = PREFIX_BLOCK_BYTES) -> tuple[int, ...]:
    """The 64-bit hash of each whole block of `data`, each seeded with the one before.

    So a hash stands for everything up to the end of its block: xxh3_64(block, seed=previous hash), the first seed is 0.
    The rest after the last whole block has no hash. Not safe against forgery; a collision costs a wrong belief only.
    """
    previous = 0
    hashes: list[int] = []
    for end in range(block_bytes, len(data) + 1, block_bytes):
        previous = xxh3_64_intdigest(data[end - block_bytes : end], previous)
        hashes.append(previous)
    return tuple(hashes)


class _Shelf:
    """The blocks one worker is believed to hold."""

    __slots__ = ("blocks", "capacity", "position")

    def __init__(self, position: int) -> None:
        self.position = position
        self.capacity = DEFAULT_CAPACITY_BLOCKS
        # Least recently used first. `add` refreshes prompts from their ends, so no block is older than one after it.
        self.blocks: OrderedDict[int, None] = OrderedDict()


class PrefixIndex:
    """Holders of prompt blocks, for all workers in one walk, each worker bounded by its own capacity.

    A block's holders are one integer with a bit for each worker. A worker that holds a block holds all blocks before
    it, because eviction takes the ends of prompts first; so the holders only shrink along a prompt, and where they
    change is found by bisection instead of block by block.

    Memory: MEASURED
    """

    def __init__(self) -> None:
        # Never 0: a block that nobody holds is not here. Bit i is set only if the shelf at position i has the block.
        self._holders: dict[int, int] = {}
        self._shelves: dict[WorkerId, _Shelf] = {}
        # The worker of each bit; positions of dropped workers keep their last name until they are taken again.
        self._names: list[WorkerId] = []
        self._free_positions: list[int] = []

    def add(self, worker: WorkerId, hashes: Sequence[int]) -> int:
        """Record that `worker` holds these blocks, and return how many leading ones it held already."""
        shelf = self._shelves.get(worker) or self._new_shelf(worker)
        if len(hashes) > shelf.capacity:
            hashes = hashes[: shelf.capacity]
        holders = self._holders
        bit = 1 << shelf.position
        held = bisect_left(hashes, True, key=lambda block: not holders.get(block, 0) & bit)
        known = bisect_left(hashes, True, lo=held, key=lambda block: block not in holders)
        for block in hashes[held:known]:
            holders[block] |= bit
        holders.update(dict.fromkeys(hashes[known:], bit))
        blocks = shelf.blocks
        for block in reversed(hashes):
            blocks[block] = None
            blocks.move_to_end(block)
        self._evict(shelf)
        return held

    def hit_blocks(self, hashes: Sequence[int]) -> dict[WorkerId, int]:
        """How many leading blocks each worker holds; only workers that hold the first."""
        holders = self._holders
        hits: dict[WorkerId, int] = {}
        depth = 0
        holding = holders.get(hashes[0], 0) if hashes else 0
        while holding:
            depth = bisect_left(hashes, True, lo=depth + 1, key=lambda block: holders.get(block, 0) != holding)
            still_holding = holders.get(hashes[depth], 0) & holding if depth < len(hashes) else 0
            hits.update(dict.fromkeys(self._workers(holding ^ still_holding), depth))
            holding = still_holding
        return hits

    def set_capacity(self, worker: WorkerId, blocks: int) -> None:
        """Bound what is believed of `worker`; what it used least recently is forgotten at once."""
        shelf = self._shelves.get(worker) or self._new_shelf(worker)
        shelf.capacity = max(0, blocks)
        self._evict(shelf)

    def drop(self, worker: WorkerId) -> None:
        """Forget all about `worker`."""
        shelf = self._shelves.pop(worker, None)
        if shelf is not None:
            shelf.capacity = 0
            self._evict(shelf)
            self._free_positions.append(shelf.position)

    def __len__(self) -> int:
        """Distinct blocks that somebody holds."""
        return len(self._holders)

    def _new_shelf(self, worker: WorkerId) -> _Shelf:
        if self._free_positions:
            position = self._free_positions.pop()
            self._names[position] = worker
        else:
            position = len(self._names)
            self._names.append(worker)
        shelf = self._shelves[worker] = _Shelf(position)
        return shelf

    def _evict(self, shelf: _Shelf) -> None:
        others = ~(1 << shelf.position)
        while len(shelf.blocks) > shelf.capacity:
            block, _ = shelf.blocks.popitem(last=False)
            left = self._holders.get(block, 0) & others
            if left:
                self._holders[block] = left
            else:
                self._holders.pop(block, None)

    def _workers(self, bits: int) -> Iterable[WorkerId]:
        if bits.bit_count() > _FEW:
            return compress(self._names, f"{bits:b}"[::-1].encode().translate(_TO_SELECTORS))
        found: list[WorkerId] = []
        while bits:
            position = bits.bit_length() - 1
            found.append(self._names[position])
            bits ^= 1 << position
        return found
