"""The named policies, as data: names of parts from `lbcore.policies.registry`. docs/policies.md says what each does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

DEFAULT_POLICY = "cost"

DEFAULT_DECODE_POLICY = "least_tokens"
"""Of requests whose prompt is computed already: each step of theirs reads the context of all that decode there."""

DEFAULT_FILTERS = ("role", "untried", "ready", "has_room", "objective")
"""In this order: `ready` lets silent workers pass only when no ready one of the right role is left untried."""


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """A policy by the names of its parts: one cost, or scorers with weights, or neither when the picker needs none."""

    picker: str = "best"
    cost: str | None = None
    scorers: Mapping[str, float] = field(default_factory=dict)
    """Weights by name; used when there is no cost."""
    parameters: Mapping[str, float] = field(default_factory=dict)
    """Values for parameters of the cost or the picker where they are not the part's own."""
    filters: tuple[str, ...] = DEFAULT_FILTERS
    binds_late: bool = False


PRESETS: Mapping[str, PolicySpec] = {
    "cost": PolicySpec(cost="marginal_delay", binds_late=True),
    # LMDeploy
    "random": PolicySpec(cost="declared_speed", picker="lottery"),
    "min_expected_latency": PolicySpec(cost="requests_per_speed"),
    "min_observed_latency": PolicySpec(cost="observed_latency"),
    # FastChat
    "lottery": PolicySpec(cost="declared_speed", picker="lottery"),
    "shortest_queue": PolicySpec(cost="requests_per_speed"),
    # FastDeploy
    "round_robin": PolicySpec(picker="round_robin"),
    "power_of_two": PolicySpec(cost="requests", picker="two_choices"),
    "process_tokens": PolicySpec(cost="queued_tokens"),
    "request_num": PolicySpec(cost="requests"),
    "fd_metrics_score": PolicySpec(cost="weighted_queue"),
    "fd_remote_metrics_score": PolicySpec(cost="weighted_queue"),
    "cache_aware": PolicySpec(cost="hit_and_load"),
    "remote_cache_aware": PolicySpec(cost="hit_and_load"),
    "cached_process_token": PolicySpec(cost="uncached_tokens"),
    # The field
    "least_requests": PolicySpec(cost="requests"),
    "least_tokens": PolicySpec(cost="tokens_in_flight"),
    "consistent_hash": PolicySpec(cost="hashed_key"),
    "prefix_affinity": PolicySpec(cost="gated_affinity"),
    "sglang_cache_aware": PolicySpec(cost="longest_match"),
    "gie": PolicySpec(scorers={"queue": 2.0, "kv": 2.0, "prefix": 3.0}),
    "dynamo_cost": PolicySpec(cost="prefill_and_decode"),
    "lmetric": PolicySpec(cost="tokens_times_batch"),
    "prequal": PolicySpec(cost="hot_and_cold"),
    "preble": PolicySpec(cost="exploit_or_explore"),
    "vllm_dp": PolicySpec(cost="weighted_queue", parameters={"waiting_weight": 4.0}),
    "aibrix_prefix": PolicySpec(cost="match_near_mean"),
}
