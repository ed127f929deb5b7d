"""What is believed of a worker that has just come to a fleet that works, or to which nothing was given for long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lbcore.cost import BALANCE_WEIGHT, first_token_ms
from lbcore.pool import WorkerPool
from lbcore.pool_events import Dispatched, Registered, Reported
from lbcore.speeds import IDLE_S
from lbcore.types import (
    Endpoint,
    Epoch,
    LoadReport,
    Role,
    RouteFacts,
    Ticket,
    TicketPhase,
    TicketUpdate,
    WorkerId,
)
from tests.fleet import MODEL, spec

IDLE = LoadReport()
W0, W1, W2 = WorkerId("w0"), WorkerId("w1"), WorkerId("w2")


def fleet(*names: str) -> WorkerPool:
    pool = WorkerPool(lease_ttl_s=1e9, ticket_ttl_s=1e9)
    for name in names:
        pool.handle(Registered(spec(name), 0), 0.0)
    return pool


def endpoint(pool: WorkerPool, name: WorkerId) -> Endpoint:
    return next(one for one in pool.endpoints() if one.worker_id == name)


def give(pool: WorkerPool, ticket: int, worker: WorkerId, now: float) -> None:
    facts = RouteFacts("r", MODEL, 40_000)
    pool.handle(Dispatched(Ticket(ticket), worker, pool.pick_request(facts), facts), now)


def test_a_newcomer_need_not_catch_up_with_what_the_others_did() -> None:
    pool = fleet("w0", "w1")
    for ticket in range(1, 5):
        give(pool, ticket, W0, 1.0)
    pool.handle(Registered(spec("w2"), 0), 1.0)
    balances = [endpoint(pool, name).fixed_ms for name in (W1, W2)]
    given_ms = 4 * endpoint(pool, W0).token_ms * 10_000
    assert balances[1] - balances[0] == pytest.approx(BALANCE_WEIGHT * given_ms / 2, rel=0.2)


def test_a_worker_believed_slow_is_tried_again_when_it_got_nothing_for_long() -> None:
    pool = fleet("w0", "w1", "w2")
    for name, speed in ((W0, 100.0), (W1, 10_000.0), (W2, 10_000.0)):
        pool.handle(Reported(name, Epoch(1), LoadReport(1, prefill_tokens_per_s=speed)), 0.0)
    give(pool, 1, W0, 10.0)

    def believed(sequence: int, now: float, load: LoadReport = IDLE) -> float:
        report = replace(load, sequence=sequence, prefill_tokens_per_s=100.0)
        pool.handle(Reported(W0, Epoch(1), report), now)
        return endpoint(pool, W0).token_ms

    at_work = LoadReport(running_requests=1)
    gone = LoadReport(ticket_updates=(TicketUpdate(Ticket(1), TicketPhase.FINISHED),))
    # While it works it is what it was, however long that takes.
    assert believed(2, 10.0 + 10 * IDLE_S, at_work) == pytest.approx(10.0)
    begin = 10.0 + 20 * IDLE_S
    assert believed(3, begin, at_work) == pytest.approx(10.0)
    assert believed(4, begin + IDLE_S, gone) == pytest.approx(10.0)
    assert believed(5, begin + 20 * IDLE_S) == pytest.approx(0.1)
    give(pool, 2, W0, 2000.0)
    assert believed(6, 2000.0) == pytest.approx(10.0)


def test_what_is_only_to_be_decoded_is_no_prefill() -> None:
    pool = fleet("w0")
    facts = RouteFacts("r", MODEL, 400_000, phase=Role.DECODE)
    request = pool.pick_request(facts)
    assert first_token_ms(request, endpoint(pool, W0), 0.0) == 0.0
    pool.handle(Dispatched(Ticket(1), W0, request, facts), 0.0)
    assert endpoint(pool, W0).wait_ms(0.0) == 0.0
    assert endpoint(pool, W0).credit_requests == 1


def test_what_a_cache_alone_saved_is_remembered_and_fades() -> None:
    pool = fleet("w0", "w1")
    facts = RouteFacts("r", MODEL, 256 * 32, tuple(range(1, 33)))
    seen = [endpoint(pool, W0).interference]
    for ticket, (worker, now) in enumerate(((W0, 0.0), (W0, 0.0), (W1, 0.0), (W0, 0.0), (W1, 1e6)), start=1):
        pool.handle(Dispatched(Ticket(ticket), worker, pool.pick_request(facts), facts), now)
        seen.append(endpoint(pool, W0).interference)
    cold, first, second, shared, third, _ = seen
    assert first - cold < second - first
    assert shared == second
    # The other holds it too by now.
    assert third - shared < second - first
    pool.handle(Dispatched(Ticket(9), W0, pool.pick_request(facts), facts), 1e6)
    assert endpoint(pool, W0).interference < second
