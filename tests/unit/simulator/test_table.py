"""Results as Markdown."""

from __future__ import annotations

from lbcore.simulator.compare import Case, Result
from lbcore.simulator.outcome import Outcome, Spread
from lbcore.simulator.table import table


def result(policy: str, *, load: float = 0.9, users: int = 0, refused: int = 0, mean: float = 100.0) -> Result:
    spread = Spread(mean, mean, mean, mean)
    outcome = Outcome(1000, refused, spread, spread, 0.5, 0.25, 1.0, 2.0, 0.5)
    return Result(Case("traffic", load, policy), 40.0, users, outcome)


def test_an_open_loops_load_is_a_share_of_calls_a_second_and_a_closed_loops_of_users() -> None:
    assert "### traffic, 90% of 40 calls/s\n" in table([result("cost")])
    assert "### traffic, 90% of 40 users\n" in table([result("cost", users=36)])
    assert "### traffic, as recorded\n" in table([result("cost", load=0.0)])


def test_calls_that_were_refused_are_told_of() -> None:
    assert "Refused" not in table([result("cost")])
    assert "Refused: up to 7 of 1,000 calls." in table([result("cost", refused=3), result("other", refused=7)])


def test_the_best_is_in_bold() -> None:
    text = table([result("cost", mean=90.0), result("other", mean=110.0)])
    assert "| `cost` | **90** |" in text
    assert "| `other` | 110 |" in text
