"""The filter `role`."""

from __future__ import annotations

from lbcore.policies.filters.role import TakesWholeRequests
from lbcore.types import PickRequest, Role
from tests.fleet import MODEL, endpoint


def test_a_worker_of_one_phase_cannot_serve_a_whole_request() -> None:
    mixed, prefill, decode = (endpoint(role.value, role=role) for role in (Role.MIXED, Role.PREFILL, Role.DECODE))
    assert TakesWholeRequests().keep(PickRequest(MODEL), [mixed, prefill, decode]) == [mixed]
