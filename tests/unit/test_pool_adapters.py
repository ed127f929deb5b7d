"""Adapters in the pool: where one is loaded, what loading it costs, and how its time is learned."""

from __future__ import annotations

import pytest

from lbcore.adapters import PRIOR_LOAD_MS, Loading
from lbcore.cost import delays_ms, own_ms
from lbcore.pool import WorkerPool
from lbcore.pool_events import Dispatched, Registered, Reported
from lbcore.types import (
    Capacity,
    Epoch,
    LoadReport,
    PickRequest,
    RouteFacts,
    Ticket,
    TicketPhase,
    TicketUpdate,
    WorkerId,
)
from tests.fleet import MODEL, snapshot, spec
from tests.fleet import endpoint as an_endpoint

W0, W1 = WorkerId("w0"), WorkerId("w1")
ADAPTERS = ("a", "b", "c")


def pool(slots: int = 2, workers: int = 2) -> WorkerPool:
    made = WorkerPool(lease_ttl_s=1e9, ticket_ttl_s=1e9)
    for number in range(workers):
        capacity = Capacity(max_sequences=64, adapter_slots=slots)
        made.handle(Registered(spec(f"w{number}", adapters=ADAPTERS, capacity=capacity), number), 0.0)
    return made


def dispatch(pool: WorkerPool, ticket: int, worker: WorkerId, model: str, prompt_bytes: int = 400) -> None:
    facts = RouteFacts("r", model, prompt_bytes)
    pool.handle(Dispatched(Ticket(ticket), worker, pool.pick_request(facts), facts), 0.0)


def loading(pool: WorkerPool, model: str) -> dict[WorkerId, Loading]:
    return dict(pool.pick_request(RouteFacts("r", model, 400)).loading)


def test_who_served_an_adapter_need_not_load_it() -> None:
    fleet = pool()
    dispatch(fleet, 1, W1, "a")
    assert loading(fleet, "a") == {W0: Loading(PRIOR_LOAD_MS, 0.0)}


def test_a_model_itself_is_never_loaded() -> None:
    fleet = pool()
    dispatch(fleet, 1, W0, MODEL)
    assert loading(fleet, MODEL) == {}
    assert len(loading(fleet, "a")) == 2


def test_workers_that_name_no_slots_load_nothing() -> None:
    assert loading(pool(slots=0), "a") == {}


def test_the_work_of_a_dispatch_has_the_loading_in_it() -> None:
    fleet = pool()
    dispatch(fleet, 1, W0, "a")
    dispatch(fleet, 2, W1, MODEL)
    busy, other = (one.wait_ms(0.0) for one in fleet.endpoints())
    assert busy - other == pytest.approx(PRIOR_LOAD_MS)


def test_what_loading_takes_is_learned_from_first_tokens() -> None:
    fleet = pool(workers=1)
    for number in range(50):
        ticket, name = number + 1, ADAPTERS[number % 3]
        expected_ms = fleet.endpoints()[0].wait_ms(0.0) + 10.0
        dispatch(fleet, ticket, W0, name)
        updates = tuple(
            TicketUpdate(Ticket(ticket), phase, 100, 0, 5, ttft_ms=expected_ms + 700.0, duration_ms=2000.0)
            for phase in (TicketPhase.ACCEPTED, TicketPhase.FINISHED)
        )
        fleet.handle(Reported(W0, Epoch(1), LoadReport(number + 1, ticket_updates=updates)), 0.0)
    name = ADAPTERS[50 % 3]
    assert loading(fleet, name)[W0].own_ms == pytest.approx(700, rel=0.06)


def test_loading_counts_like_prefill_and_displacing_counts_once() -> None:
    endpoints = [an_endpoint("w0", load=LoadReport(running_requests=10)), an_endpoint("w1")]
    plain = PickRequest(MODEL, 1000)
    loads = plain._replace(loading={W0: Loading(50.0, 30.0)})
    before, after = (delays_ms(request, endpoints, snapshot(*endpoints)) for request in (plain, loads))
    prompt_ms = own_ms(plain, endpoints[0])
    pauses = endpoints[0].pause_per_ms * ((prompt_ms + 50) ** 2 - prompt_ms**2)
    assert after[0] - before[0] == pytest.approx(50 * endpoints[0].interference + pauses + 30)
    assert after[1] == before[1]
    assert own_ms(loads, endpoints[0]) - own_ms(plain, endpoints[0]) == pytest.approx(50)
