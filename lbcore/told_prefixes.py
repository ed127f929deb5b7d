"""Which worker holds which beginning of a prompt, for workers that tell what their prefix cache holds.

The index is what engines said, and for a while what they are expected to say: a prompt counts as held from its dispatch
on, because the next one that begins alike will find it computed, and stops counting for this reason when its ticket is
over, because by then the engine has told of it if it holds it. So each expectation hangs on a ticket and goes with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lbcore.prefix import MAX_CAPACITY_UNITS, Positions
from lbcore.types import Ticket, WorkerId


class _Shelf:
    """What one worker told, and what is expected of it."""

    __slots__ = ("bit", "expected", "position", "tickets", "told")

    def __init__(self, position: int) -> None:
        self.position = position
        self.bit = 1 << position
        self.told: set[int] = set()
        self.expected: dict[int, int] = {}
        """Expected blocks, each with the number of tickets that it is expected of."""
        self.tickets: dict[Ticket, Sequence[int]] = {}
        """Each with the blocks expected of it."""


class ToldPrefixes:
    """Holders of prompt blocks, as far as they told or are expected to.

    A block's holders are one integer with a bit for each worker, set as long as the worker told the block or some
    ticket there expects it. A hash stands for all blocks before its own, but nothing is concluded from that: engines
    tell of each block.

    Memory, measured: 120 to 170 bytes for a block of one worker that no other holds, 90 for one that all 64 hold. 64
    workers that told 10,000 blocks each take 95 or 57 MB; of one worker no more than `MAX_CAPACITY_UNITS` are kept.
    Time, measured with 64 workers: `holders` takes 5 microseconds for 20 blocks and 8 for 104; `expect` and `over` 0.7
    for each block that was not told yet.
    """

    def __init__(self) -> None:
        # A block that nobody holds is not here.
        self._masks: dict[int, int] = {}
        self._shelves: dict[WorkerId, _Shelf] = {}
        self._positions = Positions()

    def stored(self, worker: WorkerId, hashes: Iterable[int]) -> None:
        """`worker` has come to hold these blocks. Beyond `MAX_CAPACITY_UNITS` of one worker they are passed over, and
        not remembered when others go: its next whole report has them."""
        shelf = self._shelf(worker)
        masks, bit, told = self._masks, shelf.bit, shelf.told
        for block in hashes:
            if len(told) >= MAX_CAPACITY_UNITS:
                return
            told.add(block)
            masks[block] = masks.get(block, 0) | bit

    def removed(self, worker: WorkerId, hashes: Iterable[int]) -> None:
        """`worker` holds these blocks no more; those that it never told are passed over."""
        shelf = self._shelves.get(worker)
        if shelf is None:
            return
        told, expected = shelf.told, shelf.expected
        for block in hashes:
            if block in told:
                told.remove(block)
                if block not in expected:
                    self._clear(block, shelf.bit)

    def replaced(self, worker: WorkerId, hashes: Iterable[int]) -> None:
        """`worker` holds these blocks and no others."""
        shelf = self._shelf(worker)
        now = set(hashes)
        self.removed(worker, [block for block in shelf.told if block not in now])
        self.stored(worker, now - shelf.told)

    def expect(self, worker: WorkerId, ticket: Ticket, hashes: Sequence[int]) -> None:
        """A prompt of these blocks was sent to `worker` under this ticket, of which `over` must be told once."""
        shelf = self._shelf(worker)
        told = shelf.told
        # What it told already stays until it tells otherwise: of a prompt much of which is there little is to be kept.
        awaited = [block for block in dict.fromkeys(hashes) if block not in told]
        del awaited[max(0, MAX_CAPACITY_UNITS - len(told) - len(shelf.expected)) :]
        if not awaited or ticket in shelf.tickets:
            return
        masks, bit, expected = self._masks, shelf.bit, shelf.expected
        shelf.tickets[ticket] = awaited
        for block in awaited:
            expected[block] = expected.get(block, 0) + 1
            masks[block] = masks.get(block, 0) | bit

    def over(self, worker: WorkerId, ticket: Ticket) -> None:
        """Nothing is expected of this ticket any more; nothing happens where nothing was."""
        shelf = self._shelves.get(worker)
        awaited = shelf.tickets.pop(ticket, ()) if shelf is not None else ()
        if shelf is None or not awaited:
            return
        expected, told = shelf.expected, shelf.told
        for block in awaited:
            count = expected[block] - 1
            if count:
                expected[block] = count
            else:
                del expected[block]
                if block not in told:
                    self._clear(block, shelf.bit)

    def holders(self, hashes: Sequence[int]) -> list[tuple[Iterable[WorkerId], int]]:
        """Who holds as many leading blocks and no more, for each number of blocks, the smallest first."""
        groups: list[tuple[Iterable[WorkerId], int]] = []
        get = self._masks.get
        holding = get(hashes[0], 0) if hashes else 0
        if not holding:
            return groups
        depth = 0
        for block in hashes:
            still = holding & get(block, 0)
            if still != holding:
                groups.append((self._positions.workers(holding ^ still), depth))
                if not still:
                    return groups
                holding = still
            depth += 1
        groups.append((self._positions.workers(holding), depth))
        return groups

    def drop(self, worker: WorkerId) -> None:
        """Forget all about `worker`."""
        shelf = self._shelves.pop(worker, None)
        if shelf is None:
            return
        for block in shelf.told | shelf.expected.keys():
            self._clear(block, shelf.bit)
        self._positions.give_back(shelf.position)

    def __len__(self) -> int:
        """Distinct blocks that somebody holds or is expected to hold."""
        return len(self._masks)

    def _shelf(self, worker: WorkerId) -> _Shelf:
        shelf = self._shelves.get(worker)
        if shelf is None:
            shelf = self._shelves[worker] = _Shelf(self._positions.take(worker))
        return shelf

    def _clear(self, block: int, bit: int) -> None:
        left = self._masks[block] & ~bit
        if left:
            self._masks[block] = left
        else:
            del self._masks[block]
