"""What the worker needs of an engine: the contract every engine keeps, and tests/contract checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from lbcore.generation import Event, GenerationRequest
from lbcore.types import Capacity
from worker.prefix_mirror import PrefixMirror

Emit = Callable[[Event], None]
"""Takes one event. Called on the event loop's thread only; never blocks, never raises."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says of itself once it is ready."""

    context_length: int
    """Longest prompt plus answer, in tokens."""
    capacity: Capacity
    """`max_queued_requests` is the worker's business and ignored here."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters that requests may name as their model."""
    continues: bool = False
    """Whether it goes on with an answer that another worker began (`GenerationRequest.continuation`)."""
    prefixes: PrefixMirror | None = None
    """What its prefix cache holds, kept up to date by the engine; None for one that does not know."""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What only the engine can know of its load; requests and tokens are counted by the worker from events.

    All fields may be 0 where the engine does not know.
    """

    kv_used_blocks: int = 0
    kv_cached_blocks: int = 0
    prefill_tokens_per_s: float = 0.0
    """Moving average of measured prefill speed."""
    step_time_ms: float = 0.0
    """Moving average of the measured time of a decoding step."""
    attention_ratio: float = 0.0
    """What each token of context costs a prompt token, as a part of its own cost, as measured."""
    prefilled_tokens: int | None = None
    """Of prompts whose first token is not there yet, the tokens that are computed already, beyond those cached."""
    prefilled_pairs: float = 0.0
    """Over these tokens, the tokens that each attended to."""
    faults: Mapping[str, int] = field(default_factory=dict)
    """How often the engine let a request down so far, by how it did."""
    unready: bool = False
    """Whether the engine cannot serve now but may again. What cannot serve for good says so in `failed`."""
    other_queued_requests: int = 0
    """Requests that wait in the engine without having come through this worker; so with the three below."""
    other_running_requests: int = 0
    other_queued_prompt_tokens: int = 0
    other_tokens_in_flight: int = 0


class Engine(Protocol):
    """Something that generates tokens, or vectors, or both.

    Events of one request, in order: at most one `Started` (as soon as the engine is known to compute the prompt: from
    then on the request counts as running), any number of `Delta`, then exactly one `Finished` or `Failed`. A request
    for embeddings has in place of deltas one `Embedding` for each of its inputs, in their order; an engine that makes
    none refuses it. This holds on every path: bad input, abort, engine failure, close. Nothing is emitted after the
    end, and nothing from inside `submit` or `abort` before they return.

    An engine that goes on with answers others began computes what there is of one behind the prompt, as one text. Its
    deltas tell only what is new; Started counts all that is computed, Finished what the whole answer would have had. It
    ends those that it cannot go on with in `CannotContinue`.
    """

    async def start(self) -> EngineInfo:
        """Loads the model and returns when requests can be served.

        Raises:
            ConfigError: the model is missing, is not a model, or the options make no sense; one line.
        """

    def submit(self, request: GenerationRequest, emit: Emit) -> None:
        """Takes a request; its answer comes through `emit`. Returns at once. Bad input ends in `Failed`, not here."""

    def abort(self, request_id: str) -> None:
        """Stops a request and frees what it held within 100 ms; it ends in `Failed(Cancelled)`. No such id: nothing."""

    def load(self) -> EngineLoad:
        """What the engine measures now; cheap, called several times a second."""

    async def failed(self) -> str:
        """Waits until the engine can serve no more, for good, and says why in one line. Most never return."""

    async def close(self) -> None:
        """Ends every request with `Failed` and releases everything. Safe to call twice."""
