"""Horizontal bars on a logarithmic scale as SVG: the greys and the blue are readable on white and on black. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from bench.dataplane.record import Record
from bench.dataplane.results import OURS, Figure, Spread, spread
from bench.dataplane.tables import number

_WIDTH, _NAMES, _NUMBERS = 760, 200, 170
"""All of it, the room for names left of the bars, and that for numbers right of them."""
_ROW, _BAR, _TITLE, _AXIS = 24, 14, 40, 30
_TEXT, _GRID, _OTHER, _OUR = "#7d8590", "#7d859055", "#8c959f", "#2f81f7"
_CHARACTER = 6.6
"""Width of a letter at 12 pixels, at most, in any common sans-serif."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars of one figure."""

    title: str
    unit: str
    figure: Figure


PANELS = (
    Panel("CPU of the layer per request, 64 connections", "µs", Figure("plain-64", "cpu_us_per_request_layer")),
    Panel("CPU of the layer per 1,000 tokens, 64 streams", "ms", Figure("streams-64", "cpu_ms_per_1000_tokens_layer")),
)


def plot(record: Record, panels: Sequence[Panel] = PANELS) -> str | None:
    """The picture; None when there is nothing to draw."""
    parts, top = [], 0
    for panel in panels:
        found = {name: spread(record.measurements, name, panel.figure) for name in record.systems}
        bars = {name: one for name, one in found.items() if isinstance(one, Spread) and one.least > 0}
        if bars:
            parts += _panel(panel, bars, top)
            top += _TITLE + _ROW * len(bars) + _AXIS
    if not parts:
        return None
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}" height="{top}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{_TEXT}" role="img">'
    )
    return "\n".join([head, "<title>CPU of the layer by system, less is better</title>", *parts, "</svg>\n"])


def _panel(panel: Panel, bars: dict[str, Spread], top: int) -> list[str]:
    low = math.floor(math.log10(min(one.least for one in bars.values())))
    high = max(low + 1, math.ceil(math.log10(max(one.most for one in bars.values()))))
    room = _WIDTH - _NAMES - _NUMBERS

    def x(value: float) -> float:
        return _NAMES + room * (math.log10(value) - low) / (high - low)

    title = f"{panel.title} ({panel.unit}, logarithmic; less is better)"
    parts = [f'<text x="8" y="{top + 20}" font-weight="bold" font-size="13">{escape(title)}</text>']
    first, bottom = top + _TITLE, top + _TITLE + _ROW * len(bars)
    for exponent in range(low, high + 1):
        at = x(10.0**exponent)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{first - 4}" y2="{bottom}" stroke="{_GRID}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 14}" text-anchor="middle">{10.0**exponent:,g}</text>')
    for row, (name, one) in enumerate(sorted(bars.items(), key=lambda item: item[1].median)):
        parts += _bar(name, one, first + _ROW * row, x)
    return parts


def _bar(name: str, one: Spread, y: float, x: Callable[[float], float]) -> list[str]:
    middle, baseline = y + _BAR / 2, y + _BAR - 3
    is_ours = name.startswith(OURS)
    weight = ' font-weight="bold"' if is_ours else ""
    room = int((_NAMES - 16) / _CHARACTER)
    shown = name if len(name) <= room else name[: room - 1] + "…"
    words = number(one.median) + (f" ({number(one.least)}–{number(one.most)})" if one.runs > 1 else "")
    parts = [
        f'<text x="{_NAMES - 8}" y="{baseline}" text-anchor="end"{weight}>{escape(shown)}</text>',
        f'<rect x="{_NAMES}" y="{y}" width="{max(1.0, x(one.median) - _NAMES):.1f}" height="{_BAR}" rx="2" '
        f'fill="{_OUR if is_ours else _OTHER}"/>',
        f'<text x="{x(one.most) + 8:.1f}" y="{baseline}"{weight}>{words}</text>',
    ]
    if one.runs > 1:
        parts.append(
            f'<line x1="{x(one.least):.1f}" x2="{x(one.most):.1f}" y1="{middle}" y2="{middle}" stroke="{_TEXT}" '
            'stroke-width="2"/>'
        )
    return parts
