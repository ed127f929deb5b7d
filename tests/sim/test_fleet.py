"""What the default policy promises of a fleet, played out in the simulator: statements that hold with room to spare."""

from __future__ import annotations

from collections.abc import Callable

from lbcore.policies.registry import build_policy
from lbcore.router import QueueLimits
from lbcore.simulator.generate import bursts, one_prefix, poisson
from lbcore.simulator.outcome import Outcome, summarise
from lbcore.simulator.replay import ENDLESS, FleetSpec, Incident, Played, Replay
from lbcore.simulator.workload import Workload

AT_ONCE = QueueLimits(late_binding=False)


def play(workload: Workload, fleet: FleetSpec, policy: str = "cost", limits: QueueLimits = ENDLESS) -> Played:
    return Replay(workload, fleet, build_policy(policy), limits=limits).run()


def outcome(played: Played) -> Outcome:
    return summarise(played, skip=50)


def share(played: Played, worker: str, begin_s: float, end_s: float) -> float:
    asked = [flight for flight in played.flights if begin_s <= flight.asked_at < end_s]
    return sum(flight.worker == worker for flight in asked) / len(asked)


def test_workers_of_half_the_speed_get_about_half_the_requests() -> None:
    played = play(poisson(1500).faster(10.0), FleetSpec(workers=4, speeds=(1.0, 1.0, 0.5, 0.5)))
    slow = sum(flight.worker in ("w002", "w003") for flight in played.flights[50:])
    # A third by their speed.
    assert 0.15 < slow / len(played.flights[50:]) < 0.4


def test_a_worker_that_slows_down_loses_its_share_within_two_seconds_and_gets_it_back() -> None:
    incidents = (Incident(20.0, 0, "slow", 5.0), Incident(40.0, 0, "slow", 1.0))
    played = play(poisson(1000).faster(15.0), FleetSpec(workers=4, incidents=incidents))
    assert share(played, "w000", 10.0, 20.0) > 0.15
    assert share(played, "w000", 22.0, 40.0) < 0.1
    assert share(played, "w000", 45.0, 60.0) > 0.15


def test_reports_a_second_old_cost_little() -> None:
    workload = bursts(1000).faster(10.0)
    fresh, late = (
        outcome(play(workload, FleetSpec(workers=4, report_delay_s=delay_s))).ttft.mean for delay_s in (0.0, 1.0)
    )
    assert late < 1.15 * fresh


def test_waiting_in_the_scheduler_pays_in_bursts_and_costs_nothing_where_there_is_room() -> None:
    fleet = FleetSpec(workers=4)

    def gain(make: Callable[[int], Workload], factor: float) -> float:
        workload = make(1000).faster(factor)
        held = outcome(play(workload, fleet)).ttft.mean
        return held / outcome(play(workload, fleet, limits=AT_ONCE)).ttft.mean

    assert gain(bursts, 8.0) < 0.85
    assert gain(poisson, 6.0) < 1.03


def test_prompts_that_all_begin_alike_use_the_whole_fleet() -> None:
    played = play(one_prefix(1000).faster(15.0), FleetSpec(workers=4))
    assert all(share(played, f"w{number:03}", 5.0, 60.0) > 0.15 for number in range(4))


def test_a_worker_that_dies_costs_no_request_and_comes_back_into_its_share() -> None:
    incidents = (Incident(15.0, 1, "die"), Incident(30.0, 1, "start"))
    played = play(poisson(1000).faster(15.0), FleetSpec(workers=4, incidents=incidents))
    assert all(flight.finished_at > 0 and not flight.refused for flight in played.flights)
    assert share(played, "w001", 16.0, 30.0) == 0.0
    assert share(played, "w001", 40.0, 60.0) > 0.15
