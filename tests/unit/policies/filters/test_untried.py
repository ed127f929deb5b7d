"""The filter `untried`."""

from __future__ import annotations

from lbcore.policies.filters.untried import Untried
from lbcore.types import PickRequest, WorkerId
from tests.fleet import MODEL, endpoint

A, B = endpoint("a"), endpoint("b")


def test_a_worker_that_failed_the_request_is_left_out() -> None:
    assert Untried().keep(PickRequest(MODEL, tried=frozenset({WorkerId("a")})), [A, B], 0.0) == [B]


def test_the_first_attempt_may_go_anywhere() -> None:
    assert Untried().keep(PickRequest(MODEL), [A, B], 0.0) == [A, B]
