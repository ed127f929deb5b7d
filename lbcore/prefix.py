"""Which worker holds which beginning of a prompt: chained block hashes, and an index from them to workers.

The index is a belief, made of what was sent where. It asks no engine and reads no text.
"""

from __future__ import annotations

from array import array
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


class _Segment:
    """Blocks that follow one another in prompts and that the same workers hold, after the blocks of `parent`."""

    __slots__ = ("blocks", "children", "holders", "parent")

    def __init__(self, blocks: array[int], holders: int, parent: _Segment | None, children: int) -> None:
        self.blocks = blocks
        self.holders = holders
        self.parent = parent
        self.children = children
        """How many segments have this one as their parent."""


class _Shelf:
    """The segments one worker is believed to hold."""

    __slots__ = ("bit", "capacity", "position", "segments", "size")

    def __init__(self, position: int) -> None:
        self.position = position
        self.bit = 1 << position
        self.capacity = DEFAULT_CAPACITY_BLOCKS
        self.size = 0
        # Least recently used first, and none before those that continue it: the first is the end of all its prompts.
        # One that was split while others used it may not be here; it is then as old as the one part of it that is.
        self.segments: OrderedDict[_Segment, None] = OrderedDict()


class PrefixIndex:
    """Holders of prompt blocks, for all workers in one walk, each worker bounded by its own capacity.

    A tree of segments, found by their first block: a prompt never seen is one segment, however long. Holders are one
    integer with a bit for each worker. A worker that holds a segment holds all before it, because the ends of prompts
    are given up first; so the holders only shrink along a prompt.

    Memory, measured: a segment takes 290 bytes, each of its blocks 8 to 11, each further holder of it 85. So what one
    worker holds takes 23 bytes for a block where prompts differ in 20 blocks, 68 where in 5; at worst, where each
    prompt adds a single block, 300. 64 workers of 10,000 blocks (2.5 million bytes of prompts) each: 15, 44 or 190 MB.
    """

    def __init__(self) -> None:
        # By first block. A segment that nobody holds is not here. A bit is set only for a worker that will give it up:
        # the segment is on its shelf, or one that continues it is.
        self._segments: dict[int, _Segment] = {}
        self._size = 0
        self._shelves: dict[WorkerId, _Shelf] = {}
        # The worker of each bit; positions of dropped workers keep their last name until they are taken again.
        self._names: list[WorkerId] = []
        self._free_positions: list[int] = []

    def add(self, worker: WorkerId, hashes: Sequence[int]) -> int:
        """Record that `worker` holds these blocks, and return how many leading ones it held already."""
        shelf = self._shelves.get(worker) or self._new_shelf(worker)
        bit, used = shelf.bit, shelf.segments
        path, depth, partial, common = self._match(hashes)
        if partial is not None:
            path.append(self._split(partial, common))
            depth += common
        held = 0
        for segment in path:
            size = len(segment.blocks)
            if segment.holders & bit:
                held += size
            else:
                segment.holders |= bit
                shelf.size += size
        if depth < len(hashes):
            self._continue(path, array("Q", hashes[depth:]), shelf)
        for segment in reversed(path):
            used[segment] = None
            used.move_to_end(segment)
        if shelf.size > shelf.capacity:
            self._shed(shelf)
        return held

    def hit_blocks(self, hashes: Sequence[int]) -> dict[WorkerId, int]:
        """How many leading blocks each worker holds; only workers that hold the first."""
        return {worker: blocks for workers, blocks in self.holders(hashes) for worker in workers}

    def holders(self, hashes: Sequence[int]) -> list[tuple[Iterable[WorkerId], int]]:
        """Who holds as many leading blocks and no more, for each number of blocks, the smallest first."""
        groups: list[tuple[Iterable[WorkerId], int]] = []
        if not hashes or hashes[0] not in self._segments:
            return groups
        path, depth, partial, common = self._match(hashes)
        if partial is not None:
            path.append(partial)
        end = holding = 0
        for segment in path:
            if segment.holders != holding:
                if holding:
                    groups.append((self._workers(holding ^ segment.holders), end))
                holding = segment.holders
            end += len(segment.blocks)
        groups.append((self._workers(holding), depth + common))
        return groups

    def set_capacity(self, worker: WorkerId, blocks: int) -> None:
        """Bound what is believed of `worker`; what it used least recently is forgotten at once."""
        shelf = self._shelves.get(worker) or self._new_shelf(worker)
        shelf.capacity = max(0, blocks)
        if shelf.size > shelf.capacity:
            self._shed(shelf)

    def drop(self, worker: WorkerId) -> None:
        """Forget all about `worker`."""
        shelf = self._shelves.pop(worker, None)
        if shelf is not None:
            shelf.capacity = 0
            self._shed(shelf)
            self._free_positions.append(shelf.position)

    def __len__(self) -> int:
        """Distinct blocks that somebody holds."""
        return self._size

    def _new_shelf(self, worker: WorkerId) -> _Shelf:
        if self._free_positions:
            position = self._free_positions.pop()
            self._names[position] = worker
        else:
            position = len(self._names)
            self._names.append(worker)
        shelf = self._shelves[worker] = _Shelf(position)
        return shelf

    def _match(self, hashes: Sequence[int]) -> tuple[list[_Segment], int, _Segment | None, int]:
        """The whole segments that these blocks begin with, and how many blocks those are; then a segment of which only
        the first so many blocks, at least one, come next."""
        segments, size = self._segments, len(hashes)
        path: list[_Segment] = []
        depth = 0
        before: _Segment | None = None
        while depth < size:
            segment = segments.get(hashes[depth])
            # Another parent: these hashes are no chain, or two blocks have one hash.
            if segment is None or segment.parent is not before:
                break
            blocks = segment.blocks
            end = depth + len(blocks)
            # A hash stands for all before it, so the last block tells of the whole segment.
            if end > size or hashes[end - 1] != blocks[-1]:
                offset, limit = depth, min(len(blocks), size - depth)
                differs = bisect_left(range(limit), True, lo=1, key=lambda i: blocks[i] != hashes[offset + i])
                return path, depth, segment, differs
            path.append(segment)
            depth = end
            before = segment
        return path, depth, None, 0

    def _continue(self, path: list[_Segment], blocks: array[int], shelf: _Shelf) -> None:
        """Put blocks that nobody holds on a shelf, after a path that ends on it."""
        shelf.size += len(blocks)
        self._size += len(blocks)
        last = path[-1] if path else None
        if last is not None:
            if last.holders == shelf.bit and not last.children:
                # A conversation that goes on at one worker stays one segment.
                last.blocks.extend(blocks)
                return
            last.children += 1
        segment = self._segments[blocks[0]] = _Segment(blocks, shelf.bit, last, 0)
        path.append(segment)

    def _split(self, segment: _Segment, length: int) -> _Segment:
        """Cut a segment in two and return the first part; the second remains what it was on all shelves."""
        blocks = segment.blocks
        head = _Segment(blocks[:length], segment.holders, segment.parent, 1)
        segment.blocks = blocks[length:]
        segment.parent = head
        self._segments[blocks[0]] = head
        self._segments[blocks[length]] = segment
        return head

    def _shed(self, shelf: _Shelf) -> None:
        """Give up the least recently used blocks beyond capacity, the end of a prompt first."""
        bit, used = shelf.bit, shelf.segments
        while (excess := shelf.size - shelf.capacity) > 0:
            segment = next(iter(used))
            size = len(segment.blocks)
            if excess < size and segment.holders == bit:
                # Nobody holds what continues it: this worker gave that up before, and no other holds this.
                del segment.blocks[size - excess :]
                self._size -= excess
                shelf.size -= excess
                return
            if excess < size:
                self._split(segment, size - excess)
                size = excess
            del used[segment]
            shelf.size -= size
            parent = segment.parent
            segment.holders ^= bit
            if not segment.holders:
                self._size -= size
                first = segment.blocks[0]
                if self._segments.get(first) is segment:
                    del self._segments[first]
                if parent is not None:
                    parent.children -= 1
            if parent is not None and parent.holders & bit and parent not in used:
                used[parent] = None
                used.move_to_end(parent, last=False)

    def _workers(self, bits: int) -> Iterable[WorkerId]:
        if bits.bit_count() > _FEW:
            return compress(self._names, f"{bits:b}"[::-1].encode().translate(_TO_SELECTORS))
        found: list[WorkerId] = []
        while bits:
            position = bits.bit_length() - 1
            found.append(self._names[position])
            bits ^= 1 << position
        return found
