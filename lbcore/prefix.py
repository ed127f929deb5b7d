"""Which worker holds which beginning of a prompt: chained block hashes, and an index from them to workers.

A block begins where the last one ended. It has 256 bytes, or the largest power of two that is at most a sixteenth of
where it begins, if that is more: 256 up to 8 KiB, 512 up to 16 KiB, 16 blocks for each further doubling. A shared
beginning is cut to whole blocks, and what that costs is prefill of what is not believed, in proportion to the prefill
that the beginning saves: up to 8 KiB half a block is lost on average, 32 tokens or 3 ms at 10,000 tokens/s; beyond it
never more than a sixteenth of what is shared, and less than a thirty-second on average. So 200 KB of prompt are 104
hashes rather than 781 to make, to carry and to keep. Callers of their own kind may have blocks of one size instead.

The index is a belief, made of what was sent where. It asks no engine and reads no text. It forgets as engines evict:
what an open request uses stays, and of the rest goes first what has not been used for longest, where a prompt is in use
up to the end of its request.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import compress, pairwise

from xxhash import xxh3_64_intdigest

from lbcore.types import NO_TICKET, Ticket, WorkerId

PREFIX_BLOCK_BYTES = 256
"""Bytes in the smallest block, about 64 tokens; and in the unit in which the index counts what a worker holds."""

DEFAULT_CAPACITY_UNITS = 4096
"""Units believed of a worker that does not say how many it holds: 1 MiB of text, about 260,000 tokens."""

MAX_CAPACITY_UNITS = 32_768
"""Most units believed of one worker, however large its KV cache: 8 MiB of text, 2 million tokens."""


def _growing_ends() -> tuple[int, ...]:
    """Where the growing blocks end, in units, with the 0 before them; up to 4 GiB, the longest prompt there can be."""
    ends = [0]
    while (begin := ends[-1]) < 2**32 // PREFIX_BLOCK_BYTES:
        ends.append(begin + (1 << max(1, begin // 16).bit_length() - 1))
    return tuple(ends)


_GROWING = _growing_ends()
_BLOCKS = tuple(slice(begin * PREFIX_BLOCK_BYTES, end * PREFIX_BLOCK_BYTES) for begin, end in pairwise(_GROWING))
_EQUAL = 32
"""Blocks that begin each prompt before they grow, a unit each."""
_COPIED = 64
"""Blocks up to which copying them costs less than looking at them in place; growing ones have 1 KiB by then."""
_FAR = 2**62
"""Units after which no prompt ends, whatever a caller says."""

_SPARED = 128
"""Prompts in use that are passed over in one search for blocks to give up, in a quarter of a microsecond each. Each
comes up once in a turnover of the cache; only where more is in use than a worker can hold would no search find others.
"""

_TO_SELECTORS = bytes.maketrans(b"01", b"\0\1")
_FEW = 8
"""Workers up to which finding one bit after another is faster than spelling the whole mask out."""


def block_hashes(data: bytes, block_bytes: int = 0) -> tuple[int, ...]:
    """The 64-bit hash of each whole block of `data`, each seeded with the one before; 0 means growing blocks.

    So a hash stands for everything up to the end of its block: xxh3_64(block, seed=previous hash), the first seed is 0.
    The rest after the last whole block has no hash. Not safe against forgery; a collision costs a wrong belief only.
    """
    size = len(data)
    if block_bytes:
        blocks = tuple(slice(end - block_bytes, end) for end in range(block_bytes, size + 1, block_bytes))
    else:
        units = size // PREFIX_BLOCK_BYTES
        blocks = _BLOCKS[: units if units <= _EQUAL else bisect_right(_GROWING, units) - 1]
    source = data if len(blocks) <= _COPIED else memoryview(data)
    previous = 0
    hashes: list[int] = []
    for block in blocks:
        previous = xxh3_64_intdigest(source[block], previous)
        hashes.append(previous)
    return tuple(hashes)


def bytes_of(blocks: int, block_bytes: int = 0) -> int:
    """Bytes up to the end of so many blocks of this size; 0 means growing blocks."""
    return blocks * block_bytes if block_bytes else _GROWING[min(blocks, len(_BLOCKS))] * PREFIX_BLOCK_BYTES


class Positions:
    """A bit for each worker, in integers that stand for sets of workers."""

    __slots__ = ("_free", "_names")

    def __init__(self) -> None:
        # The worker of each bit; positions given back keep their last name until they are taken again.
        self._names: list[WorkerId] = []
        self._free: list[int] = []

    def take(self, worker: WorkerId) -> int:
        """A position that nobody has."""
        if self._free:
            position = self._free.pop()
            self._names[position] = worker
        else:
            position = len(self._names)
            self._names.append(worker)
        return position

    def give_back(self, position: int) -> None:
        """No integer has this bit any more."""
        self._free.append(position)

    def workers(self, bits: int) -> Iterable[WorkerId]:
        """Those whose bits are set."""
        if bits.bit_count() > _FEW:
            return compress(self._names, f"{bits:b}"[::-1].encode().translate(_TO_SELECTORS))
        found: list[WorkerId] = []
        while bits:
            position = bits.bit_length() - 1
            found.append(self._names[position])
            bits ^= 1 << position
        return found


class _Segment:
    """Blocks that follow one another in prompts and that the same workers hold, after the blocks of `parent`."""

    __slots__ = ("begin", "blocks", "children", "ends", "holders", "parent", "units")

    def __init__(
        self, blocks: array[int], begin: int, ends: Sequence[int], holders: int, parent: _Segment | None, children: int
    ) -> None:
        self.blocks = blocks
        self.begin = begin
        """How many blocks come before."""
        self.ends = ends
        """Where the blocks of such a prompt end, in units. Equal hashes are equal bytes, so they end alike for all."""
        self.units = ends[begin + len(blocks)] - ends[begin]
        self.holders = holders
        self.parent = parent
        self.children = children
        """How many segments have this one as their parent."""


class _Shelf:
    """The segments one worker is believed to hold."""

    __slots__ = ("bit", "capacity", "in_use", "position", "segments", "tickets", "units")

    def __init__(self, position: int) -> None:
        self.position = position
        self.bit = 1 << position
        self.capacity = DEFAULT_CAPACITY_UNITS
        self.units = 0
        # Least recently used first, and none before those that continue it: the first is the end of all its prompts.
        # One that was split while others used it may not be here; it is then as old as the one part of it that is.
        self.segments: OrderedDict[_Segment, None] = OrderedDict()
        # Of each open ticket the segment with the end of its prompt. When that one is split the end may be in a segment
        # before it.
        self.tickets: dict[Ticket, _Segment] = {}
        self.in_use: dict[_Segment, int] = {}
        """Those of open tickets, each with their number."""


class PrefixIndex:
    """Holders of prompt blocks, for all workers in one walk, each worker bounded by its own capacity.

    Capacity and what is held are counted in units of 256 bytes of prompt. A growing block counts as the units it has,
    one of a caller's own size as the units it begins: one at least, so nobody holds more blocks than units.

    A tree of segments, found by their first block: a prompt never seen is one segment, however long. Holders are one
    integer with a bit for each worker. A worker that holds a segment holds all before it, because the ends of prompts
    are given up first; so the holders only shrink along a prompt. Prompts of open tickets are given up last.

    Memory, measured: a segment takes 315 bytes, each of its blocks 8 to 11, each further holder of it 85. So what one
    worker holds takes 24 bytes for a block where prompts differ in 20 blocks, 73 where in 5; at worst, where each
    prompt adds a single block, 325. 64 workers of 10,000 units (2.5 million bytes of prompts) each: 16, 47 or 210 MB,
    and 1 MB where all prompts have 200 KB.
    """

    def __init__(self) -> None:
        # By first block. A segment that nobody holds is not here. A bit is set only for a worker that will give it up:
        # the segment is on its shelf, or one that continues it is.
        self._segments: dict[int, _Segment] = {}
        self._size = 0
        self._shelves: dict[WorkerId, _Shelf] = {}
        self._positions = Positions()

    def add(self, worker: WorkerId, hashes: Sequence[int], block_bytes: int = 0, ticket: Ticket = NO_TICKET) -> int:
        """Record that `worker` holds these blocks, and return how many leading ones it held already. With a ticket they
        are in use until `over` says that it is over; it must be told once."""
        shelf = self._shelves.get(worker) or self._new_shelf(worker)
        bit, used = shelf.bit, shelf.segments
        ends: Sequence[int] = _GROWING
        if block_bytes:
            ends = range(0, _FAR, -(-block_bytes // PREFIX_BLOCK_BYTES))
        elif len(hashes) > len(_BLOCKS):
            hashes = hashes[: len(_BLOCKS)]
        path, depth, partial, common = self._match(hashes)
        if partial is not None:
            path.append(self._split(partial, common))
            depth += common
        held = 0
        for segment in path:
            if segment.holders & bit:
                held += len(segment.blocks)
            else:
                segment.holders |= bit
                shelf.units += segment.units
        if depth < len(hashes):
            self._continue(path, array("Q", hashes[depth:]), depth, ends, shelf)
        for segment in reversed(path):
            used[segment] = None
            used.move_to_end(segment)
        if ticket and path and ticket not in shelf.tickets:
            end = shelf.tickets[ticket] = path[-1]
            shelf.in_use[end] = shelf.in_use.get(end, 0) + 1
        if shelf.units > shelf.capacity:
            self._shed(shelf)
        return held

    def over(self, worker: WorkerId, ticket: Ticket, *, computed: bool) -> None:
        """This ticket is over. Its prompt counts as used until now if it was computed, and else as it did before."""
        shelf = self._shelves.get(worker)
        end = shelf.tickets.pop(ticket, None) if shelf is not None else None
        if shelf is None or end is None:
            return
        left = shelf.in_use[end] - 1
        if left:
            shelf.in_use[end] = left
        else:
            del shelf.in_use[end]
        if computed:
            _use(shelf, end)

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
                    groups.append((self._positions.workers(holding ^ segment.holders), end))
                holding = segment.holders
            end += len(segment.blocks)
        groups.append((self._positions.workers(holding), depth + common))
        return groups

    def set_capacity(self, worker: WorkerId, units: int) -> None:
        """Bound what is believed of `worker`, in units; what it used least recently is forgotten at once."""
        shelf = self._shelves.get(worker) or self._new_shelf(worker)
        shelf.capacity = max(0, units)
        if shelf.units > shelf.capacity:
            self._shed(shelf)

    def drop(self, worker: WorkerId) -> None:
        """Forget all about `worker`."""
        shelf = self._shelves.pop(worker, None)
        if shelf is not None:
            shelf.capacity = 0
            shelf.in_use.clear()
            self._shed(shelf)
            self._positions.give_back(shelf.position)

    def __len__(self) -> int:
        """Distinct blocks that somebody holds."""
        return self._size

    def _new_shelf(self, worker: WorkerId) -> _Shelf:
        shelf = self._shelves[worker] = _Shelf(self._positions.take(worker))
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

    def _continue(
        self, path: list[_Segment], blocks: array[int], depth: int, ends: Sequence[int], shelf: _Shelf
    ) -> None:
        """Put blocks that nobody holds on a shelf, after a path of so many blocks that ends on it."""
        self._size += len(blocks)
        last = path[-1] if path else None
        if last is not None:
            if last.holders == shelf.bit and not last.children and (last.ends is ends or last.ends == ends):
                # A conversation that goes on at one worker stays one segment.
                last.blocks.extend(blocks)
                units = ends[depth + len(blocks)] - ends[depth]
                last.units += units
                shelf.units += units
                return
            last.children += 1
        segment = self._segments[blocks[0]] = _Segment(blocks, depth, ends, shelf.bit, last, 0)
        shelf.units += segment.units
        path.append(segment)

    def _split(self, segment: _Segment, length: int) -> _Segment:
        """Cut a segment in two and return the first part; the second remains what it was on all shelves."""
        blocks = segment.blocks
        head = _Segment(blocks[:length], segment.begin, segment.ends, segment.holders, segment.parent, 1)
        segment.blocks = blocks[length:]
        segment.begin += length
        segment.units -= head.units
        segment.parent = head
        self._segments[blocks[0]] = head
        self._segments[blocks[length]] = segment
        return head

    def _shed(self, shelf: _Shelf) -> None:
        """Give up the least recently used blocks beyond capacity, the end of a prompt first."""
        bit, used, in_use = shelf.bit, shelf.segments, shelf.in_use
        spared = 0
        while (excess := shelf.units - shelf.capacity) > 0:
            segment = next(iter(used))
            if segment in in_use and spared < _SPARED:
                spared += 1
                _use(shelf, segment)
                continue
            if excess < segment.units:
                # As many whole blocks stay as end before the excess begins.
                ends, begin = segment.ends, segment.begin
                limit = ends[begin] + segment.units - excess
                kept = bisect_right(ends, limit, begin, begin + len(segment.blocks)) - 1 - begin
                if kept and segment.holders == bit:
                    # Nobody holds what continues it: this worker gave that up before, and no other holds this.
                    units = ends[begin + kept] - ends[begin]
                    self._size -= len(segment.blocks) - kept
                    shelf.units -= segment.units - units
                    segment.units = units
                    del segment.blocks[kept:]
                    return
                if kept:
                    self._split(segment, kept)
            del used[segment]
            shelf.units -= segment.units
            parent = segment.parent
            segment.holders ^= bit
            if not segment.holders:
                self._size -= len(segment.blocks)
                first = segment.blocks[0]
                if self._segments.get(first) is segment:
                    del self._segments[first]
                if parent is not None:
                    parent.children -= 1
            if parent is not None and parent.holders & bit and parent not in used:
                used[parent] = None
                used.move_to_end(parent, last=False)


def _use(shelf: _Shelf, end: _Segment) -> None:
    """A prompt with its end in this segment, as far as the worker holds it, was used last."""
    bit, used = shelf.bit, shelf.segments
    segment: _Segment | None = end
    while segment is not None:
        if segment.holders & bit:
            used[segment] = None
            used.move_to_end(segment)
        segment = segment.parent
