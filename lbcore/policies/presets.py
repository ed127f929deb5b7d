"""The named policies, as data: names of parts from `lbcore.policies.registry`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

DEFAULT_POLICY = "cost"

DEFAULT_FILTERS = ("role", "untried", "ready", "has_room")
"""In this order: `ready` lets silent workers pass only when no ready one of the right role is left untried."""


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """A policy by the names of its parts: one cost, or scorers with weights, or neither when the picker needs none."""

    picker: str
    cost: str | None = None
    scorers: Mapping[str, float] = field(default_factory=dict)
    """Weights by name; used when there is no cost."""
    filters: tuple[str, ...] = DEFAULT_FILTERS


PRESETS: Mapping[str, PolicySpec] = {
    "cost": PolicySpec(cost="marginal_delay", picker="best"),
    "least_requests": PolicySpec(scorers={"least_requests": 1.0}, picker="best"),
    "power_of_two": PolicySpec(scorers={"least_requests": 1.0}, picker="two_choices"),
    "prefix_affinity": PolicySpec(scorers={"prefix_hit": 2.0, "least_requests": 1.0}, picker="best"),
    "random": PolicySpec(picker="random_choice"),
    "round_robin": PolicySpec(picker="round_robin"),
}
