"""Workers, endpoints and snapshots for tests of routing, made by hand or by hypothesis."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from lbcore.adapters import Loading
from lbcore.cost import DEFAULT_ATTENTION_RATIO, DEFAULT_PREFILL_MS_PER_TOKEN, burden, queue_ms
from lbcore.pool_events import Reported
from lbcore.types import (
    Capacity,
    Endpoint,
    EndpointState,
    Epoch,
    LoadReport,
    PickRequest,
    Role,
    ServedModel,
    Snapshot,
    WorkerId,
    WorkerSpec,
)

MODEL = "model"
ROOMY = Capacity(max_sequences=64, max_queued_requests=1000)


def spec(
    name: str = "w0",
    *,
    epoch: int = 1,
    capacity: Capacity = ROOMY,
    role: Role = Role.MIXED,
    models: Sequence[str] = (MODEL,),
    adapters: Sequence[str] = (),
    reports_prefixes: bool = False,
) -> WorkerSpec:
    served = tuple(ServedModel(model, tuple(adapters)) for model in models)
    return WorkerSpec(
        WorkerId(name),
        Epoch(epoch),
        f"{name}:8000",
        served,
        role,
        capacity=capacity,
        reports_prefixes=reports_prefixes,
    )


def endpoint(
    name: str = "w0",
    *,
    load: LoadReport | None = None,
    state: EndpointState = EndpointState.READY,
    capacity: Capacity = ROOMY,
    role: Role = Role.MIXED,
    credit_requests: int = 0,
    credit_tokens: int = 0,
    prefill_ms_per_token: float = 0.1,
    recent_ms: float = 0.0,
    saved_ms: float = 0.0,
) -> Endpoint:
    """An endpoint as a pool would describe it whose worker has just reported, at the time 0."""
    report = load or LoadReport()
    queued_ms = queue_ms(report, prefill_ms_per_token, DEFAULT_ATTENTION_RATIO)
    terms = burden(report, credit_requests, credit_tokens, capacity, recent_ms, saved_ms)
    return Endpoint(
        spec(name, capacity=capacity, role=role),
        state,
        report,
        0.0,
        credit_requests,
        credit_tokens,
        prefill_ms_per_token,
        DEFAULT_ATTENTION_RATIO,
        (queued_ms + credit_tokens * prefill_ms_per_token) / 1000,
        terms.interference,
        terms.pause_per_ms,
        terms.fixed_ms,
        terms.kv_room_tokens,
        terms.kv_ms_per_token,
    )


def measured(name: str, sequence: int = 1) -> Reported:
    """The first report of a worker that has nothing to do and has measured the speed that others would assume."""
    speed = 1000 / DEFAULT_PREFILL_MS_PER_TOKEN
    return Reported(WorkerId(name), Epoch(1), LoadReport(sequence, prefill_tokens_per_s=speed))


def snapshot(*endpoints: Endpoint, pick_count: int = 0) -> Snapshot:
    return Snapshot(0.0, pick_count, endpoints)


counts = st.integers(0, 300)

loads = st.builds(
    LoadReport,
    sequence=st.integers(1, 1000),
    queued_requests=counts,
    running_requests=counts,
    queued_prompt_tokens=st.integers(0, 1_000_000),
    tokens_in_flight=st.integers(0, 1_000_000),
    step_time_ms=st.floats(0, 1000),
)

capacities = st.builds(Capacity, max_sequences=counts, max_queued_requests=counts)

endpoint_lists = st.lists(
    st.builds(
        endpoint,
        st.sampled_from([f"w{number}" for number in range(20)]),
        load=loads,
        state=st.sampled_from(EndpointState),
        capacity=capacities,
        role=st.sampled_from(Role),
        credit_requests=counts,
        credit_tokens=st.integers(0, 1_000_000),
        prefill_ms_per_token=st.floats(1e-3, 100),
    ),
    max_size=12,
    unique_by=lambda item: item.worker_id,
).map(lambda items: sorted(items, key=lambda item: item.worker_id))


@st.composite
def pick_requests(draw: st.DrawFn, endpoints: Sequence[Endpoint]) -> PickRequest:
    """A request that may have hits at, and may have tried, any of these endpoints."""
    names = [item.worker_id for item in endpoints]
    tokens = draw(st.integers(0, 200_000))
    hits = draw(st.dictionaries(st.sampled_from(names), st.floats(0, tokens))) if names else {}
    tried = draw(st.frozensets(st.sampled_from(names), max_size=3)) if names else frozenset()
    ttft_slo_ms, tpot_slo_ms = (draw(st.sampled_from([0.0, 50.0, 2000.0])) for _ in range(2))
    loading = {}
    if names and draw(st.booleans()):
        loads = st.builds(Loading, st.floats(0, 1e4), st.floats(0, 1e4))
        loading = draw(st.dictionaries(st.sampled_from(names), loads, max_size=3))
    return PickRequest(
        MODEL,
        tokens,
        hits,
        tried=tried,
        held_ms={},
        phase=draw(st.sampled_from(Role)),
        loading=loading,
        ttft_slo_ms=ttft_slo_ms,
        tpot_slo_ms=tpot_slo_ms,
    )


@st.composite
def scenes(draw: st.DrawFn) -> tuple[PickRequest, list[Endpoint]]:
    """A request and the endpoints, ordered by worker id, that it meets."""
    endpoints = draw(endpoint_lists)
    return draw(pick_requests(endpoints)), endpoints
