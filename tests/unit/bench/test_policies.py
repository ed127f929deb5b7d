"""The tables of all policies against all workloads."""

from __future__ import annotations

from bench.policies.__main__ import TRACES, make
from bench.policies.tables import Row, against, missing, overview


def row(workload: str, policy: str, mean: float, goodput: float, *, workers: int = 8, load: float = 0.9) -> Row:
    outcome = {"ttft": {"mean": mean, "p99": 10 * mean}, "goodput": goodput}
    return {"workload": workload, "workers": workers, "load": load, "policy": policy, "outcome": outcome}


ROWS = [
    row("bursts", "cost", 100.0, 0.9),
    row("bursts", "gie", 200.0, 0.95),
    row("bursts", "lmetric", 125.0, 0.5),
    row("poisson", "cost", 50.0, 1.0),
    row("poisson", "gie", 40.0, 1.0),
    row("bursts", "cost", 7.0, 1.0, workers=16),
]


def test_the_best_of_each_workload_is_in_bold_and_what_is_missing_is_a_dash() -> None:
    assert overview(ROWS, 8, 0.9).splitlines() == [
        "| policy | `bursts` | `poisson` |",
        "|---|---|---|",
        "| `cost` | **100** / **1,000** · 0.90 | 50 / 500 · **1.00** |",
        "| `gie` | 200 / 2,000 · **0.95** | **40** / **400** · **1.00** |",
        "| `lmetric` | 125 / 1,250 · 0.50 | - |",
    ]


def test_the_default_stands_over_the_best_other_of_each_figure_and_over_those_who_are_named() -> None:
    assert against(ROWS, 8, 0.9, ("gie", "preble")).splitlines()[2:] == [
        "| `bursts` | 0.80 (`lmetric`) | 0.80 (`lmetric`) | 0.95 (`gie`) | 0.50 | - |",
        "| `poisson` | 1.25 (`gie`) | 1.25 (`gie`) | 1.00 (`gie`) | 1.25 | - |",
    ]


def test_without_results_there_are_no_tables() -> None:
    assert overview(ROWS, 8, 0.7) == ""
    assert against(ROWS, 16, 0.9, ("gie",)) == ""


def test_what_is_there_is_not_played_again() -> None:
    cases = [("bursts", 8, 0.9, "cost"), ("bursts", 16, 0.9, "gie"), ("bursts", 8, 1.05, "cost")]
    assert missing(ROWS, cases) == cases[1:]


def test_made_up_traffic_needs_no_traces() -> None:
    assert make("poisson", None, 20, 8).calls == 20
    assert "poisson" not in TRACES
