"""Service by tenant."""

from __future__ import annotations

from lbcore.queue.fairness import MAX_TENANTS, ServiceCounters


def test_service_adds_up() -> None:
    counters = ServiceCounters()
    counters.charge("a", 10)
    counters.charge("a", 5)
    assert (counters.of("a"), counters.of("b")) == (15, 0)


def test_who_comes_after_others_were_served_saves_nothing_up() -> None:
    counters = ServiceCounters()
    for _ in range(100):
        counters.charge("a", 10)
    counters.lift("b")
    assert counters.of("b") == 990


def test_nobody_is_lowered() -> None:
    counters = ServiceCounters()
    counters.charge("a", 100)
    counters.lift("a")
    assert counters.of("a") == 100


def test_who_comes_first_stays_where_it_is() -> None:
    counters = ServiceCounters()
    counters.lift("a")
    assert counters.of("a") == 0


def test_only_so_many_tenants_are_remembered() -> None:
    counters = ServiceCounters()
    for number in range(MAX_TENANTS + 1):
        counters.lift(str(number))
        counters.charge(str(number), 1)
    assert (counters.of("0"), counters.of(str(MAX_TENANTS))) == (0, 1)
