"""The default cost taken apart: its terms are the whole of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore.adapters import Loading
from lbcore.cost import BALANCE_WEIGHT, QUEUE_WEIGHT, delays_ms
from lbcore.cost_terms import terms_ms
from lbcore.types import Capacity, Endpoint, LoadReport, PickRequest, Role, Snapshot, WorkerId
from tests.fleet import MODEL, ROOMY, counts, endpoint

KV = Capacity(max_sequences=4, max_queued_requests=100, kv_blocks=100, kv_block_size=16)

fleets = st.lists(
    st.builds(
        endpoint,
        st.sampled_from([f"w{number}" for number in range(9)]),
        load=st.builds(
            LoadReport,
            queued_requests=counts,
            running_requests=counts,
            queued_prompt_tokens=st.integers(0, 1_000_000),
            queued_prompt_pairs=st.floats(0, 1e9),
            tokens_in_flight=st.integers(0, 1_000_000),
            kv_used_blocks=st.integers(0, 2000),
            step_time_ms=st.one_of(st.just(0.0), st.floats(1e-3, 1000)),
        ),
        capacity=st.builds(
            Capacity, counts, counts, kv_blocks=st.sampled_from([0, 1000]), kv_block_size=st.sampled_from([0, 16])
        ),
        credit_requests=counts,
        credit_tokens=st.integers(0, 1_000_000),
        prefill_ms_per_token=st.floats(1e-3, 100),
        recent_ms=st.floats(0, 1e6),
    ),
    max_size=9,
    unique_by=lambda item: item.worker_id,
)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[PickRequest, Snapshot]:
    fleet = draw(fleets)
    tokens = draw(st.integers(0, 200_000))
    names = st.sampled_from([item.worker_id for item in fleet]) if fleet else st.nothing()
    request = PickRequest(
        MODEL,
        tokens,
        draw(st.dictionaries(names, st.floats(0, tokens))),
        held_ms=draw(st.dictionaries(names, st.floats(0, 1e6))),
        phase=draw(st.sampled_from(Role)),
        loading=draw(st.dictionaries(names, st.builds(Loading, st.floats(0, 1e6), st.floats(0, 1e6)))),
    )
    now, waiting = draw(st.floats(0, 1e6)), draw(st.integers(0, 10_000))
    return request, Snapshot(now, 0, tuple(fleet), waiting_requests=waiting)


@settings(derandomize=True, max_examples=500, deadline=None, database=None)
@given(scene=scenes())
def test_the_terms_of_any_request_at_any_worker_add_up_to_its_cost(scene: tuple[PickRequest, Snapshot]) -> None:
    request, snapshot = scene
    sums = [sum(terms.values()) for terms in terms_ms(request, snapshot.endpoints, snapshot)]
    assert sums == pytest.approx(delays_ms(request, snapshot.endpoints, snapshot), rel=1e-6, abs=1e-6)


def terms_of(one: Endpoint, request: PickRequest, *, now: float = 0.0, waiting: int = 0) -> dict[str, float]:
    """Those that are not 0."""
    [terms] = terms_ms(request, [one], Snapshot(now, 0, (one,), waiting_requests=waiting))
    return {name: value for name, value in terms.items() if value}


def test_a_worker_that_has_nothing_costs_the_request_s_own_prefill() -> None:
    assert [*terms_of(endpoint(), PickRequest(MODEL, 1000))] == ["own"]


def test_work_given_lately_is_the_balance() -> None:
    assert terms_of(endpoint(recent_ms=500.0), PickRequest(MODEL)) == pytest.approx({"balance": 500 * BALANCE_WEIGHT})


def test_a_prefill_is_counted_again_for_those_behind_it() -> None:
    terms = terms_of(endpoint(), PickRequest(MODEL, 1000), waiting=1)
    assert terms["behind"] == pytest.approx(QUEUE_WEIGHT * terms["own"])


def test_what_is_in_front_has_a_term_here_and_one_in_the_scheduler() -> None:
    queued = endpoint(load=LoadReport(queued_prompt_tokens=1000))
    assert terms_of(queued, PickRequest(MODEL, held_ms={WorkerId("w0"): 7.0}), now=0.04) == pytest.approx(
        {"wait": 60.0, "held": 7.0}
    )


def test_a_full_worker_has_terms_for_its_slots_and_its_cache() -> None:
    load = LoadReport(running_requests=4, tokens_in_flight=1600, kv_used_blocks=100, step_time_ms=10)
    terms = terms_of(endpoint(load=load, capacity=KV), PickRequest(MODEL, 100))
    assert {"slots", "kv", "crowding", "decoding", "step", "interference", "own"} == set(terms)
    roomy = terms_of(endpoint(load=load, capacity=ROOMY), PickRequest(MODEL, 100))
    assert set(terms) - set(roomy) == {"slots", "kv"}
