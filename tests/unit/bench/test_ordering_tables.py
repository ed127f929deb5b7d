from __future__ import annotations

from typing import Any

import pytest

from bench.ordering.tables import agreement, beside_table, cost_table, page, real_table


def found(mean: float, goodput: float = 0.9, failed: int = 0) -> dict[str, Any]:
    spread = {"mean": mean, "p50": mean / 2, "p90": 2 * mean, "p99": 3 * mean}
    return {
        "calls": 100,
        "failed": failed,
        "ttft": spread,
        "tpot": {**spread, "mean": 55.55},
        "goodput": goodput,
        "hit_rate": 0.75,
        "requests": [40, 60],
    }


def run(number: int, system: str, policy: str, figures: dict[str, Any]) -> dict[str, Any]:
    cores = {"engines": 0.1, "fronts": 0.0, "layer": 0.05}
    return {
        "round": number,
        "system": system,
        "policy": policy,
        "figures": figures,
        "idle_delay_ms": 4.0,
        "cores": cores,
    }


RUNS = [
    run(0, "lbcore round_robin", "round_robin", found(2000, 0.5)),
    run(0, "lbcore cost", "cost", found(200)),
    run(0, "rival round_robin", "round_robin", found(2100, 0.4, failed=3)),
    run(1, "lbcore round_robin", "round_robin", found(3000, 0.3)),
    run(1, "lbcore cost", "cost", found(300)),
    run(1, "rival round_robin", "round_robin", found(2900, 0.4)),
]
SIMULATED = [
    {"round": number, "policy": policy, "figures": found(mean)}
    for number, policy, mean in ((0, "cost", 210), (0, "round_robin", 1900), (1, "cost", 290), (1, "round_robin", 3100))
]


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_every_row_has_the_cells_of_the_head() -> None:
    for table in (real_table(RUNS), beside_table(RUNS, SIMULATED), cost_table(RUNS)):
        assert len({len(row) for row in cells(table)}) == 1


def test_systems_stand_best_first_with_the_mean_and_the_range_of_their_rounds() -> None:
    rows = cells(real_table(RUNS))[2:]
    assert [row[0] for row in rows] == ["lbcore cost", "lbcore round_robin", "rival round_robin (3 failed)"]
    assert rows[0][1:3] == ["250", "200 to 300"]
    assert rows[0][-1] == "60 / 40"


def test_real_stands_beside_simulated_with_their_ratio() -> None:
    rows = cells(beside_table(RUNS, SIMULATED))[2:]
    assert rows[0][:5] == ["lbcore cost", "`cost`", "250", "250", "1.00"]
    assert rows[2][:5] == ["rival round_robin", "`round_robin`", "2,500", "2,500", "1.00"]


def test_what_stands_between_client_and_engine_has_a_table() -> None:
    assert cells(cost_table(RUNS))[2] == ["lbcore round_robin", "4.0", "0.10", "0.00", "0.05"]


def test_agreement_is_told_of_each_round() -> None:
    def ours(name: str) -> bool:
        return name.startswith("lbcore ")

    assert agreement(RUNS, SIMULATED, "ttft.mean", ours) == pytest.approx([1, 1])
    assert agreement(RUNS, SIMULATED, "hit_rate", ours) == []


def test_a_page_holds_all_tables() -> None:
    record = {
        "engine": {"workers": 2},
        "rate": 1.5,
        "load": 0.9,
        "seconds": 60.0,
        "shape": "mixed",
        "runs": RUNS,
        "simulated": SIMULATED,
    }
    text = page(record)
    assert "2 workers, 1.50 requests/s (90% of capacity), 60 s" in text
    for table in (real_table(RUNS), beside_table(RUNS, SIMULATED), cost_table(RUNS)):
        assert table in text
