"""The filter `role`."""

from __future__ import annotations

import pytest

from lbcore.policies.filters.role import TakesPhase
from lbcore.types import PickRequest, Role
from tests.fleet import MODEL, endpoint

WORKERS = [endpoint(role.value, role=role) for role in (Role.MIXED, Role.PREFILL, Role.DECODE)]


@pytest.mark.parametrize(
    ("phase", "takers"),
    [
        (Role.MIXED, ["mixed"]),
        (Role.PREFILL, ["mixed", "prefill"]),
        (Role.DECODE, ["mixed", "decode"]),
    ],
)
def test_whole_requests_go_to_who_does_both_and_a_phase_to_those_of_it_too(phase: Role, takers: list[str]) -> None:
    kept = TakesPhase().keep(PickRequest(MODEL, phase=phase), WORKERS, 0.0)
    assert [worker.worker_id for worker in kept] == takers
