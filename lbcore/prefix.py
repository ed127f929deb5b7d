"""Which worker holds which beginning of a prompt: chained block hashes, and an index from them to workers.

The index is a belief, made of what was sent where. It asks no engine and reads no text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
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


class _Run:
    """Blocks that follow one another in a prompt and are used together: the worker's other prompts leave at its end."""

    __slots__ = ("blocks",)

    def __init__(self, blocks: tuple[int, ...]) -> None:
        self.blocks = blocks


class _Shelf:
    """The blocks one worker is believed to hold, as runs."""

    __slots__ = ("bit", "capacity", "position", "runs", "size", "starts")

    def __init__(self, position: int) -> None:
        self.position = position
        self.bit = 1 << position
        self.capacity = DEFAULT_CAPACITY_BLOCKS
        self.size = 0
        # The run that begins with a block.
        self.starts: dict[int, _Run] = {}
        # Least recently used first, and no run before those that continue it: the first is the end of all its prompts.
        self.runs: OrderedDict[_Run, None] = OrderedDict()

    def path(self, blocks: Sequence[int]) -> list[_Run]:
        """The runs that make up these held blocks; the last is split where they end."""
        path: list[_Run] = []
        depth = 0
        while depth < len(blocks):
            run = self.starts.get(blocks[depth])
            if run is None:
                break
            if len(run.blocks) > len(blocks) - depth:
                run = self._split(run, len(blocks) - depth)
            path.append(run)
            depth += len(run.blocks)
        return path

    def append(self, run: _Run) -> None:
        self.starts[run.blocks[0]] = run
        self.runs[run] = None
        self.size += len(run.blocks)

    def shed(self) -> Iterator[int]:
        """Give up the least recently used blocks beyond capacity, the end of a prompt first."""
        while self.size > self.capacity:
            run = next(iter(self.runs))
            kept = max(0, len(run.blocks) - (self.size - self.capacity))
            yield from run.blocks[kept:]
            self.size -= len(run.blocks) - kept
            if kept:
                run.blocks = run.blocks[:kept]
            else:
                del self.runs[run]
                self.starts.pop(run.blocks[0], None)

    def _split(self, run: _Run, length: int) -> _Run:
        """Cut a run in two and return the first. The second keeps its age, the first is about to be used."""
        head = _Run(run.blocks[:length])
        run.blocks = run.blocks[length:]
        self.starts[head.blocks[0]] = head
        self.starts[run.blocks[0]] = run
        self.runs[head] = None
        return head


class PrefixIndex:
    """Holders of prompt blocks, for all workers in one walk, each worker bounded by its own capacity.

    A block's holders are one integer with a bit for each worker. A worker that holds a block holds all blocks before
    it, because the ends of prompts are given up first; so the holders only shrink along a prompt, and where they change
    is found by bisection instead of block by block.

    Memory, measured with runs of 20 blocks: 110 bytes for a block that one worker holds, 55 for each further holder. So
    64 workers of 10,000 blocks (2.5 million bytes of prompts) each take 70 MB at most.
    """

    def __init__(self) -> None:
        # Never 0: a block that nobody holds is not here. A bit is set only for a block on that worker's shelf.
        self._holders: dict[int, int] = {}
        self._shelves: dict[WorkerId, _Shelf] = {}
        # The worker of each bit; positions of dropped workers keep their last name until they are taken again.
        self._names: list[WorkerId] = []
        self._free_positions: list[int] = []

    def add(self, worker: WorkerId, hashes: Sequence[int]) -> int:
        """Record that `worker` holds these blocks, and return how many leading ones it held already."""
        shelf = self._shelves.get(worker) or self._new_shelf(worker)
        holders, bit = self._holders, shelf.bit
        held = bisect_left(hashes, True, key=lambda block: not holders.get(block, 0) & bit)
        path = shelf.path(hashes[:held])
        fresh = hashes[held:]
        if fresh:
            known = bisect_left(fresh, True, key=lambda block: block not in holders)
            for block in fresh[:known]:
                holders[block] = holders.get(block, 0) | bit
            holders.update(dict.fromkeys(fresh[known:], bit))
            shelf.append(_Run(tuple(fresh)))
        for run in reversed(path):
            shelf.runs.move_to_end(run)
        self._shed(shelf)
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

    def _shed(self, shelf: _Shelf) -> None:
        holders, bit = self._holders, shelf.bit
        for block in shelf.shed():
            holding = holders.get(block, 0)
            if holding == bit:
                del holders[block]
            elif holding & bit:
                holders[block] = holding ^ bit

    def _workers(self, bits: int) -> Iterable[WorkerId]:
        if bits.bit_count() > _FEW:
            return compress(self._names, f"{bits:b}"[::-1].encode().translate(_TO_SELECTORS))
        found: list[WorkerId] = []
        while bits:
            position = bits.bit_length() - 1
            found.append(self._names[position])
            bits ^= 1 << position
        return found
