"""Results as a picture: bars of mean TTFT on a logarithmic scale, a panel for each workload and load. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from xml.sax.saxutils import escape

from lbcore.policies.presets import DEFAULT_POLICY
from lbcore.simulator.compare import Result

_WIDTH, _NAMES, _NUMBERS = 760, 220, 150
_ROW, _BAR, _TITLE = 22, 13, 40
# Readable on white and on black.
_TEXT, _OTHER, _OUR = "#7d8590", "#8c959f", "#2f81f7"


def plot(results: Sequence[Result]) -> str:
    """An SVG document; the policies of a panel from the least mean TTFT to the greatest."""
    parts: list[str] = []
    top = 0
    for (workload, load), group in groupby(results, key=lambda result: (result.case.workload, result.case.load)):
        rows = sorted(group, key=lambda row: row.outcome.ttft.mean)
        what = f"{load:.0%} of capacity" if load else "as recorded"
        parts.append(f'<text x="0" y="{top + 24}" font-weight="600">{escape(workload)}, {what}: mean TTFT</text>')
        top += _TITLE
        parts += _bars(rows, top)
        top += _ROW * len(rows)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}" height="{top}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{_TEXT}" role="img">'
    )
    return "\n".join([head, "<title>Mean time to first token by policy, less is better</title>", *parts, "</svg>\n"])


def _bars(rows: Sequence[Result], top: int) -> list[str]:
    values = [max(row.outcome.ttft.mean, 1e-3) for row in rows]
    low = math.floor(math.log10(min(values)))
    high = max(low + 1, math.ceil(math.log10(max(values))))
    room = _WIDTH - _NAMES - _NUMBERS
    parts = []
    for number, (row, value) in enumerate(zip(rows, values, strict=True)):
        y = top + number * _ROW
        length = max(2.0, room * (math.log10(value) - low) / (high - low))
        colour = _OUR if row.case.policy.partition("(")[0] == DEFAULT_POLICY else _OTHER
        parts += [
            f'<text x="{_NAMES - 8}" y="{y + _BAR}" text-anchor="end">{escape(row.case.policy)}</text>',
            f'<rect x="{_NAMES}" y="{y + 2}" width="{length:.1f}" height="{_BAR}" rx="2" fill="{colour}"/>',
            f'<text x="{_NAMES + length + 6:.1f}" y="{y + _BAR}">'
            f"{value:,.0f} ms, good {row.outcome.goodput:.2f}</text>",
        ]
    return parts
