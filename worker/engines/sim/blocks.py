"""KV blocks as counts and hashes: held by sequences, idle but reusable, or free. Knows nothing of sequences or time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice


class BlockPool:
    """A finite set of KV blocks, some of which carry the hash of the prefix that they hold.

    Invariant: `free` + `used` + `cached` = `total`. A block is anonymous (one holder, no hash), shared (one or more
    holders, found by its hash) or idle (no holder, found by its hash until it is evicted, least recently used first).
    Blocks have no numbers, since only how many there are and which prefixes they hold can be observed.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self.holders: dict[int, int] = {}
        """Shared blocks: hash to number of holders, never below one."""
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._changes: dict[int, bool] | None = None
        """Hashes by whether they came or went since they were last told, the last word on each; None unless watched."""

    def watch(self) -> None:
        """From now on `changes` tells which hashes come and go."""
        self._changes = {}

    def changes(self) -> tuple[list[int], list[int]]:
        """Hashes that can be found now and could not when this was last asked, and those of which the opposite is
        true; the first answer is since `watch`."""
        changes, self._changes = self._changes or {}, {}
        return [one for one, came in changes.items() if came], [one for one, came in changes.items() if not came]

    def __contains__(self, block_hash: int) -> bool:
        return block_hash in self.holders or block_hash in self._idle

    @property
    def cached(self) -> int:
        """Blocks that hold a prefix and belong to nobody."""
        return len(self._idle)

    @property
    def used(self) -> int:
        """Blocks with at least one holder."""
        return self.total - self.free - len(self._idle)

    @property
    def available(self) -> int:
        """Blocks that `take` could give."""
        return self.free + len(self._idle)

    def hits(self, hashes: Sequence[int], limit: int) -> tuple[int, int]:
        """How many of the first `limit` blocks are present without a gap, and how many of these are idle."""
        holders, idle = self.holders, self._idle
        found = idle_found = 0
        for block_hash in islice(hashes, limit):
            if block_hash in idle:
                idle_found += 1
            elif block_hash not in holders:
                break
            found += 1
        return found, idle_found

    def hold(self, hashes: Sequence[int], count: int) -> None:
        """Adds a holder to the first `count` blocks, which must be present."""
        holders, idle = self.holders, self._idle
        for block_hash in islice(hashes, count):
            if block_hash in idle:
                del idle[block_hash]
                holders[block_hash] = 1
            else:
                holders[block_hash] += 1

    def take(self, count: int) -> bool:
        """Takes anonymous blocks, evicting idle ones where free ones run out; takes none and says False if too few."""
        short = count - self.free
        if short > 0:
            if short > len(self._idle):
                return False
            for _ in range(short):
                evicted, _ = self._idle.popitem(last=False)
                if self._changes is not None:
                    self._changed(evicted, False)
            self.free = 0
        else:
            self.free -= count
        return True

    def share(self, hashes: Sequence[int], start: int, end: int) -> None:
        """Turns as many anonymous blocks of the caller into shared ones with the hashes from `start` to before `end`.

        Where another block already carries the hash, the caller becomes a holder of that one and its own is freed: two
        sequences that computed the same prefix at once keep a single copy.
        """
        holders, idle = self.holders, self._idle
        for index in range(start, end):
            block_hash = hashes[index]
            if block_hash in holders:
                holders[block_hash] += 1
                self.free += 1
            else:
                holders[block_hash] = 1
                if block_hash in idle:
                    del idle[block_hash]
                    self.free += 1
                elif self._changes is not None:
                    self._changed(block_hash, True)

    def drop(self, hashes: Sequence[int], count: int, anonymous: int) -> None:
        """Takes a holder from the first `count` blocks and frees `anonymous` ones."""
        self.free += anonymous
        holders, idle = self.holders, self._idle
        # The deepest block becomes idle first and so is evicted first: a prefix without its beginning is worthless.
        for index in range(count - 1, -1, -1):
            block_hash = hashes[index]
            left = holders[block_hash] - 1
            if left:
                holders[block_hash] = left
            else:
                del holders[block_hash]
                idle[block_hash] = None

    def _changed(self, block_hash: int, came: bool) -> None:
        assert self._changes is not None
        # What came and went again, or went and came again, is as it was.
        if self._changes.pop(block_hash, came) == came:
            self._changes[block_hash] = came
