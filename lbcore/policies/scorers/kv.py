"""Prefers workers with much room in their KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

from lbcore.types import Endpoint, PickRequest


@dataclass(frozen=True, slots=True)
class Kv:
    """The part of the KV blocks that no unfinished request holds.

    A worker that does not say how many it has counts as the mean of those that do, and as empty where none does.
    """

    def score(self, request: PickRequest, candidates: Sequence[Endpoint]) -> Sequence[float]:
        held = [(candidate.load.kv_used_blocks, candidate.spec.capacity.kv_blocks) for candidate in candidates]
        rooms = [max(0.0, 1.0 - used / blocks) if blocks else -1.0 for used, blocks in held]
        known = [room for room in rooms if room >= 0.0]
        if len(known) == len(rooms):
            return rooms
        # An exact sum, because a plain one depends on the order.
        mean = fsum(known) / len(known) if known else 1.0
        return [room if room >= 0.0 else mean for room in rooms]
