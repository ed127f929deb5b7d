"""One sequence of the simulated batch: what was asked of it and how far it is. `SimBatch` alone changes it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class SimSequence(Generic[K]):
    """Waiting or in prefill it has `computed` < `target`; while it decodes they are equal."""

    __slots__ = (
        "anonymous",
        "computed",
        "end_step",
        "growth_phase",
        "hashes",
        "joined_step",
        "key",
        "output_tokens",
        "prompt_tokens",
        "sampled",
        "shared",
        "started",
        "target",
    )

    def __init__(self, key: K, prompt_tokens: int, output_tokens: int, hashes: Sequence[int]) -> None:
        self.key = key
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.hashes = hashes
        self.started = False
        self.target = prompt_tokens
        """Tokens to compute before the next one can be sampled."""
        self.computed = 0
        self.sampled = 0
        """Tokens sampled up to `joined_step`; since then one per step."""
        self.joined_step = -1
        """The step that computed the last token of `target` and sampled the next; -1 when not decoding."""
        self.growth_phase = 0
        self.end_step = 0
        self.shared = 0
        """Blocks held by hash: the first ones."""
        self.anonymous = 0
