"""Tables of a record, in Markdown: what was measured, and beside it what the simulator says. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from bench.ordering.figures import rank_correlation

_REAL = (
    "| system | TTFT mean, ms | of the rounds | p50 | p90 | p99 | TPOT mean, ms | goodput | cached "
    "| requests per worker |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)
_BESIDE = (
    "| system | simulated as | TTFT mean, ms: real | simulated | ratio | goodput: real | simulated | cached: real | "
    "simulated |\n|---|---|---|---|---|---|---|---|---|"
)
_COST = (
    "| system | idle: first token later than in the engine, ms | CPU of engines, cores | of HTTP fronts "
    "| of the layer |\n"
    "|---|---|---|---|---|"
)

Rows = Sequence[Mapping[str, Any]]


def real_table(runs: Rows) -> str:
    """Of each system: means over its rounds, and from the least to the most mean TTFT of a round; best first."""
    rows = []
    for name, own in _groups(runs, "system"):
        means = _pick(own, "ttft.mean")
        spreads = [f"{fmean(_pick(own, f'ttft.{part}')):,.0f}" for part in ("p50", "p90", "p99")]
        failed = sum(_pick(own, "failed"))
        cells = [
            name + (f" ({failed:.0f} failed)" if failed else ""),
            f"{fmean(means):,.0f}",
            f"{min(means):,.0f} to {max(means):,.0f}",
            *spreads,
            f"{fmean(_pick(own, 'tpot.mean')):.1f}",
            f"{fmean(_pick(own, 'goodput')):.3f}",
            f"{fmean(_pick(own, 'hit_rate')):.1%}",
            " / ".join(map(str, sorted(own[0]["figures"]["requests"], reverse=True))),
        ]
        rows.append((fmean(means), cells))
    return _table(_REAL, rows)


def beside_table(runs: Rows, simulated: Rows) -> str:
    """Real and simulated side by side, means over the rounds; best first by what was measured."""
    by_policy = dict(_groups(simulated, "policy"))
    rows = []
    for name, own in _groups(runs, "system"):
        other = by_policy[own[0]["policy"]]
        real, virtual = fmean(_pick(own, "ttft.mean")), fmean(_pick(other, "ttft.mean"))
        cells = [name, f"`{own[0]['policy']}`", f"{real:,.0f}", f"{virtual:,.0f}", f"{real / virtual:.2f}"]
        cells += [f"{fmean(_pick(one, 'goodput')):.3f}" for one in (own, other)]
        cells += [f"{fmean(_pick(one, 'hit_rate')):.1%}" for one in (own, other)]
        rows.append((real, cells))
    return _table(_BESIDE, rows)


def cost_table(runs: Rows) -> str:
    """What stands between client and engine, and how busy the machine was with each."""
    rows = []
    for name, own in _groups(runs, "system"):
        cells = [name, f"{fmean(_pick(own, 'idle_delay_ms', '')):.1f}"]
        cells += [f"{fmean(_pick(own, f'cores.{role}', '')):.2f}" for role in ("engines", "fronts", "layer")]
        rows.append((0.0, cells))
    return _table(_COST, rows)


def agreement(runs: Rows, simulated: Rows, what: str, accept: Callable[[str], bool]) -> list[float]:
    """The rank correlation of each round between the systems that are accepted and the simulator."""
    found = []
    for number, own in _groups(runs, "round"):
        virtual = {one["policy"]: _value(one["figures"], what) for one in simulated if one["round"] == number}
        chosen = [one for one in own if accept(one["system"]) and one["policy"] in virtual]
        if len({virtual[one["policy"]] for one in chosen}) > 1:
            real = {one["system"]: _value(one["figures"], what) for one in chosen}
            found.append(rank_correlation(real, {one["system"]: virtual[one["policy"]] for one in chosen}))
    return found


def page(record: Mapping[str, Any]) -> str:
    """All of it."""
    runs, simulated = record["runs"], record["simulated"]
    head = (
        f"{record['engine']['workers']} workers, {record['rate']:.2f} requests/s ({record['load']:.0%} of capacity), "
        f"{record['seconds']:.0f} s, traffic `{record['shape']}`"
    )
    parts = [head, real_table(runs), beside_table(runs, simulated)]
    for what in ("ttft.mean", "ttft.p90", "goodput", "hit_rate"):
        for words, accept in (("all", lambda name: True), ("ours", lambda name: name.startswith("lbcore "))):
            places = ", ".join(f"{value:.2f}" for value in agreement(runs, simulated, what, accept))
            parts.append(f"Rank correlation of {what}, {words}, by round: {places}")
    return "\n\n".join([*parts, cost_table(runs)])


def _groups(rows: Rows, key: str) -> list[tuple[Any, list[Mapping[str, Any]]]]:
    """Rows by what stands under a key, in order of first appearance."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return list(groups.items())


def _pick(rows: Rows, path: str, root: str = "figures") -> list[float]:
    return [_value(row[root] if root else row, path) for row in rows]


def _value(figures: Mapping[str, Any], path: str) -> float:
    value: Any = figures
    for name in path.split("."):
        value = value[name]
    return float(value)


def _table(head: str, rows: Iterable[tuple[float, Sequence[str]]]) -> str:
    return "\n".join([head, *(f"| {' | '.join(cells)} |" for _, cells in sorted(rows, key=lambda row: row[0]))])
