"""The filter `ready`."""

from __future__ import annotations

from lbcore.policies.filters.ready import Ready
from lbcore.types import EndpointState, PickRequest
from tests.fleet import MODEL, endpoint

REQUEST = PickRequest(MODEL)
READY = endpoint("a")
SILENT = endpoint("b", state=EndpointState.SILENT)
DRAINING = endpoint("c", state=EndpointState.DRAINING)


def test_silent_and_draining_workers_are_left_out() -> None:
    assert Ready().keep(REQUEST, [READY, SILENT, DRAINING], 0.0) == [READY]


def test_silent_ones_are_better_than_nobody() -> None:
    assert Ready().keep(REQUEST, [SILENT, DRAINING], 0.0) == [SILENT]


def test_nobody_is_better_than_a_draining_one_or_one_whose_engine_is_away() -> None:
    unready = endpoint("d", state=EndpointState.UNREADY)
    assert Ready().keep(REQUEST, [DRAINING, unready], 0.0) == []
