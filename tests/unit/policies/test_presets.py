"""What every policy promises, and that two names for one thing are one thing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import inf, isfinite, nan
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings

from lbcore.pick import pick
from lbcore.policies.presets import PRESETS
from lbcore.policies.registry import build_policy, policy_parameters
from lbcore.types import Capacity, Endpoint, PickRequest, Routed, Snapshot
from tests.fleet import snapshot
from tests.unit.policies.workers import LARGE, prompt, scenes, worker

laws = settings(derandomize=True, max_examples=60, deadline=None, database=None)
every_policy = pytest.mark.parametrize("name", sorted(PRESETS))

SIZE = 8
PICKS = 1600
SHARE = PICKS / SIZE
LUCK = 66
"""Five standard deviations of a share: 5 · √(1600 · 1/8 · 7/8)."""

Scene = tuple[PickRequest, list[Endpoint]]

PAGE = Path(__file__).resolve().parents[3] / "docs" / "policies.md"


def question(number: int) -> PickRequest:
    """One of many requests that are alike in all but their key, and of which nobody holds anything."""
    return prompt(1000, session_id=f"session {number}")


def picks(name: str, fleet: list[Endpoint], ask: Callable[[int], PickRequest] = question) -> Counter[str]:
    """Who is picked how often, of workers that stay as they are."""
    policy, rng = build_policy(name), Random(1)
    found: Counter[str] = Counter()
    for number in range(PICKS):
        decision = pick(ask(number), snapshot(*fleet, pick_count=number), policy, rng)
        assert isinstance(decision, Routed)
        found[decision.endpoint.worker_id] += 1
    return found


def busy(name: str, capacity: Capacity = LARGE) -> Endpoint:
    return worker(
        name,
        running=20,
        queued=4,
        sent=1,
        queued_tokens=8000,
        sent_tokens=1000,
        tokens=60_000,
        kv_used_blocks=800,
        step_ms=30,
        wait_ms=900,
        latency_ms=9000,
        latency_requests=20,
        capacity=capacity,
    )


@every_policy
@laws
@given(scene=scenes())
def test_every_candidate_has_a_finite_cost(name: str, scene: Scene) -> None:
    request, candidates = scene
    found = build_policy(name).cost.cost(request, candidates, snapshot(*candidates))
    assert len(found) == len(candidates)
    assert all(isfinite(cost) for cost in found)


@pytest.mark.parametrize(
    "text",
    [
        f"{name}({key}={bound:g})"
        for name in sorted(PRESETS)
        for key, item in policy_parameters(name).items()
        for bound in (item.least, item.most)
    ],
)
@settings(laws, max_examples=10)
@given(scene=scenes())
def test_costs_are_finite_up_to_the_ends_of_every_parameter(text: str, scene: Scene) -> None:
    request, candidates = scene
    found = build_policy(text).cost.cost(request, candidates, snapshot(*candidates))
    assert all(isfinite(cost) for cost in found)


@every_policy
@laws
@given(scene=scenes())
def test_the_order_of_the_candidates_does_not_matter(name: str, scene: Scene) -> None:
    request, candidates = scene
    cost = build_policy(name).cost.cost
    forward = list(cost(request, candidates, snapshot(*candidates)))
    backward = list(cost(request, candidates[::-1], snapshot(*candidates[::-1])))
    assert backward[::-1] == forward


@every_policy
def test_equal_workers_have_equal_shares(name: str) -> None:
    for fleet in ([worker(f"w{number}") for number in range(SIZE)], [busy(f"w{number}") for number in range(SIZE)]):
        found = picks(name, fleet)
        assert all(abs(found[item.worker_id] - SHARE) < LUCK for item in fleet)


@every_policy
def test_equal_workers_have_equal_shares_of_a_prompt_that_all_hold(name: str) -> None:
    fleet = [worker(f"w{number}") for number in range(SIZE)]

    def held_by_all(number: int) -> PickRequest:
        return prompt(session_id=f"session {number}")._replace(hit_tokens={item.worker_id: 900.0 for item in fleet})

    found = picks(name, fleet, held_by_all)
    assert all(abs(found[item.worker_id] - SHARE) < LUCK for item in fleet)


@every_policy
@pytest.mark.parametrize("idle", ["w0", "w3", "w7"])
def test_an_idle_worker_in_a_busy_fleet_has_at_least_its_share(name: str, idle: str) -> None:
    fleet = [worker(item) if item == idle else busy(item) for item in (f"w{number}" for number in range(SIZE))]
    assert picks(name, fleet)[idle] > SHARE - LUCK


@every_policy
def test_an_idle_worker_has_its_share_where_engines_say_little(name: str) -> None:
    # Requests are counted by the worker itself; the rest depends on the engine.
    fleet = [worker(f"w{number}", running=20 if number else 0, capacity=Capacity(64, 1000)) for number in range(SIZE)]
    assert picks(name, fleet)["w0"] > SHARE - LUCK


@every_policy
@pytest.mark.parametrize("speed", [0.0, -1.0, nan, inf, -inf, 5e-324, 1e308])
def test_any_declared_speed_is_survived(name: str, speed: float) -> None:
    fleet = [worker("a", running=3, speed=speed), worker("b", speed=2), worker("c", running=1)]
    assert sum(picks(name, fleet).values()) == PICKS


@every_policy
def test_an_empty_prompt_goes_to_anybody(name: str) -> None:
    found = picks(name, [worker(f"w{number}") for number in range(SIZE)], lambda number: prompt(0))
    assert len(found) == SIZE


@every_policy
def test_a_worker_alone_gets_everything(name: str) -> None:
    assert picks(name, [busy("only")]) == {"only": PICKS}


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"random", "lottery", "round_robin", "consistent_hash"}))
def test_no_herd_runs_to_the_worker_that_was_free_at_the_last_report(name: str) -> None:
    policy, rng = build_policy(name), Random(1)
    sent = dict.fromkeys((f"w{number}" for number in range(4)), 0)
    for number in range(40):
        fleet = [
            worker(item, sent=count, sent_tokens=1000 * count, wait_ms=100 * count) for item, count in sent.items()
        ]
        decision = pick(question(number), Snapshot(0.0, number, tuple(fleet)), policy, rng)
        assert isinstance(decision, Routed)
        sent[decision.endpoint.worker_id] += 1
    assert max(sent.values()) - min(sent.values()) <= 6


@pytest.mark.parametrize(
    "names",
    [
        ("random", "lottery"),
        ("min_expected_latency", "shortest_queue"),
        ("request_num", "least_requests"),
        ("fd_metrics_score", "fd_remote_metrics_score"),
        ("cache_aware", "remote_cache_aware"),
    ],
)
def test_names_of_different_origin_may_mean_the_same(names: tuple[str, str]) -> None:
    one, other = (build_policy(name) for name in names)
    assert (one.cost, one.picker, one.filters) == (other.cost, other.picker, other.filters)


def test_random_shares_follow_declared_speeds() -> None:
    found = picks("random", [worker("a", speed=1, running=50), worker("b", speed=2), worker("c", speed=5)])
    # Five standard deviations are at most 5 · √(1600 / 4) = 100.
    assert all(abs(found[name] - PICKS * share) < 100 for name, share in (("a", 1 / 8), ("b", 2 / 8), ("c", 5 / 8)))


def test_gie_adds_queue_cache_and_prefix_up() -> None:
    cost = build_policy("gie").cost
    fleet = worker("a", queued=4, kv_used_blocks=500), worker("b", queued=2, kv_used_blocks=250)
    request = prompt(1000, a=500)
    assert list(cost.cost(request, fleet, snapshot(*fleet))) == [-(0 + 2 * 0.5 + 3 * 0.5), -(2 * 1 + 2 * 0.75)]


@every_policy
def test_the_page_for_readers_has_a_row_with_the_parameters(name: str) -> None:
    if name == "cost":
        assert "## cost (the default)" in PAGE.read_text()
        return
    (row,) = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{name}` |")]
    assert row.count("|") in {5, 6}
    if "the same" not in row:
        assert all(f"`{key}` {item.default:g}" in row for key, item in policy_parameters(name).items())
