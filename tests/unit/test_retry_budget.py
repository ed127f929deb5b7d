"""How many second tries there may be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lbcore.retry_budget import RESERVE, SHARE, RetryBudget


def test_a_quiet_fleet_has_some_saved_up() -> None:
    budget = RetryBudget()
    assert [budget.spend() for _ in range(int(RESERVE) + 1)] == [True] * int(RESERVE) + [False]


@given(st.lists(st.booleans(), max_size=400))
def test_second_tries_are_never_more_than_the_reserve_and_a_share_of_the_requests(turns: list[bool]) -> None:
    budget, requests, tries = RetryBudget(), 0, 0
    for is_request in turns:
        if is_request:
            budget.earn()
            requests += 1
        elif budget.spend():
            tries += 1
        assert tries <= RESERVE + SHARE * requests


def test_what_was_spent_is_earned_again() -> None:
    budget = RetryBudget()
    while budget.spend():
        pass
    for _ in range(round(1 / SHARE)):
        assert not budget.spend()
        budget.earn()
    budget.earn()
    assert budget.spend()
