"""The filter `has_room`."""

from __future__ import annotations

import pytest

from lbcore.policies.filters.has_room import HasRoom
from lbcore.types import Capacity, LoadReport, PickRequest
from tests.fleet import MODEL, endpoint


@pytest.mark.parametrize(
    ("running", "queued", "credit", "kept"), [(2, 2, 0, True), (2, 2, 1, False), (2, 3, 0, False), (0, 0, 4, True)]
)
def test_places_to_run_and_to_wait_count_and_so_does_credit(running: int, queued: int, credit: int, kept: bool) -> None:
    load = LoadReport(running_requests=running, queued_requests=queued)
    worker = endpoint(load=load, credit_requests=credit, capacity=Capacity(max_sequences=2, max_queued_requests=3))
    assert HasRoom().keep(PickRequest(MODEL), [worker], 0.0) == ([worker] if kept else [])
