"""Workers that would miss what a request asks for are avoided, as long as there are others."""

from __future__ import annotations

from lbcore.cost import STEP_SLOPE
from lbcore.policies.filters.objective import MeetsObjective
from lbcore.types import Agreement, Endpoint, LoadReport, PickRequest, WorkerId
from tests.fleet import MODEL, endpoint

IDLE = endpoint("idle")
QUEUED = endpoint("queued", load=LoadReport(queued_prompt_tokens=20_000))
SLOW = endpoint("slow", load=LoadReport(running_requests=1, step_time_ms=90.0))


def kept(request: PickRequest, *candidates: Endpoint, now: float = 0.0) -> list[str]:
    return [one.worker_id for one in MeetsObjective().keep(request, candidates, now)]


def test_without_an_objective_nobody_is_looked_at() -> None:
    assert MeetsObjective().keeps_all(PickRequest(MODEL), Agreement())
    assert kept(PickRequest(MODEL), IDLE, QUEUED, SLOW) == ["idle", "queued", "slow"]


def test_a_worker_whose_queue_is_too_long_is_avoided() -> None:
    assert kept(PickRequest(MODEL, 100, ttft_slo_ms=1000), IDLE, QUEUED, SLOW) == ["idle", "slow"]


def test_a_queue_that_is_worked_off_by_then_is_none() -> None:
    assert kept(PickRequest(MODEL, 100, ttft_slo_ms=1000), QUEUED, now=1.5) == ["queued"]


def test_the_own_prefill_counts_and_a_hit_spares_it() -> None:
    request = PickRequest(MODEL, 20_000, {WorkerId("slow"): 19_000.0}, ttft_slo_ms=1000)
    assert kept(request, IDLE, SLOW) == ["slow"]


def test_what_waits_in_the_scheduler_for_a_worker_counts() -> None:
    request = PickRequest(MODEL, 100, held_ms={WorkerId("idle"): 5000.0}, ttft_slo_ms=1000)
    assert kept(request, IDLE, SLOW) == ["slow"]


def test_a_worker_whose_steps_are_too_long_is_avoided() -> None:
    assert kept(PickRequest(MODEL, 100, tpot_slo_ms=50), IDLE, QUEUED, SLOW) == ["idle", "queued"]


def test_one_more_request_makes_steps_longer() -> None:
    just = 90.0 * (1 + STEP_SLOPE)
    assert kept(PickRequest(MODEL, tpot_slo_ms=just + 0.1), IDLE, SLOW) == ["idle", "slow"]
    assert kept(PickRequest(MODEL, tpot_slo_ms=just - 0.1), IDLE, SLOW) == ["idle"]


def test_where_nobody_meets_both_the_first_token_decides() -> None:
    assert kept(PickRequest(MODEL, 100, ttft_slo_ms=1000, tpot_slo_ms=50), QUEUED, SLOW) == ["slow"]


def test_where_nobody_meets_any_nobody_is_refused() -> None:
    assert kept(PickRequest(MODEL, 100, ttft_slo_ms=1), QUEUED, SLOW) == ["queued", "slow"]
