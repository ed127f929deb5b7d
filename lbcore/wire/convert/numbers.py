"""Numbers that cross the wire, brought into the range that the other side can hold."""

from __future__ import annotations

_UINT32 = 2**32 - 1

_MOST = 1e12

MOST_PAIRS = 1e18
"""Pairs of tokens that attend to one another, in the queue of one worker: a million prompts of a million tokens have
half as many."""


def measure(value: float, most: float = _MOST) -> float:
    """A measurement as a peer sent it; 0, which means nothing measured, for NaN, infinity, negative numbers and what is
    not less than `most`."""
    return value if 0.0 < value < most else 0.0


def milliseconds(timeout_s: float | None) -> int:
    """A time limit for the wire, where 0 means none: what is over already becomes the shortest there is."""
    return 0 if timeout_s is None else max(1, round(min(timeout_s * 1000, _UINT32)))


def uint32(value: int) -> int:
    """The nearest number that a uint32 holds."""
    return max(0, min(value, _UINT32))
