"""How fast a server is, measured from what its streams show. Pure; the caller brings the time.

A stream shows when it was sent, when its first token came, and at its end how many prompt tokens were computed. What is
measured is the server's speed, not one request's: while several prompts are computed at once, each is charged its share
of the time.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

_KEEP = 0.9
"""Weight of the past against one more measured step: the last ten dominate."""
WINDOW_TOKENS = 16_384
"""Prompt tokens that prefill speed is measured over; what is older fades by half each time as many have come."""
MIN_PREFILL_TOKENS = 32
"""Shorter prompts say more of the cost of a step, and of the network, than of the speed of computing prompts."""
MIN_STEPS = 8
"""Tokens of a choice over which a step's time is measured: gaps between single tokens are as ragged as the network."""


@dataclass(slots=True)
class _Stream:
    share_at_start: float
    share_s: float | None = None
    """Its part of the time in which prompts were computed; None until its first token."""
    had_queue: bool = False
    tokens: int = 0
    tokens_at: float = 0.0


class StreamMeter:
    """Moving averages over all requests; both are 0 until something was measured."""

    def __init__(self) -> None:
        self.step_time_ms = 0.0
        self.prompt_tokens = 0.0
        """Tokens that were computed of a prompt, on the average."""
        self._streams: dict[Hashable, _Stream] = {}
        self._prefilling = 0
        self._now = 0.0
        #: Seconds that one prompt alone would have been charged since the beginning: each second counts for one part of
        #: as many as there were prompts. The difference between two moments is the share of whoever was there.
        self._share_s = 0.0
        self._tokens = 0.0
        self._seconds = 0.0

    @property
    def prefill_tokens_per_s(self) -> float:
        return self._tokens / self._seconds if self._seconds > 0 else 0.0

    def sent(self, key: Hashable, now: float) -> None:
        """A request was sent."""
        self._pass(now)
        self._prefilling += 1
        self._streams[key] = _Stream(self._share_s)

    def reached(self, key: Hashable, tokens: int, choices: int, now: float, *, has_queue: bool = False) -> None:
        """How many tokens a request has by now, over so many choices. The first of them ends its prefill.

        With `has_queue` requests wait in the server for others to end, and the time to the first token says more of
        that than of the speed of computing prompts: it counts only while nothing better is known.
        """
        stream = self._streams.get(key)
        if stream is None or not tokens:
            return
        if stream.share_s is None:
            self._pass(now)
            self._prefilling -= 1
            stream.share_s = self._share_s - stream.share_at_start
            stream.had_queue = has_queue
            stream.tokens, stream.tokens_at = tokens, now
        elif tokens - stream.tokens >= MIN_STEPS * choices:
            step_ms = 1000 * (now - stream.tokens_at) * choices / (tokens - stream.tokens)
            average_ms = self.step_time_ms
            self.step_time_ms = average_ms * _KEEP + step_ms * (1 - _KEEP) if average_ms else step_ms
            stream.tokens, stream.tokens_at = tokens, now

    def left(self, key: Hashable, computed_tokens: int, now: float) -> None:
        """A request is over; so many prompt tokens were computed for it, 0 when that is not known."""
        stream = self._streams.pop(key, None)
        if stream is None:
            return
        if computed_tokens:
            average = self.prompt_tokens
            self.prompt_tokens = average * _KEEP + computed_tokens * (1 - _KEEP) if average else computed_tokens
        if stream.share_s is None:
            self._pass(now)
            self._prefilling -= 1
        elif computed_tokens >= MIN_PREFILL_TOKENS and not (stream.had_queue and self._tokens):
            self._tokens += computed_tokens
            self._seconds += stream.share_s
            if self._tokens > WINDOW_TOKENS:
                self._tokens /= 2
                self._seconds /= 2

    def _pass(self, now: float) -> None:
        if self._prefilling:
            self._share_s += (now - self._now) / self._prefilling
        self._now = now
