"""ServeGen's client pools as a workload: not requests but their laws, of which requests are drawn.

A client has for each window of ten minutes a rate and the law of the pauses between its requests, and for each window
of some hours the distributions of their lengths. Nothing is known of what prompts have in common.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import gamma
from pathlib import Path
from random import Random
from typing import Any

from lbcore.simulator.files import json_lines, open_text
from lbcore.simulator.workload import Call, Conversation, Workload

WINDOW_S = 600.0

MIN_SHAPE = 0.1
"""Of a Weibull law; with less nearly all pauses are nothing, and thousands of requests come at once or none."""

Draw = Callable[[Random], float]


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What one client does in one window."""

    client: str
    start_s: float
    rate: float
    """Requests per second."""
    pattern: str
    shape: float

    def pause_s(self, rng: Random) -> float:
        """The law's shape at the window's rate: the scale that was fitted beside it gives other rates, up to thousands
        of times so where a window has few requests."""
        if self.pattern == "Gamma":
            return rng.gammavariate(self.shape, 1 / (self.rate * self.shape))
        if self.pattern == "Weibull":
            shape = max(MIN_SHAPE, self.shape)
            return rng.weibullvariate(1 / (self.rate * gamma(1 + 1 / shape)), shape)
        return rng.expovariate(self.rate)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of one client's requests, from this moment on."""

    start_s: float
    input_tokens: Draw
    output_tokens: Draw


def servegen(folder: Path, seed: int = 1, begin_s: float = 0.0, end_s: float = 7200.0) -> Workload:
    """What comes between `begin_s` and `end_s` of the first day.

    The folder has ServeGen's own files, `chunk-N-trace.csv` and `chunk-N-dataset.json` for each client; or one file of
    all clients' rates and one of their lengths, `*_rates.csv` and `*_lengths.jsonl`, which may be compressed.

    Raises:
        ValueError: it has neither.
    """
    rng = Random(seed)
    arrivals, known = _pools(folder)
    drawn: list[tuple[float, Call]] = []
    for window in arrivals:
        lengths = known.get(window.client)
        if not begin_s <= window.start_s < end_s or window.rate <= 0 or not lengths:
            continue
        law = max((one for one in lengths if one.start_s <= window.start_s), key=_start, default=lengths[0])
        at = window.start_s
        while (at := at + window.pause_s(rng)) < window.start_s + WINDOW_S:
            call = Call(max(1, round(law.input_tokens(rng))), max(1, round(law.output_tokens(rng))))
            drawn.append((at - begin_s, call))
    drawn.sort(key=lambda one: one[0])
    talks = [Conversation(str(number), at, (call,)) for number, (at, call) in enumerate(drawn)]
    return Workload("servegen", talks)


def _start(lengths: Lengths) -> float:
    return lengths.start_s


def _pools(folder: Path) -> tuple[list[Arrivals], dict[str, list[Lengths]]]:
    chunks = sorted(folder.glob("chunk-*-trace.csv"))
    if chunks:
        arrivals: list[Arrivals] = []
        known: dict[str, list[Lengths]] = {}
        for path in chunks:
            client = path.name.split("-")[1]
            with open_text(path) as file:
                arrivals += [_arrivals(client, row) for row in csv.reader(file) if row]
            known[client] = _chunk_lengths(folder / f"chunk-{client}-dataset.json")
        return arrivals, known
    rates, lengths = _only(folder, "*_rates.csv*"), _only(folder, "*_lengths.jsonl*")
    with open_text(rates) as file:
        _, *rows = csv.reader(file)
        return [_arrivals(row[0], row[1:]) for row in rows], _all_lengths(lengths)


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ValueError(f"it has {len(found)} files {pattern}, and no chunk-*-trace.csv")
    return found[0]


def _arrivals(client: str, row: Sequence[str]) -> Arrivals:
    start_s, rate, _, pattern, shape, _ = row
    return Arrivals(client, float(start_s), float(rate), pattern, float(shape or 1.0))


def _chunk_lengths(path: Path) -> list[Lengths]:
    with open_text(path) as file:
        windows = json.load(file)
    return sorted(
        (_lengths(float(start_s), row) for start_s, row in windows.items() if len(row["input_tokens"]) > 2), key=_start
    )


def _all_lengths(path: Path) -> dict[str, list[Lengths]]:
    known: dict[str, list[Lengths]] = {}
    for row in json_lines(path):
        known.setdefault(str(row["client"]), []).append(_lengths(float(row["window_start_s"]), row))
    for windows in known.values():
        windows.sort(key=_start)
    return known


def _lengths(start_s: float, row: Mapping[str, Any]) -> Lengths:
    return Lengths(start_s, _draw(row["input_tokens"]), _draw(row["output_tokens"]))


def _draw(text: str) -> Draw:
    table = dict(_pairs(text))
    values = list(table)
    weights = list(accumulate(table.values()))
    return lambda rng: rng.choices(values, cum_weights=weights)[0]


def _pairs(text: str) -> Iterator[tuple[float, float]]:
    # A Python dictionary of numbers in writing: its keys have no quotes, so it is no JSON.
    for pair in text.strip("{} ").split(","):
        if pair.strip():
            length, _, probability = pair.partition(":")
            yield float(length), float(probability)
