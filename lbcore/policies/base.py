"""What a policy is made of: the roles of its parts, and how they are put together. No part is here.

Parts hold parameters and nothing else; what changes from request to request comes in with the call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import ClassVar, Protocol, runtime_checkable

from lbcore.types import Agreement, Endpoint, PickRequest, RefusalReason, Snapshot


class Filter(Protocol):
    """Who may serve the request at all."""

    refusal: ClassVar[RefusalReason]
    """Why a request is refused of which this filter keeps nobody."""

    def keeps_all(self, request: PickRequest, agreement: Agreement) -> bool:
        """Whether it surely keeps every endpoint of a snapshot with this agreement, so that nobody need look at each.

        False is never wrong, only slower.
        """
        ...

    def keep(self, request: PickRequest, candidates: Sequence[Endpoint], now: float) -> Sequence[Endpoint]:
        """Those of the candidates that may, in their order; `now` is the snapshot's time."""
        ...


class Scorer(Protocol):
    """How well each candidate suits the request."""

    def score(self, request: PickRequest, candidates: Sequence[Endpoint]) -> Sequence[float]:
        """One number in 0..1 for each candidate, greater is better, whatever the order of the candidates."""
        ...


class Cost(Protocol):
    """What it costs to serve the request at each candidate."""

    def cost(self, request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot) -> Sequence[float]:
        """One finite number for each candidate, smaller is better, whatever the order of the candidates.

        The candidates are those of the snapshot's endpoints that all filters keep, in their order.
        """
        ...


@runtime_checkable
class Termed(Protocol):
    """A cost that can be taken apart, for people who ask why."""

    unit: ClassVar[str]
    """Of cost and terms; empty where they have none."""

    def terms(
        self, request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot
    ) -> Sequence[Mapping[str, float]]:
        """For each candidate the parts of its cost by their names; they add up to what `cost` says."""
        ...


class Picker(Protocol):
    """Who of the candidates is taken."""

    def rank(self, costs: Sequence[float], count: int, snapshot: Snapshot, rng: Random) -> Sequence[int]:
        """Up to `count` different indices into `costs`: first the pick, then who else could do it, best first.

        There is at least one candidate, and `count` is at least 1.
        """
        ...


def part_name(part: Filter | Scorer | Cost | Picker) -> str:
    """Its name in the tables of `lbcore.policies.registry`, which is that of its file."""
    return type(part).__module__.rpartition(".")[2]


MOST = 1e9
"""What a parameter may be at most, unless it says otherwise: costs stay finite."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number that whoever names a policy may set."""

    default: float
    least: float = 0.0
    """The smallest value it may have."""
    most: float = MOST
    """The greatest value it may have."""


def parameter(default: float, *, least: float = 0.0, most: float = MOST) -> float:
    """Declares a field of a part as a `Parameter`."""
    return field(default=default, metadata={Parameter: Parameter(default, least, most)})


@dataclass(frozen=True, slots=True)
class WeightedScores:
    """Scorers with their weights, together a cost: what the weighted scores lack, below 0."""

    unit: ClassVar[str] = ""
    scorers: tuple[tuple[Scorer, float], ...] = ()

    def cost(self, request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot) -> Sequence[float]:
        """The negative weighted sum; 0 for all when there are no scorers."""
        costs = [0.0] * len(candidates)
        for scorer, weight in self.scorers:
            scores = scorer.score(request, candidates)
            costs = [cost - weight * score for cost, score in zip(costs, scores, strict=True)]
        return costs

    def terms(
        self, request: PickRequest, candidates: Sequence[Endpoint], snapshot: Snapshot
    ) -> Sequence[Mapping[str, float]]:
        """Each weighted score below 0, by the name of its scorer."""
        columns = [
            (part_name(scorer), [0.0 - weight * score for score in scorer.score(request, candidates)])
            for scorer, weight in self.scorers
        ]
        return [{name: column[index] for name, column in columns} for index in range(len(candidates))]


@dataclass(frozen=True, slots=True)
class Policy:
    """A whole way to pick: filters one after another, then a cost (or scorers in its place), then a picker."""

    name: str
    """As `lbcore.policies.registry.build_policy` reads it: the preset, and the parameters that differ from its own."""
    filters: tuple[Filter, ...]
    cost: Cost
    picker: Picker
    binds_late: bool = False
    """Whether requests wait in the scheduler until a worker is nearly free. It takes a cost that counts what is held
    for each worker (`PickRequest.held_ms`) and says the same when asked again; others send every request at once."""
