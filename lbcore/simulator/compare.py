"""Many replays side by side: policies against workloads and loads, on all cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from lbcore.policies.presets import DEFAULT_POLICY
from lbcore.policies.registry import build_policy
from lbcore.simulator.capacity import at_load, capacity
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
    """What the fleet can take of it: calls per second, or users of a closed loop; 0 where nobody asked."""
    users: int
    """Of a closed loop; 0 for an open one."""
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
    capacities: Mapping[str, float] | None = None,
) -> Iterator[Result]:
    """All of it, in order of workload, load and policy. Functions and values must be such that processes can be sent
    them. What the fleet can take of a workload is searched for unless `capacities` has it."""
    with ProcessPoolExecutor(processes) as pool:
        found = dict(capacities or {})
        needed = [(name, make) for name, make in workloads if any(loads) and name not in found]
        searches = {name: pool.submit(_capacity, make, fleet, objective) for name, make in needed}
        found |= {name: future.result() for name, future in searches.items()}
        running = [
            pool.submit(_replay, make, Case(name, load, policy), found.get(name, 0.0), fleet, objective, seed)
            for name, make in workloads
            for load in loads
            for policy in policies
        ]
        for future in running:
            yield future.result()


def _capacity(make: MakeWorkload, fleet: FleetSpec, objective: Objective) -> float:
    return capacity(make(), fleet, lambda: build_policy(DEFAULT_POLICY), objective.tpot_ms)


def _replay(make: MakeWorkload, case: Case, taken: float, fleet: FleetSpec, objective: Objective, seed: int) -> Result:
    workload = make()
    if case.load:
        workload = at_load(workload, case.load, taken)
    policy = build_policy(case.policy)
    played = Replay(workload, fleet, policy, seed).run()
    return Result(case, taken, workload.users, summarise(played, objective, int(len(played.flights) * WARM_UP_SHARE)))
