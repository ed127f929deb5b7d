"""What happened to new work around an incident."""

from __future__ import annotations

import pytest

from bench.policies.incidents import Span, in_span, share, table, ttft_ms
from lbcore.simulator.replay import Incident
from lbcore.simulator.worker import Flight
from lbcore.simulator.workload import Call


def flight(asked_at: float, worker: int, tokens: int = 100, *, cached: int = 0, waited: float = 0.5) -> Flight:
    return Flight(
        0,
        Call(tokens, 1),
        asked_at,
        first_at=asked_at + waited,
        sent_at=asked_at + 0.1,
        worker=f"w{worker:03}",
        cached_tokens=cached,
    )


INCIDENTS = [Incident(10.0, 0, "slow", 5.0), Incident(30.0, 3, "slow", 5.0)]


def test_a_share_of_one_is_as_much_as_the_others_get() -> None:
    alike = [flight(10.5, worker) for worker in range(8)]
    assert share(alike, INCIDENTS, Span(0, 2)) == pytest.approx(1.0)
    assert share([flight(10.5, 1), flight(10.5, 2)], INCIDENTS, Span(0, 2)) == 0.0
    assert share([], INCIDENTS, Span(0, 2)) == 0.0


def test_each_incident_looks_at_its_own_worker_and_at_new_tokens() -> None:
    flights = [flight(10.5, 0, 300, cached=200), flight(30.5, 0, 100), flight(30.5, 3, 100), flight(31.0, 5, 100)]
    assert share(flights, INCIDENTS, Span(0, 2)) == pytest.approx(8 * 200 / 400)


def test_a_span_holds_what_was_sent_in_it() -> None:
    flights = [flight(9.95, 0), flight(10.0, 1), flight(11.95, 2)]
    (found, none) = in_span(flights, [10.0, 20.0], Span(0, 2))
    assert [one.worker for one in found] == ["w000", "w001"]
    assert none == []


def test_waits_are_of_those_asked_in_the_span() -> None:
    flights = [flight(10.0, 0, waited=1.0), flight(11.0, 0, waited=2.0), flight(12.5, 0, waited=9.0)]
    assert ttft_ms(flights, INCIDENTS, Span(0, 2)) == pytest.approx(1500.0)
    assert ttft_ms(flights, INCIDENTS, Span(5, 6)) == 0.0


def test_a_table_in_markdown() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
