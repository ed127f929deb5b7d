"""Ends a text exactly before the first stop string. Pure.

For engines that have no such thing, or lose what they hold back because it may be the begin of a stop string when the
answer ends there for another reason.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """One text as it comes: `feed` returns what is sure to be part of it, `flush` the rest when nothing more comes."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stopped = False
        """Whether a stop string came; from then on there is no text."""
        self._stops = stops
        self._longest = max(map(len, stops))
        self._held = ""

    def feed(self, text: str) -> str:
        text = self._held + text
        # The stop string that is complete first counts, the longest of several that end together.
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        kept = len(text) - self._undecided(text)
        self._held = text[kept:]
        return text[:kept]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """How many of the last characters may be the begin of a stop string."""
        for count in range(min(len(text), self._longest - 1), 0, -1):
            if any(stop.startswith(text[-count:]) for stop in self._stops):
                return count
        return 0
