"""When a request is bound to a worker, and when it is better kept back. Arithmetic, no memory.

An engine serves in order of arrival and cannot be told otherwise: what is sent there waits behind what is there. So a
request is sent when the worker is nearly done with what it has, and no sooner. Two things make "nearly" more than
nothing: steps last tens of milliseconds, and an engine without work between two of them loses a step; and short prompts
that are computed in one step share its fixed cost.
"""

from __future__ import annotations

from math import inf

from lbcore.cost import decoding_step_ms
from lbcore.types import Endpoint

HOLD_STEPS = 1.0
"""A worker has room for any request while it has less prefill in front than so many of its decoding steps take."""

HOLD_MS = 10.0
"""The same in milliseconds, where steps are short: what it takes at a busy moment until a request that is sent is
there, or until the scheduler hears that one is done. A worker with less in front would have nothing to do meanwhile."""

BATCH_STEPS = 6.0
"""And for a short one while both together take no more than so many: a fixed cost of one step in seven is lost. A long
prompt behind short ones would be computed in their step, and their first tokens come at its end."""

PATIENCE_SHARE = 0.01
"""A long prompt waits this part of its own prefill for shorter ones that come in the same moment: a millisecond for a
tenth of a second of prefill, below which nobody waits."""

MAX_PATIENCE_MS = 50.0
"""No prompt waits longer than this for others to come."""

_SHORT_MS = 100.0


def patience_s(own_ms: float) -> float:
    """How long a request with so much prefill lets others come first."""
    return min(PATIENCE_SHARE * own_ms, MAX_PATIENCE_MS) / 1000 if own_ms > _SHORT_MS else 0.0


def has_room(endpoint: Endpoint, own_ms: float, now: float, held_ms: float = 0.0) -> bool:
    """Whether a request with so much prefill should be sent there, behind others that are held for it."""
    return now >= free_for(endpoint, own_ms) + held_ms / 1000


def free_for(endpoint: Endpoint, own_ms: float) -> float:
    """When the worker will have room for a request with so much prefill. Always, as long as nobody knows how fast it
    is: held back on an assumption it would be given no more than that, and might never show that it can do more."""
    if not endpoint.is_measured:
        return -inf
    step_ms = decoding_step_ms(endpoint.load)
    return endpoint.free_at - max(HOLD_MS, HOLD_STEPS * step_ms, BATCH_STEPS * step_ms - own_ms) / 1000
