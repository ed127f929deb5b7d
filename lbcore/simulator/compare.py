"""Many replays side by side: policies against workloads and loads, on all cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from lbcore.policies.presets import DEFAULT_POLICY
from lbcore.policies.registry import build_policy
from lbcore.simulator.capacity import at_load, calls_per_s
from lbcore.simulator.outcome import Objective, Outcome, summarise
from lbcore.simulator.replay import FleetSpec, Replay
from lbcore.simulator.workload import Workload

WARM_UP_SHARE = 0.05
"""Of the calls, the first, which find cold caches and empty queues and are not counted."""

MakeWorkload = Callable[[], Workload]


@dataclass(frozen=True, slots=True)
class Case:
    """One replay to be made."""

    workload: str
    load: float
    """Of the fleet's capacity for this workload; 0 plays it as it was recorded."""
    policy: str


@dataclass(frozen=True, slots=True)
class Result:
    """What one replay came to."""

    case: Case
    capacity: float
    """Calls per second that the fleet can take; 0 where nobody asked."""
    outcome: Outcome


def compare(
    workloads: Sequence[tuple[str, MakeWorkload]],
    loads: Sequence[float],
    policies: Sequence[str],
    fleet: FleetSpec,
    objective: Objective,
    *,
    seed: int = 1,
    processes: int | None = None,
) -> Iterator[Result]:
    """All of it, in order of workload, load and policy. Functions and values must be such that processes can be sent
    them."""
    with ProcessPoolExecutor(processes) as pool:
        needed = workloads if any(loads) else ()
        capacities = {name: pool.submit(_capacity, make, fleet, objective) for name, make in needed}
        found = {name: future.result() for name, future in capacities.items()}
        running = [
            pool.submit(_replay, make, Case(name, load, policy), found.get(name, 0.0), fleet, objective, seed)
            for name, make in workloads
            for load in loads
            for policy in policies
        ]
        for future in running:
            yield future.result()


def _capacity(make: MakeWorkload, fleet: FleetSpec, objective: Objective) -> float:
    return calls_per_s(make(), fleet, lambda: build_policy(DEFAULT_POLICY), objective.tpot_ms)


def _replay(
    make: MakeWorkload, case: Case, capacity: float, fleet: FleetSpec, objective: Objective, seed: int
) -> Result:
    workload = make()
    if case.load:
        workload = at_load(workload, case.load, capacity)
    policy = build_policy(case.policy)
    played = Replay(workload, fleet, policy, seed).run()
    return Result(case, capacity, summarise(played, objective, int(len(played.flights) * WARM_UP_SHARE)))
