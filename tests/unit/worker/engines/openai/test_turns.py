"""Priority, then age; and whoever leaves is forgotten."""

from __future__ import annotations

from worker.engines.openai.turns import Turns


def test_the_urgent_goes_first_then_the_old() -> None:
    turns = Turns[str]()
    places = {name: turns.draw(priority) for name, priority in (("a", 0), ("b", 0), ("urgent", 5), ("idle", -1))}
    for name, place in places.items():
        turns.join(place, name)
    order = []
    while (name := turns.first()) is not None:
        order.append(name)
        assert turns.leave(places[name])
    assert order == ["urgent", "a", "b", "idle"]
    assert turns.first() is None


def test_whoever_comes_back_has_its_old_place() -> None:
    turns = Turns[str]()
    first, second = turns.draw(0), turns.draw(0)
    turns.join(first, "first")
    turns.join(second, "second")
    turns.leave(first)
    assert turns.first() == "second"
    turns.join(first, "first")
    assert turns.first() == "first"
    assert not turns.leave(turns.draw(0))
    assert (len(turns), [*turns]) == (2, ["second", "first"])


def test_those_who_left_take_no_room() -> None:
    turns = Turns[int]()
    keeper = turns.draw(0)
    turns.join(keeper, -1)
    for number in range(500):
        place = turns.draw(0)
        turns.join(place, number)
        turns.leave(place)
        assert len(turns._heap) <= 4
    assert turns.first() == -1
