"""The tables of parts, and policies made from them. A new part is one file in its folder and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import TypeVar

from lbcore.errors import ConfigError
from lbcore.policies.base import Cost, Filter, Parameter, Picker, Policy, Scorer, WeightedScores
from lbcore.policies.costs.declared_speed import DeclaredSpeed
from lbcore.policies.costs.exploit_or_explore import ExploitOrExplore
from lbcore.policies.costs.gated_affinity import GatedAffinity
from lbcore.policies.costs.hashed_key import HashedKey
from lbcore.policies.costs.hit_and_load import HitAndLoad
from lbcore.policies.costs.hot_and_cold import HotAndCold
from lbcore.policies.costs.longest_match import LongestMatch
from lbcore.policies.costs.marginal_delay import MarginalDelay
from lbcore.policies.costs.match_near_mean import MatchNearMean
from lbcore.policies.costs.observed_latency import ObservedLatency
from lbcore.policies.costs.prefill_and_decode import PrefillAndDecode
from lbcore.policies.costs.queued_tokens import QueuedTokens
from lbcore.policies.costs.requests import Requests
from lbcore.policies.costs.requests_per_speed import RequestsPerSpeed
from lbcore.policies.costs.tokens_in_flight import TokensInFlight
from lbcore.policies.costs.tokens_times_batch import TokensTimesBatch
from lbcore.policies.costs.uncached_tokens import UncachedTokens
from lbcore.policies.costs.weighted_queue import WeightedQueue
from lbcore.policies.filters.has_room import HasRoom
from lbcore.policies.filters.objective import MeetsObjective
from lbcore.policies.filters.ready import Ready
from lbcore.policies.filters.role import TakesPhase
from lbcore.policies.filters.untried import Untried
from lbcore.policies.parse import parse_policy, written_policy
from lbcore.policies.pickers.best import Best
from lbcore.policies.pickers.lottery import Lottery
from lbcore.policies.pickers.round_robin import RoundRobin
from lbcore.policies.pickers.two_choices import TwoChoices
from lbcore.policies.presets import PRESETS
from lbcore.policies.scorers.kv import Kv
from lbcore.policies.scorers.prefix import Prefix
from lbcore.policies.scorers.queue import Queue

P = TypeVar("P")

FILTERS: Mapping[str, Callable[[], Filter]] = {
    "has_room": HasRoom,
    "objective": MeetsObjective,
    "ready": Ready,
    "role": TakesPhase,
    "untried": Untried,
}

SCORERS: Mapping[str, Callable[[], Scorer]] = {
    "kv": Kv,
    "prefix": Prefix,
    "queue": Queue,
}

COSTS: Mapping[str, Callable[..., Cost]] = {
    "declared_speed": DeclaredSpeed,
    "exploit_or_explore": ExploitOrExplore,
    "gated_affinity": GatedAffinity,
    "hashed_key": HashedKey,
    "hit_and_load": HitAndLoad,
    "hot_and_cold": HotAndCold,
    "longest_match": LongestMatch,
    "marginal_delay": MarginalDelay,
    "match_near_mean": MatchNearMean,
    "observed_latency": ObservedLatency,
    "prefill_and_decode": PrefillAndDecode,
    "queued_tokens": QueuedTokens,
    "requests": Requests,
    "requests_per_speed": RequestsPerSpeed,
    "tokens_in_flight": TokensInFlight,
    "tokens_times_batch": TokensTimesBatch,
    "uncached_tokens": UncachedTokens,
    "weighted_queue": WeightedQueue,
}

PICKERS: Mapping[str, Callable[..., Picker]] = {
    "best": Best,
    "lottery": Lottery,
    "round_robin": RoundRobin,
    "two_choices": TwoChoices,
}


def build_policy(text: str) -> Policy:
    """The policy that is written so: a preset's name, or `name(parameter=value, parameter=value)`.

    Parameters are the weights of its scorers and the fields that its cost and its picker declare with `parameter`.
    ConfigError says what is wrong with the text, and what there is.
    """
    try:
        return _build(text)
    except ValueError as error:
        raise ConfigError(f"policy: {text!r} {error}") from None


def check_policy(text: str) -> str | None:
    """What is wrong with the text as the end of a sentence, or None: a check for `lbcore.config.option`."""
    try:
        _build(text)
    except ValueError as error:
        return str(error)
    return None


def policy_parameters(name: str) -> dict[str, Parameter]:
    """What may be given for the preset of this name."""
    spec = PRESETS[name]
    if spec.cost is None:
        found = {scorer: Parameter(weight) for scorer, weight in spec.scorers.items()}
    else:
        found = _declared(COSTS[spec.cost])
    found |= _declared(PICKERS[spec.picker])
    return {key: replace(item, default=spec.parameters.get(key, item.default)) for key, item in found.items()}


def _build(text: str) -> Policy:
    """Raises ValueError with the end of a sentence."""
    name, given = parse_policy(text)
    spec = PRESETS.get(name)
    if spec is None:
        raise ValueError(f"is no policy; there are {', '.join(sorted(PRESETS))}")
    known = policy_parameters(name)
    for key, value in given.items():
        if key not in known:
            there_are = f"there are {', '.join(known)}" if known else "it has none"
            raise ValueError(f"has no parameter {key!r}; {there_are}")
        if value < known[key].least:
            raise ValueError(f"has {value:g} for {key}, which is below {known[key].least:g}")
        if value > known[key].most:
            raise ValueError(f"has {value:g} for {key}, which is above {known[key].most:g}")
    values = {key: given.get(key, item.default) for key, item in known.items()}
    if spec.cost is None:
        cost: Cost = WeightedScores(tuple((SCORERS[scorer](), values[scorer]) for scorer in spec.scorers))
    else:
        cost = _part(COSTS[spec.cost], values)
    return Policy(
        name=written_policy(name, {key: value for key, value in values.items() if value != known[key].default}),
        filters=tuple(FILTERS[part]() for part in spec.filters),
        cost=cost,
        picker=_part(PICKERS[spec.picker], values),
        binds_late=spec.binds_late,
    )


def _declared(part: Callable[..., object]) -> dict[str, Parameter]:
    """The parameters of a part by the names of their fields."""
    items = fields(part) if is_dataclass(part) else ()
    return {item.name: item.metadata[Parameter] for item in items if Parameter in item.metadata}


def _part(part: Callable[..., P], values: Mapping[str, float]) -> P:
    """The part with those of the values that are its own."""
    return part(**{key: values[key] for key in _declared(part)})
