"""One sequence of the simulated batch: what was asked of it and how far it is. `SimBatch` alone changes it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True, eq=False)
class SimSequence(Generic[K]):
    """Waiting or in prefill it has `computed` < `target`; while it decodes they are equal."""

    key: K
    prompt_tokens: int
    output_tokens: int
    hashes: Sequence[int]
    target: int
    """Tokens to compute before the next one can be sampled."""
    computed: int = 0
    sampled: int = 0
    """Tokens sampled up to `joined_step`; since then one per step."""
    started: bool = False
    joined_step: int = -1
    """The step that computed the last token of `target` and sampled the next; -1 when not decoding."""
    growth_phase: int = 0
    """The steps, modulo block size, in which it needs a new block."""
    end_step: int = 0
    """The step that samples its last token, once `target` is computed."""
    shared: int = 0
    """Blocks held by hash: the first ones."""
    anonymous: int = 0
    """Blocks held beside them."""
