"""The cost `hashed_key`."""

from __future__ import annotations

from collections import Counter

from lbcore.policies.costs.hashed_key import HashedKey
from lbcore.types import Endpoint
from tests.unit.policies.workers import by_cost, costs, prompt, worker

FLEET = [worker(f"w{number}") for number in range(8)]


def first(key: int, fleet: list[Endpoint]) -> str:
    return by_cost(HashedKey(), prompt(prefix_key=key), *fleet)[0]


def test_the_hashes_are_the_same_in_every_process() -> None:
    assert by_cost(HashedKey(), prompt(session_id="session"), *FLEET)[:3] == ["w1", "w2", "w6"]
    assert by_cost(HashedKey(), prompt(prefix_key=12345), *FLEET)[:3] == ["w3", "w1", "w4"]


def test_a_session_stays_whatever_its_prompt_begins_with() -> None:
    one, other = prompt(session_id="session", prefix_key=1), prompt(session_id="session", prefix_key=2)
    assert costs(HashedKey(), one, *FLEET) == costs(HashedKey(), other, *FLEET)


def test_keys_spread_over_the_workers() -> None:
    found = Counter(first(key, FLEET) for key in range(1, 4001))
    # Five standard deviations: 5 · √(4000 · 1/8 · 7/8) = 105.
    assert all(abs(found[item.worker_id] - 500) < 105 for item in FLEET)


def test_when_a_worker_goes_only_its_keys_move_and_they_spread() -> None:
    gone, *left = FLEET
    moved: Counter[str] = Counter()
    for key in range(1, 2001):
        before, after = first(key, FLEET), first(key, left)
        if before != after:
            assert before == gone.worker_id
            moved[after] += 1
    assert moved.keys() == {item.worker_id for item in left}


def test_a_worker_that_has_its_share_leaves_the_key_to_the_next_one() -> None:
    request = prompt(session_id="session")
    favourite, runner_up, *_ = by_cost(HashedKey(), request, *FLEET)
    # Its share is 1.25 · (70 + n + 1) / 8, rounded up: 14 both times.
    for running, taken in ((13, favourite), (14, runner_up)):
        fleet = [worker(item.worker_id, running=running if item.worker_id == favourite else 10) for item in FLEET]
        assert by_cost(HashedKey(), request, *fleet)[0] == taken


def test_somebody_always_has_less_than_its_share() -> None:
    fleet = [worker(f"w{number}", running=5) for number in range(8)]
    assert min(costs(HashedKey(1.0), prompt(prefix_key=1), *fleet)) < 1


def test_without_a_key_it_is_the_requests() -> None:
    assert costs(HashedKey(), prompt(), worker("a", running=2), worker("b", sent=1)) == [2, 1]
