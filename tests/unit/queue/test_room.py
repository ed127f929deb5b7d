"""Who waits, in which order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lbcore.queue.fairness import ServiceCounters
from lbcore.queue.room import AGEING, BAND_AGE_S, Waiting, WaitingRoom
from lbcore.types import RouteFacts

INFINITE = float("inf")


def one(
    name: str,
    *,
    since: float = 0.0,
    work_ms: float = 100.0,
    tokens: float = 100.0,
    tenant: str = "",
    priority: int = 0,
    deadline: float = INFINITE,
) -> Waiting[str]:
    facts = RouteFacts(name, "model", prompt_bytes=10, priority=priority, tenant=tenant)
    return Waiting(name, facts, since, deadline, work_ms, tokens, since)


def room_of(*waiting: Waiting[str], counters: ServiceCounters | None = None) -> WaitingRoom[str]:
    room: WaitingRoom[str] = WaitingRoom(counters or ServiceCounters())
    for each in waiting:
        room.add(each)
    return room


def order(room: WaitingRoom[str], now: float = 0.0) -> str:
    return "".join(each.asker for each in room.in_order(now))


def test_least_work_goes_first() -> None:
    assert order(room_of(one("a", work_ms=300), one("b", work_ms=100), one("c", work_ms=200))) == "bca"


def test_those_with_equal_work_go_in_the_order_in_which_they_came() -> None:
    assert order(room_of(one("a", since=0.0), one("b", since=0.1), one("c", since=0.2)), 1.0) == "abc"


def test_waiting_makes_up_for_work() -> None:
    long_s = 10.0
    later = long_s / AGEING
    assert order(room_of(one("l", work_ms=long_s * 1000), one("s", since=later - 1, work_ms=1)), later) == "sl"
    assert order(room_of(one("l", work_ms=long_s * 1000), one("s", since=later + 1, work_ms=1)), later + 1) == "ls"


def test_a_higher_priority_goes_first_whatever_its_work() -> None:
    assert order(room_of(one("a"), one("b", priority=1, work_ms=1e6), one("c", priority=-1, work_ms=1))) == "bac"


def test_a_priority_that_waits_for_long_rises_by_one() -> None:
    room = room_of(one("low"), one("high", priority=1, since=BAND_AGE_S - 1))
    assert order(room, BAND_AGE_S - 0.5) == "highlow"
    # Level with the other from here on, which as the higher by right goes first still; then above it.
    assert order(room, BAND_AGE_S + 0.5) == "highlow"
    room.remove(next(each for each in room.in_order(0.0) if each.asker == "high"))
    room.add(one("high", priority=1, since=2 * BAND_AGE_S))
    assert order(room, 2 * BAND_AGE_S + 0.5) == "lowhigh"


def test_only_who_is_old_rises() -> None:
    room = room_of(one("old", work_ms=1e6), one("high", priority=1, since=70.0))
    room.add(one("young", work_ms=1, since=70.0))
    assert [each.asker for each in room.in_order(70.0)] == ["old", "high", "young"]


def test_tenants_take_turns_by_the_work_they_were_given() -> None:
    many = [one(f"a{number}", tenant="a", since=number * 1e-3) for number in range(3)]
    room = room_of(*many, one("b0", tenant="b", since=1.0), one("b1", tenant="b", since=1.001))
    assert [each.asker for each in room.in_order(1.0)] == ["a0", "b0", "a1", "b1", "a2"]


def test_a_tenant_that_was_served_more_waits_until_the_other_has_as_much() -> None:
    counters = ServiceCounters()
    counters.charge("a", 150)
    room = room_of(one("a0", tenant="a"), counters=counters)
    for number in range(3):
        room.add(one(f"b{number}", tenant="b", since=number * 1e-3))
    # A was served when it had nothing, which is where B begins.
    assert [each.asker for each in room.in_order(1.0)] == ["b0", "b1", "a0", "b2"]


def test_the_first_is_the_first_in_order() -> None:
    room = room_of(one("a", work_ms=300), one("b", work_ms=100))
    assert room.first(0.0) is next(room.in_order(0.0))
    room.add(one("c", priority=1, tenant="t", work_ms=1e6))
    first = room.first(0.0)
    assert first is not None
    assert first.asker == "c"
    assert WaitingRoom[str](ServiceCounters()).first(0.0) is None


def test_each_in_turn_may_be_removed_on_the_way() -> None:
    room = room_of(*(one(str(number), work_ms=number) for number in range(6)))
    seen = []
    for each in room.in_order(0.0):
        seen.append(each.asker)
        if int(each.asker) % 2:
            room.remove(each)
    assert "".join(seen) == "012345"
    assert order(room) == "024"


def test_silence_does_not_slow_the_rate_of_leaving() -> None:
    room: WaitingRoom[str] = WaitingRoom(ServiceCounters())
    for begin in (0.0, 1000.0):
        for number in range(40):
            each = one(str(number), since=begin + number * 0.1)
            room.add(each)
            room.dispatched(each, begin + number * 0.1 + 0.1)
    assert 8.0 < room.drain_per_s(5000.0) < 12.0


def test_who_has_gone_is_not_kept_for_its_deadline() -> None:
    room = room_of(one("near", deadline=1.0))
    for number in range(1000):
        each = one(str(number), deadline=1000.0)
        room.add(each)
        room.remove(each)
    assert len(room._deadlines) < 200


def test_those_whose_time_is_over_are_removed() -> None:
    room = room_of(one("a", deadline=5.0), one("b"), one("c", deadline=3.0))
    assert room.next_deadline() == 3.0
    assert [each.asker for each in room.late(2.9)] == []
    assert [each.asker for each in room.late(5.0)] == ["c", "a"]
    assert order(room, 5.0) == "b"
    assert room.next_deadline() is None


def test_what_leaves_for_workers_tells_the_rate() -> None:
    waiting = [one(f"{number}", since=number * 0.1) for number in range(100)]
    room = room_of(*waiting)
    assert room.drain_per_s(0.0) == 0.0
    for number, each in enumerate(waiting):
        room.dispatched(each, number * 0.1)
    assert 8.0 < room.drain_per_s(10.0) < 12.0
    assert len(room) == room.prompt_bytes == 0


@given(
    st.lists(
        st.tuples(
            st.integers(-2, 2), st.sampled_from(["", "a", "b"]), st.floats(0, 1e5), st.floats(0, 100), st.booleans()
        ),
        max_size=30,
    ),
    st.floats(0, 500),
)
def test_everybody_who_came_and_did_not_go_is_in_the_order_exactly_once(
    comers: list[tuple[int, str, float, float, bool]], now: float
) -> None:
    room: WaitingRoom[str] = WaitingRoom(ServiceCounters())
    there = []
    for number, (priority, tenant, work_ms, since, goes) in enumerate(comers):
        each = one(str(number), priority=priority, tenant=tenant, work_ms=work_ms, since=since)
        room.add(each)
        assert each in room
        if goes:
            room.remove(each)
            assert each not in room
        else:
            there.append(each)
    assert sorted(room.in_order(now + 100), key=id) == sorted(there, key=id)
    assert len(room) == len(there)
    assert room.prompt_bytes == 10 * len(there)
    for tenant in ("", "a", "b"):
        assert room.of_tenant(tenant) == sum(each.facts.tenant == tenant for each in there)
