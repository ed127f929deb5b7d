"""Results as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from lbcore.simulator.compare import Result

_HEAD = (
    "| policy | TTFT mean, ms | p50 | p90 | p99 | TPOT mean, ms | p99 | goodput | hits | imbalance |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def table(results: Sequence[Result]) -> str:
    """A table for each workload and load, in their order, its best mean TTFT, p99 and goodput in bold."""
    parts: list[str] = []
    for (workload, _), group in groupby(results, key=lambda result: (result.case.workload, result.case.load)):
        rows = list(group)
        parts.append(f"### {workload}, {_what(rows[0])}\n\n{_HEAD}\n{_rows(rows)}\n")
        refused = max(row.outcome.refused for row in rows)
        if refused:
            parts.append(f"Refused: up to {refused:,} of {rows[0].outcome.calls:,} calls.\n")
    return "\n".join(parts)


def _what(row: Result) -> str:
    if not row.case.load:
        return "as recorded"
    whole = f"{row.capacity:.0f} users" if row.users else f"{row.capacity:.3g} calls/s"
    return f"{row.case.load:.0%} of {whole}"


def _rows(rows: Sequence[Result]) -> str:
    mean = min(row.outcome.ttft.mean for row in rows)
    p99 = min(row.outcome.ttft.p99 for row in rows)
    goodput = max(row.outcome.goodput for row in rows)
    lines = []
    for row in rows:
        outcome = row.outcome
        ttft, tpot = outcome.ttft, outcome.tpot
        cells = [
            f"`{row.case.policy}`",
            _bold(f"{ttft.mean:,.0f}", ttft.mean == mean),
            f"{ttft.p50:,.0f}",
            f"{ttft.p90:,.0f}",
            _bold(f"{ttft.p99:,.0f}", ttft.p99 == p99),
            f"{tpot.mean:.1f}",
            f"{tpot.p99:,.0f}",
            _bold(f"{outcome.goodput:.3f}", outcome.goodput == goodput),
            f"{outcome.hit_rate:.1%}",
            f"{outcome.imbalance:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _bold(text: str, is_best: bool) -> str:
    return f"**{text}**" if is_best else text
