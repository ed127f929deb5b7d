"""Results as rows, and rows as tables. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lbcore.policies.presets import DEFAULT_POLICY

Case = tuple[str, int, float, str]
"""Workload, workers, load, policy."""

Row = dict[str, Any]
"""One result: workload, workers, load, policy, capacity, users, outcome; as JSON has it."""


def missing(rows: Sequence[Row], cases: Sequence[Case]) -> list[Case]:
    """Those cases of which there is no row."""
    there = {(row["workload"], row["workers"], row["load"], row["policy"]) for row in rows}
    return [case for case in cases if case not in there]


def overview(rows: Sequence[Row], workers: int, load: float) -> str:
    """A table of policies by workloads: mean and 99th percentile of the time to first token, and goodput; the best in
    bold. Empty without rows."""
    cells = {(row["policy"], row["workload"]): row["outcome"] for row in _of(rows, workers, load)}
    workloads = list(dict.fromkeys(workload for _, workload in cells))
    if not workloads:
        return ""
    lines = [
        f"| policy | {' | '.join(f'`{name}`' for name in workloads)} |",
        "|---" * (len(workloads) + 1) + "|",
    ]
    for policy in dict.fromkeys(policy for policy, _ in cells):
        texts = []
        for workload in workloads:
            there = [outcome for (_, name), outcome in cells.items() if name == workload]
            texts.append(_cell(cells.get((policy, workload)), there))
        lines.append(f"| `{policy}` | {' | '.join(texts)} |")
    return "\n".join(lines)


def against(rows: Sequence[Row], workers: int, load: float, rivals: Sequence[str]) -> str:
    """A table of the default's figures over those of the best other policy, figure by figure, and over some rivals'
    mean time to first token. Empty without rows."""
    lines = []
    found = _of(rows, workers, load)
    for workload in dict.fromkeys(row["workload"] for row in found):
        outcomes = {row["policy"]: row["outcome"] for row in found if row["workload"] == workload}
        ours = outcomes.pop(DEFAULT_POLICY, None)
        if ours is None or not outcomes:
            continue
        texts = [_ratio(ours, outcomes, name, figure) for name, figure in FIGURES.items()]
        texts += [
            f"{ours['ttft']['mean'] / outcomes[rival]['ttft']['mean']:.2f}" if rival in outcomes else "-"
            for rival in rivals
        ]
        lines.append(f"| `{workload}` | {' | '.join(texts)} |")
    if not lines:
        return ""
    head = [
        "workload",
        *(f"{name} over the best rival's" for name in FIGURES),
        *(f"mean over `{one}`" for one in rivals),
    ]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines])


FIGURES: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "mean": lambda outcome: float(outcome["ttft"]["mean"]),
    "p99": lambda outcome: float(outcome["ttft"]["p99"]),
    "goodput": lambda outcome: float(outcome["goodput"]),
}


def _of(rows: Sequence[Row], workers: int, load: float) -> list[Row]:
    return [row for row in rows if row["workers"] == workers and row["load"] == load]


def _cell(outcome: Mapping[str, Any] | None, there: Sequence[Mapping[str, Any]]) -> str:
    if outcome is None:
        return "-"
    mean, p99, goodput = (figure(outcome) for figure in FIGURES.values())
    best = [
        pick([figure(one) for one in there]) for pick, figure in zip((min, min, max), FIGURES.values(), strict=True)
    ]
    return (
        f"{_bold(f'{mean:,.0f}', f'{best[0]:,.0f}')} / {_bold(f'{p99:,.0f}', f'{best[1]:,.0f}')} · "
        f"{_bold(f'{goodput:.2f}', f'{best[2]:.2f}')}"
    )


def _bold(text: str, best: str) -> str:
    return f"**{text}**" if text == best else text


def _ratio(
    ours: Mapping[str, Any],
    others: Mapping[str, Mapping[str, Any]],
    name: str,
    figure: Callable[[Mapping[str, Any]], float],
) -> str:
    choose = max if name == "goodput" else min
    best = choose(others, key=lambda policy: figure(others[policy]))
    theirs = figure(others[best])
    return f"{figure(ours) / theirs:.2f} (`{best}`)" if theirs else f"- (`{best}`)"
