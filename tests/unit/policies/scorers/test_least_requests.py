"""The scorer `least_requests`."""

from __future__ import annotations

import pytest

from lbcore.policies.scorers.least_requests import LeastRequests
from lbcore.types import LoadReport, PickRequest
from tests.fleet import MODEL, endpoint


def test_reported_requests_and_credit_count_alike() -> None:
    idle = endpoint("a")
    reported = endpoint("b", load=LoadReport(queued_requests=1, running_requests=2))
    sent = endpoint("c", credit_requests=3)
    assert LeastRequests().score(PickRequest(MODEL), [idle, reported, sent]) == [1.0, 0.25, pytest.approx(0.25)]
