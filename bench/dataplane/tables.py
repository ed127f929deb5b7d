"""The measurements as Markdown tables: ratios first, ours being 1, then medians, then from least to most. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from bench.dataplane.record import Record
from bench.dataplane.results import OURS, Figure, Spread, complaints, spread


@dataclass(frozen=True, slots=True)
class Table:
    """A figure, or several of one unit, for all systems."""

    title: str
    says: str
    unit: str
    columns: Sequence[tuple[str, Figure]]
    has_ratios: bool = True


_PLAIN = (
    ("1 connection", "plain-1"),
    ("8", "plain-8"),
    ("64", "plain-64"),
    ("512", "plain-512"),
    ("64, 100 tokens", "whole-100"),
)
_PROMPTS = ("200 KB prompts", "prompts-200k")
_TOKENS = (("unpaced, 64 streams", "streams-64"), ("5 ms, 64 streams", "paced-64"), ("5 ms, 256 streams", "paced-256"))
_MS = "ms"
_REASON = 160
_NOISE = {
    "neighbour_cores": "Cores taken by processes that have nothing to do with it",
    "spin_ms": "Milliseconds of CPU for a fixed piece of Python before and after a run",
}

TABLES = (
    Table(
        "CPU of the layer per request",
        "Whole answers of one token to distinct prompts of 300 characters; all processes of the layer, no workers.",
        "µs",
        [(head, Figure(name, "cpu_us_per_request_layer")) for head, name in (*_PLAIN, _PROMPTS)],
    ),
    Table(
        "CPU of layer and workers per request",
        "The same runs with what the workers took: a protocol that is dear for them is dear.",
        "µs",
        [(head, Figure(name, "cpu_us_per_request_total")) for head, name in (*_PLAIN, _PROMPTS)],
    ),
    Table(
        "CPU of the layer per 1,000 tokens",
        "Streams of 100 tokens, each token an event of its own.",
        _MS,
        [(head, Figure(name, "cpu_ms_per_1000_tokens_layer")) for head, name in _TOKENS],
    ),
    Table(
        "CPU of layer and workers per 1,000 tokens",
        "The same runs with what the workers took.",
        _MS,
        [(head, Figure(name, "cpu_ms_per_1000_tokens_total")) for head, name in _TOKENS],
    ),
    Table(
        "Requests per second",
        "As many as the machine gives when client, layer and workers share its cores.",
        "/s",
        [(head, Figure(name, "requests_per_s")) for head, name in (*_PLAIN, _PROMPTS)],
    ),
    Table(
        "Tokens per second",
        "Unpaced streams of 100 tokens, when client, layer and workers share the cores.",
        "/s",
        [("64 streams", Figure("streams-64", "tokens_per_s"))],
    ),
    Table(
        "Added delay of a token",
        "From the moment at which the worker has the token to the client's reading it, minus the same without a layer.",
        _MS,
        [
            ("64 streams, p50", Figure("paced-64", "delay_ms.p50", is_added=True)),
            ("64 streams, p99", Figure("paced-64", "delay_ms.p99", is_added=True)),
            ("256 streams, p50", Figure("paced-256", "delay_ms.p50", is_added=True)),
            ("256 streams, p99", Figure("paced-256", "delay_ms.p99", is_added=True)),
        ],
    ),
    Table(
        "Added time to the first token",
        "One short stream at a time, minus the same without a layer.",
        _MS,
        [
            ("p50", Figure("ttft-1", "ttft_ms.p50", is_added=True)),
            ("p99", Figure("ttft-1", "ttft_ms.p99", is_added=True)),
        ],
    ),
    Table(
        "Latency of requests that arrive by chance",
        "A Poisson process; counted from the intended arrival, whatever the system did to those before.",
        _MS,
        [
            ("500/s, p50", Figure("open-500", "latency_ms.p50")),
            ("500/s, p99", Figure("open-500", "latency_ms.p99")),
            ("2,000/s, p50", Figure("open-2000", "latency_ms.p50")),
            ("2,000/s, p99", Figure("open-2000", "latency_ms.p99")),
        ],
    ),
    Table(
        "Memory of the layer",
        "RSS of all its processes, pages they share counted twice, after a warm-up and after the requests behind it.",
        "MB",
        [
            ("after the warm-up", Figure("memory", "rss_mb_layer_warm")),
            ("at the end", Figure("memory", "rss_mb_layer")),
        ],
    ),
    Table(
        "Growth of that memory",
        "From the end of the warm-up to the end. A slow system may not get through all requests in the time there is.",
        "",
        [
            ("requests", Figure("memory", "requests")),
            ("bytes per request", Figure("memory", "rss_bytes_per_request_layer")),
        ],
        has_ratios=False,
    ),
)


def tables(record: Record) -> str:
    """All tables that have a number, what was not valid, and where the numbers come from."""
    parts = [text for table in TABLES if (text := _table(table, record))]
    return "\n\n".join([*parts, *_invalid(record), _origin(record)])


def number(value: float) -> str:
    """Two or three significant digits, without an exponent unless the number is tiny."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.1 or not size else f"{value:.2g}"


