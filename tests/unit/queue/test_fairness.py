"""Service by tenant."""

from __future__ import annotations

from lbcore.queue.fairness import MAX_TENANTS, ServiceCounters


def test_service_adds_up() -> None:
    counters = ServiceCounters()
    counters.charge("a", 10)
    counters.charge("a", 5)
    assert (counters.of("a"), counters.of("b")) == (15, 0)


def test_who_comes_back_is_lifted_to_the_least_of_those_who_wait() -> None:
    counters = ServiceCounters()
    counters.charge("a", 100)
    counters.charge("b", 50)
    counters.lift("c", ["a", "b"])
    assert counters.of("c") == 50


def test_nobody_is_lowered() -> None:
    counters = ServiceCounters()
    counters.charge("a", 100)
    counters.charge("b", 50)
    counters.lift("a", ["b"])
    assert counters.of("a") == 100


def test_who_comes_to_an_empty_room_stays_where_it_is() -> None:
    counters = ServiceCounters()
    counters.lift("a", [])
    assert counters.of("a") == 0


def test_only_so_many_tenants_are_remembered() -> None:
    counters = ServiceCounters()
    for number in range(MAX_TENANTS + 1):
        counters.charge(str(number), 1)
    assert (counters.of("0"), counters.of("1")) == (0, 1)
