"""The tables of parts, and policies made from them. A new part is one file in its folder and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lbcore.errors import ConfigError
from lbcore.policies.base import Cost, Filter, Picker, Policy, Scorer, WeightedScores
from lbcore.policies.costs.marginal_delay import MarginalDelay
from lbcore.policies.filters.has_room import HasRoom
from lbcore.policies.filters.ready import Ready
from lbcore.policies.filters.role import TakesWholeRequests
from lbcore.policies.filters.untried import Untried
from lbcore.policies.pickers.best import Best
from lbcore.policies.pickers.random_choice import RandomChoice
from lbcore.policies.pickers.round_robin import RoundRobin
from lbcore.policies.pickers.two_choices import TwoChoices
from lbcore.policies.presets import PRESETS
from lbcore.policies.scorers.least_requests import LeastRequests
from lbcore.policies.scorers.prefix_hit import PrefixHit

FILTERS: Mapping[str, Callable[[], Filter]] = {
    "has_room": HasRoom,
    "ready": Ready,
    "role": TakesWholeRequests,
    "untried": Untried,
}

SCORERS: Mapping[str, Callable[[], Scorer]] = {
    "least_requests": LeastRequests,
    "prefix_hit": PrefixHit,
}

COSTS: Mapping[str, Callable[[], Cost]] = {
    "marginal_delay": MarginalDelay,
}

PICKERS: Mapping[str, Callable[[], Picker]] = {
    "best": Best,
    "random_choice": RandomChoice,
    "round_robin": RoundRobin,
    "two_choices": TwoChoices,
}


def build_policy(name: str) -> Policy:
    """The policy of this name; ConfigError when there is none."""
    spec = PRESETS.get(name)
    if spec is None:
        raise ConfigError(f"policy: there is no {name!r}; there are {', '.join(sorted(PRESETS))}")
    scores = WeightedScores(tuple((SCORERS[scorer](), weight) for scorer, weight in spec.scorers.items()))
    return Policy(
        name=name,
        filters=tuple(FILTERS[part]() for part in spec.filters),
        cost=scores if spec.cost is None else COSTS[spec.cost](),
        picker=PICKERS[spec.picker](),
    )
