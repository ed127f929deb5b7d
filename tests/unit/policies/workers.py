"""Workers for tests of policies, by what they have to do; and all kinds of them, made by hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, nan

from hypothesis import strategies as st

from lbcore.policies.base import Cost
from lbcore.types import Capacity, Endpoint, EndpointState, LoadReport, PickRequest, WorkerId
from tests.fleet import MODEL, snapshot, spec

LARGE = Capacity(max_sequences=64, max_queued_requests=100_000, kv_blocks=1000, kv_block_size=16)


def worker(
    name: str = "w0",
    *,
    running: int = 0,
    queued: int = 0,
    sent: int = 0,
    queued_tokens: int = 0,
    sent_tokens: int = 0,
    tokens: int = 0,
    kv_used_blocks: int = 0,
    step_ms: float = 0.0,
    token_ms: float = 0.1,
    wait_ms: float = 0.0,
    speed: float = 0.0,
    latency_ms: float = 0.0,
    latency_requests: float = 0.0,
    capacity: Capacity = LARGE,
) -> Endpoint:
    """A ready one. What was `sent` no report has acknowledged yet."""
    load = LoadReport(
        running_requests=running,
        queued_requests=queued,
        queued_prompt_tokens=queued_tokens,
        tokens_in_flight=tokens,
        kv_used_blocks=kv_used_blocks,
        step_time_ms=step_ms,
    )
    return Endpoint(
        spec(name, capacity=capacity),
        EndpointState.READY,
        load,
        0.0,
        sent,
        sent_tokens,
        token_ms=token_ms,
        free_at=wait_ms / 1000,
        speed=speed,
        latency_ms=latency_ms,
        latency_requests=latency_requests,
    )


def prompt(tokens: int = 1000, *, session_id: str = "", prefix_key: int = 0, **hits: float) -> PickRequest:
    """A request of so many prompt tokens, of which workers hold so many."""
    hit_tokens = {WorkerId(name): held for name, held in hits.items()}
    return PickRequest(MODEL, tokens, hit_tokens, session_id=session_id, prefix_key=prefix_key)


def costs(part: Cost, request: PickRequest, *workers: Endpoint) -> list[float]:
    """What the request costs at each of them, at the moment 0."""
    return list(part.cost(request, workers, snapshot(*workers)))


def by_cost(part: Cost, request: PickRequest, *workers: Endpoint) -> list[str]:
    """Their names, cheapest first."""
    found = zip(costs(part, request, *workers), (str(item.worker_id) for item in workers), strict=True)
    return [name for _, name in sorted(found)]


counts = st.one_of(st.just(0), st.integers(0, 300))
token_counts = st.one_of(st.just(0), st.integers(0, 1_000_000))
positive = st.one_of(st.just(0.0), st.floats(1e-3, 1e6))
speeds = st.one_of(st.just(0.0), st.floats(), st.sampled_from([nan, inf, -inf, -1.0, 5e-324, 1e308]))
capacities = st.builds(
    Capacity, max_sequences=counts, max_queued_requests=counts, kv_blocks=counts, kv_block_size=st.sampled_from([0, 16])
)

fleets = st.lists(
    st.builds(
        worker,
        st.sampled_from([f"w{number}" for number in range(20)]),
        running=counts,
        queued=counts,
        sent=counts,
        queued_tokens=token_counts,
        sent_tokens=token_counts,
        tokens=token_counts,
        kv_used_blocks=counts,
        step_ms=positive,
        token_ms=st.floats(1e-3, 100),
        wait_ms=positive,
        speed=speeds,
        latency_ms=positive,
        latency_requests=positive,
        capacity=capacities,
    ),
    max_size=12,
    unique_by=lambda item: item.worker_id,
)


@st.composite
def prompts(draw: st.DrawFn, workers: Sequence[Endpoint]) -> PickRequest:
    """A request of which any of the workers may hold any part."""
    tokens = draw(token_counts)
    names = [item.worker_id for item in workers]
    hits = draw(st.dictionaries(st.sampled_from(names), st.floats(0, tokens))) if names else {}
    session_id = draw(st.sampled_from(["", "a", "a longer name of a session"]))
    return PickRequest(MODEL, tokens, hits, session_id=session_id, prefix_key=draw(st.integers(0, 2**64 - 1)))


@st.composite
def scenes(draw: st.DrawFn) -> tuple[PickRequest, list[Endpoint]]:
    """A request and the workers that it meets."""
    workers = draw(fleets)
    return draw(prompts(workers)), workers
