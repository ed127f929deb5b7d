"""How fast llama.cpp is, measured from what its requests had reached when. Pure; the caller brings the time."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

_KEEP = 0.9
"""Weight of the past against one more measured step: the last ten dominate."""
WINDOW_TOKENS = 4096
"""Prompt tokens that prefill speed is measured over; what is older fades by half each time as many have come."""
MIN_PREFILL_TOKENS = 32
"""Shorter prompts say more of the cost of a step than of the speed of computing prompts."""
MIN_STEPS = 8
"""Steps over which a step's time is measured: gaps between single tokens are as ragged as the scheduling of threads."""


@dataclass(slots=True)
class _Progress:
    prompt_tokens: int
    prefilled: bool
    deltas: int
    deltas_at: float


class SpeedMeter:
    """Moving averages over all requests; both are 0 until something was measured.

    Prefill speed is that of the engine, not of one request: prompt tokens computed over the time in which at least one
    prompt was being computed.
    """

    def __init__(self) -> None:
        self.step_time_ms = 0.0
        self._requests: dict[Hashable, _Progress] = {}
        self._prefilling = 0
        self._busy_since = 0.0
        self._busy_tokens = 0
        self._tokens = 0.0
        self._seconds = 0.0

    @property
    def prefill_tokens_per_s(self) -> float:
        return self._tokens / self._seconds if self._seconds > 0 else 0.0

    def reached(
        self, key: Hashable, prompt_tokens: int, prefilled: bool, deltas: int, choices: int, now: float
    ) -> None:
        """How far a request is: prompt tokens computed for it, whether that is all, and its deltas so far.

        The first time says that its prompt is taken up.
        """
        request = self._requests.get(key)
        if request is None:
            if not self._prefilling:
                self._busy_since, self._busy_tokens = now, 0
            self._prefilling += 1
            # What is computed already took time that nobody saw.
            request = self._requests[key] = _Progress(prompt_tokens, False, 0, now)
        self._busy_tokens += prompt_tokens - request.prompt_tokens
        request.prompt_tokens = prompt_tokens
        if not request.prefilled:
            self._take_prefill(now)
            if prefilled:
                self._end_prefill(request, now)
            request.deltas, request.deltas_at = deltas, now
        elif deltas - request.deltas >= MIN_STEPS * choices:
            steps = (deltas - request.deltas) / choices
            step_ms = 1000 * (now - request.deltas_at) / steps
            average_ms = self.step_time_ms
            self.step_time_ms = average_ms * _KEEP + step_ms * (1 - _KEEP) if average_ms else step_ms
            request.deltas, request.deltas_at = deltas, now

    def left(self, key: Hashable, now: float) -> None:
        """A request is over; one that never began is ignored."""
        request = self._requests.pop(key, None)
        if request is not None and not request.prefilled:
            self._end_prefill(request, now)

    def _end_prefill(self, request: _Progress, now: float) -> None:
        request.prefilled = True
        self._take_prefill(now)
        self._prefilling -= 1

    def _take_prefill(self, now: float) -> None:
        """Takes in what was computed since the last time, once it is enough to mean something."""
        if self._busy_tokens >= MIN_PREFILL_TOKENS:
            self._tokens += self._busy_tokens
            self._seconds += now - self._busy_since
            self._busy_tokens, self._busy_since = 0, now
            if self._tokens > WINDOW_TOKENS:
                self._tokens /= 2
                self._seconds /= 2
