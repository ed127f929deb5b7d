"""Requests that say how fast they are to be served keep from workers that would not do it."""

from __future__ import annotations

from random import Random

import pytest

from lbcore.policies.assignments import Assignments
from lbcore.policies.registry import build_policy
from lbcore.pool import WorkerPool
from lbcore.pool_events import Registered, Reported
from lbcore.queue.room import Waiting
from lbcore.router import Router
from lbcore.types import Epoch, LoadReport, Route, RouteFacts, WorkerId
from tests.fleet import MODEL, spec

CROWDED = LoadReport(1, running_requests=40, step_time_ms=90.0, prefill_tokens_per_s=10_000)
QUEUED = LoadReport(1, queued_prompt_tokens=20_000, step_time_ms=20.0, prefill_tokens_per_s=10_000)
FREE = LoadReport(1, running_requests=1, step_time_ms=20.0, prefill_tokens_per_s=1_000)


def fleet(policy: str, *loads: LoadReport) -> Router[str]:
    pool = WorkerPool(lease_ttl_s=1e9, ticket_ttl_s=1e9)
    for number, load in enumerate(loads):
        pool.handle(Registered(spec(f"w{number}"), number), 0.0)
        pool.handle(Reported(WorkerId(f"w{number}"), Epoch(1), load), 0.0)
    return Router(pool, Assignments.of(build_policy(policy)), Random(1))


def picked(router: Router[str], facts: RouteFacts) -> str:
    route = router.ask("asker", facts, 0.0)
    assert isinstance(route, Route)
    return route.target.worker_id


@pytest.mark.parametrize("policy", ["least_requests", "process_tokens", "random"])
def test_a_queue_that_is_too_long_is_avoided_by_every_policy(policy: str) -> None:
    facts = RouteFacts("r", MODEL, 400, ttft_slo_ms=1000)
    assert {picked(fleet(policy, QUEUED, FREE), facts) for _ in range(20)} == {"w1"}


def test_steps_that_are_too_long_are_avoided() -> None:
    plain = RouteFacts("r", MODEL, 4000)
    assert picked(fleet("process_tokens", CROWDED, QUEUED), plain) == "w0"
    assert picked(fleet("process_tokens", CROWDED, QUEUED), plain._replace(tpot_slo_ms=50)) == "w1"


def test_who_has_waited_longer_than_its_objective_is_served_as_if_it_had_none() -> None:
    # Both will be free in 2 s: when its time to first token is over already.
    router = fleet("cost", QUEUED, QUEUED)
    assert isinstance(router.ask("asker", RouteFacts("r", MODEL, 4000, ttft_slo_ms=1000), 0.0), Waiting)
    assert router.serve(1.5) == []
    [(_, route)] = router.serve(1.99)
    assert isinstance(route, Route)


def test_an_objective_that_nobody_meets_refuses_nobody() -> None:
    assert picked(fleet("least_requests", FREE), RouteFacts("r", MODEL, 400_000, ttft_slo_ms=1, tpot_slo_ms=1)) == "w0"
