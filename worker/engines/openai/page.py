"""Reads the few numbers that matter off a server's Prometheus page. Pure.

Pages have hundreds of kilobytes, most of them histograms, and are read every second: only the lines that begin with a
wanted name are looked at.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite

_LABEL = re.compile(r'([A-Za-z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"')
_PARTS = ("engine", "dp_rank", "model_name", "model")
"""Labels of which each value is a part of the whole; series that differ in others say the same thing twice."""


@dataclass(frozen=True, slots=True)
class Series:
    """A metric, and perhaps the value that one of its labels must have."""

    name: str
    label: tuple[str, str] | None = None


@dataclass(frozen=True)
class PageNames:
    """What the numbers are called on the pages of one kind of server; the first of several names that is there counts.

    The KV cache is told as a fraction in use and a size: in blocks, in tokens, or in the labels of an info metric.
    """

    running: tuple[Series, ...]
    waiting: tuple[Series, ...]
    kv_usage: tuple[Series, ...] = ()
    kv_blocks: Series | None = None
    kv_tokens: Series | None = None
    kv_block_tokens: Series | None = None
    kv_info: str = ""
    kv_info_labels: tuple[str, str] = ("", "")
    """The labels that hold the number of blocks and the tokens of one."""

    @cached_property
    def pattern(self) -> re.Pattern[bytes]:
        singles = [one.name for one in (self.kv_blocks, self.kv_tokens, self.kv_block_tokens) if one is not None]
        lists = [one.name for one in (*self.running, *self.waiting, *self.kv_usage)]
        names = {name.encode() for name in (*singles, *lists, self.kv_info) if name}
        any_of = b"|".join(map(re.escape, sorted(names)))
        return re.compile(rb"^(" + any_of + rb")(?:\{(.*)\})?[ \t]+(\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Page:
    """What a page told; None for what was not on it."""

    running: int | None = None
    waiting: int | None = None
    kv_used_blocks: int = 0
    kv_blocks: int = 0
    kv_block_size: int = 0
    """Tokens of a block; 0 when the page does not say."""


@dataclass(slots=True)
class _Samples:
    by_name: dict[str, list[tuple[dict[str, str], float]]] = field(default_factory=lambda: defaultdict(list))

    def of(self, series: Series) -> list[float]:
        """The values of a metric, one for each part of the whole."""
        parts: dict[tuple[str, ...], float] = {}
        for labels, value in self.by_name.get(series.name, ()):
            if series.label is None or labels.get(series.label[0]) == series.label[1]:
                part = tuple(labels.get(name, "") for name in _PARTS)
                parts[part] = max(value, parts.get(part, 0.0))
        return [*parts.values()]

    def first(self, several: tuple[Series, ...]) -> list[float]:
        return next((values for series in several if (values := self.of(series))), [])

    def total(self, series: Series | None) -> int:
        return int(sum(self.of(series))) if series is not None else 0


def read_page(text: bytes, names: PageNames) -> Page:
    """Reads a page; what is malformed on it is passed over."""
    samples = _Samples()
    for found in names.pattern.finditer(text):
        labels = dict(_LABEL.findall((found[2] or b"").decode("utf-8", "replace")))
        try:
            value = float(found[3])
        except ValueError:
            continue
        if isfinite(value) and value >= 0:
            samples.by_name[found[1].decode()].append((labels, value))
    running, waiting = samples.first(names.running), samples.first(names.waiting)
    usage = samples.first(names.kv_usage)
    blocks, block_size = _cache(samples, names)
    mean_usage = min(1.0, sum(usage) / len(usage)) if usage else 0.0
    return Page(
        int(sum(running)) if running else None,
        int(sum(waiting)) if waiting else None,
        round(mean_usage * blocks),
        blocks,
        block_size,
    )


def _cache(samples: _Samples, names: PageNames) -> tuple[int, int]:
    """The blocks of the cache, and the tokens of one."""
    infos = {
        tuple(labels.get(name, "") for name in _PARTS): labels for labels, _ in samples.by_name.get(names.kv_info, ())
    }
    if infos:
        counts, widths = ([_whole(labels.get(name)) for labels in infos.values()] for name in names.kv_info_labels)
        if all(counts) and all(widths):
            return sum(counts), widths[0]
    sizes = samples.of(names.kv_block_tokens) if names.kv_block_tokens is not None else []
    size = int(max(sizes, default=0))
    if (tokens := samples.total(names.kv_tokens)) and not size:
        # A cache that is told in tokens has blocks of one.
        size = 1
    blocks = samples.total(names.kv_blocks) or (tokens // size if size else 0)
    return (blocks, size) if blocks else (0, 0)


def _whole(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdigit() else 0