def _table(table: Table, record: Record) -> str | None:
    rows = []
    ours = [spread(record.measurements, OURS, figure) for _, figure in table.columns]
    for name in record.systems:
        found = [spread(record.measurements, name, figure) for _, figure in table.columns]
        # The baseline has no layer: its row would be zeros.
        if any(isinstance(one, int) or (isinstance(one, Spread) and one.most) for one in found):
            cells = [_cell(one, base if table.has_ratios else None) for one, base in zip(found, ours, strict=True)]
            rows.append(f"| {_bold(name)} | {' | '.join(cells)} |")
    if not rows:
        return None
    heads = " | ".join(f"{head}, {table.unit}" if table.unit else head for head, _ in table.columns)
    return "\n".join(
        [f"### {table.title}", "", table.says, "", f"| | {heads} |", f"|---|{'---|' * len(table.columns)}", *rows]
    )


def _cell(found: Spread | int | None, ours: Spread | int | None) -> str:
    if found is None:
        return ""
    if isinstance(found, int):
        return "not valid"
    text = number(found.median)
    if found.runs > 1:
        text += f" ({number(found.least)}–{number(found.most)})"
    if found.invalid:
        text += f", {found.invalid} of {found.runs + found.invalid} runs not valid"
    # A ratio to nearly nothing, or to less than nothing, says nothing.
    if isinstance(ours, Spread) and ours.least > 0 and found.median > 0:
        return f"**{number(found.median / ours.median)}** · {text}"
    return text


def _bold(name: str) -> str:
    return f"**{name}**" if name == OURS else name


def _invalid(record: Record) -> list[str]:
    lines = []
    for (system, scenario), words in complaints(record.measurements).items():
        runs = f"{len(words)} of {_runs(record, system, scenario)} runs"
        lines.append(f"- {system}, {scenario}, {runs}: {'; '.join(sorted({_brief(one) for one in words}))}")
    lines += [f"- {name}: {facts['reason']}" for name, facts in record.systems.items() if facts.get("reason")]
    return ["\n".join(["### Runs that are not valid", "", *lines])] if lines else []


def _brief(reason: str) -> str:
    """The end of it, where programs say what was wrong, as one line that Markdown leaves alone."""
    return reason if len(reason) <= _REASON else f"`… {reason[-_REASON:].replace('`', '')}`"


def _runs(record: Record, system: str, scenario: str) -> int:
    return sum(one["system"] == system and one["scenario"] == scenario for one in record.measurements)


def _origin(record: Record) -> str:
    machine, dates = record.machine, sorted(one["date"][:10] for one in record.invocations)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    where = (
        f"Measured on {when}: {machine['cores']} cores of {machine['cpu']}, {machine['memory_gb']} GB, "
        f"Linux {machine['kernel']}, Python {machine['python']}, {machine['wrk']}."
    )
    for name, says in _NOISE.items():
        values = sorted(one["figures"][name] for one in record.measurements if name in one.get("figures", {}))
        if values:
            middle, least, most = map(number, (values[len(values) // 2], values[0], values[-1]))
            where += f" {says}: {middle} in the median run, {least} to {most}."
    commands = [
        f"- `{shlex.join(['python', '-m', 'bench.dataplane', *one['arguments']])}`" for one in record.invocations
    ]
    rows = [
        f"| {_bold(name)} | {facts['kind']} | {facts['version'] or 'not installed'} | `{facts.get('flags') or '-'}` |"
        for name, facts in record.systems.items()
    ]
    head = ["| | kind | version | flags |", "|---|---|---|---|"]
    return "\n".join(["### Where the numbers come from", "", where, "", *commands, "", *head, *rows])
