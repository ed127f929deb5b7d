"""Picks single figures out of the measurements, and says how they spread. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BASELINE = "direct"
"""The workers with nothing in front of them."""
OURS = "ours"


@dataclass(frozen=True, slots=True)
class Figure:
    """One column: a number of one scenario."""

    scenario: str
    path: str
    """Names down into the figures, with dots between."""
    is_added: bool = False
    """Minus what the baseline has in the same round."""
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Spread:
    """What the valid runs of one system gave for one figure."""

    median: float
    least: float
    most: float
    runs: int
    invalid: int
    """Runs that are not in the numbers, for they had errors or did not happen."""


def spread(measurements: list[dict[str, Any]], system: str, figure: Figure) -> Spread | int | None:
    """The numbers; or how many runs there were when none was valid; or None when there was no run."""
    runs = [one for one in measurements if one["system"] == system and one["scenario"] == figure.scenario]
    baseline = {
        _round(one): one for one in measurements if one["system"] == BASELINE and one["scenario"] == figure.scenario
    }
    values = []
    for run in runs:
        value = _value(run, figure.path)
        if figure.is_added and value is not None:
            zero = _value(baseline.get(_round(run), {}), figure.path)
            value = None if zero is None else value - zero
        if value is not None:
            values.append(value * figure.scale)
    if not values:
        return len(runs) or None
    return Spread(statistics.median(values), min(values), max(values), len(values), len(runs) - len(values))


def complaints(measurements: list[dict[str, Any]]) -> dict[tuple[str, str], list[str]]:
    """What was wrong with the runs that are not valid, by system and scenario."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in measurements:
        if not one["is_valid"]:
            errors = one.get("figures", {}).get("errors", {})
            words = ", ".join(f"{count} x {name}" for name, count in errors.items())
            found.setdefault((one["system"], one["scenario"]), []).append(one.get("reason") or words or "no answer")
    return found


def _round(measurement: Mapping[str, Any]) -> tuple[int, int]:
    return measurement["invocation"], measurement["round"]


def _value(measurement: Mapping[str, Any], path: str) -> float | None:
    if not measurement.get("is_valid"):
        return None
    value: Any = measurement["figures"]
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return None if value is None else float(value)
