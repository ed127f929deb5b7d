"""Replays: nothing is lost, nothing is made up, and a seed says it all."""

from __future__ import annotations

import pytest

from lbcore.policies.presets import PRESETS
from lbcore.policies.registry import build_policy
from lbcore.router import QueueLimits
from lbcore.simulator.generate import multi_turn, one_prefix, poisson, system_prompts
from lbcore.simulator.outcome import Objective, summarise
from lbcore.simulator.replay import ENDLESS, TOO_LONG, FleetSpec, Incident, Played, Replay
from lbcore.simulator.worker import MODEL, EngineSpec, Flight, SimWorker
from lbcore.simulator.workload import Call, Conversation, Workload
from lbcore.types import PrefixReport, Ticket
from worker.engines.sim.step_time import StepTime

QUICK = EngineSpec(step_time=StepTime(base_ms=10.0, token_ms=0.1, sequence_ms=0.1), kv_tokens=100_000, max_num_seqs=32)


def play(workload: Workload, fleet: FleetSpec, policy: str = "cost", limits: QueueLimits = ENDLESS) -> Played:
    return Replay(workload, fleet, build_policy(policy), limits=limits).run()


def test_a_lone_request_takes_what_its_steps_take() -> None:
    workload = Workload("one", [Conversation("a", 1.0, (Call(900, 11),))])
    (flight,) = play(workload, FleetSpec(workers=1, engine=QUICK, network_s=0.002)).flights
    assert flight.asked_at == 1.0
    assert flight.first_at == pytest.approx(1.0 + 0.002 + 0.100)
    assert flight.finished_at == pytest.approx(flight.first_at + 10 * 0.010)


@pytest.mark.parametrize("policy", sorted(PRESETS))
def test_every_call_is_answered_whole_whatever_the_policy(policy: str) -> None:
    workload = multi_turn(120).faster(8.0)
    played = play(workload, FleetSpec(workers=3, engine=QUICK), policy)
    assert len(played.flights) == workload.calls
    for flight in played.flights:
        assert not flight.refused
        assert flight.asked_at < flight.first_at <= flight.finished_at
    assert not any(worker.flights for worker in played.workers)


@pytest.mark.parametrize("report_interval_s", [0.0, 0.1, 1.0])
def test_a_seed_gives_the_same_replay_again(report_interval_s: float) -> None:
    fleet = FleetSpec(workers=4, engine=QUICK, report_interval_s=report_interval_s)
    first, second = (summarise(play(poisson(300).faster(20.0), fleet)) for _ in range(2))
    assert first == second


def test_prompt_tokens_are_either_cached_or_computed() -> None:
    # With room for all, so that nobody is preempted and computed again.
    roomy = EngineSpec(step_time=QUICK.step_time, kv_tokens=10_000_000)
    played = play(system_prompts(200).faster(3.0), FleetSpec(workers=2, engine=roomy))
    prompts = sum(flight.call.input_tokens for flight in played.flights)
    cached = sum(flight.cached_tokens for flight in played.flights)
    assert sum(worker.prefilled_tokens for worker in played.workers) == prompts - cached
    assert cached > 0


def test_in_a_closed_loop_no_more_calls_are_in_flight_than_there_are_users() -> None:
    talks = [Conversation(str(number), 0.0, (Call(100, 5), Call(200, 5, think_s=0.5))) for number in range(30)]
    played = play(Workload("closed", talks, users=4), FleetSpec(workers=2, engine=QUICK))
    moments = sorted(
        [(flight.asked_at, 1) for flight in played.flights] + [(flight.finished_at, -1) for flight in played.flights]
    )
    in_flight = most = 0
    for _, change in moments:
        in_flight += change
        most = max(most, in_flight)
    assert most <= 4
    # It ends when half of the users have nothing left to do, before the last conversations are over.
    assert 55 <= len(played.flights) <= 60


def test_a_second_call_comes_when_the_first_is_answered_and_thought_about() -> None:
    talk = Conversation("a", 0.0, (Call(100, 5), Call(200, 5, think_s=2.0)))
    first, second = play(Workload("talk", [talk]), FleetSpec(workers=1, engine=QUICK)).flights
    assert second.asked_at == pytest.approx(first.finished_at + 2.0)


def test_what_a_dying_worker_had_is_served_by_others_and_a_restarted_one_is_used_again() -> None:
    incidents = (Incident(2.0, 0, "die"), Incident(6.0, 0, "start"))
    fleet = FleetSpec(workers=2, engine=QUICK, incidents=incidents)
    played = play(poisson(60).faster(4.0), fleet)
    assert all(flight.finished_at > 0 for flight in played.flights)
    (dead,) = played.dead
    after = {flight.worker for flight in played.flights if 2.5 < flight.asked_at < 5.5}
    assert after == {"w001"}
    assert {flight.worker for flight in played.flights if flight.asked_at > 8.0} == {"w000", "w001"}
    assert dead.epoch != next(worker for worker in played.workers if worker.name == "w000").epoch


def test_a_slowed_worker_takes_longer_and_then_does_not() -> None:
    talks = [Conversation(str(number), float(number), (Call(500, 2),)) for number in range(30)]
    incidents = (Incident(9.5, 0, "slow", 5.0), Incident(19.5, 0, "slow", 1.0))
    played = play(Workload("slow", talks), FleetSpec(workers=1, engine=QUICK, incidents=incidents))
    took = [flight.first_at - flight.asked_at for flight in played.flights]
    assert took[5] == pytest.approx(took[25], rel=0.05)
    assert took[15] == pytest.approx(5 * took[5], rel=0.05)


def test_a_full_queue_refuses() -> None:
    # Nobody is kept back from a worker whose speed nobody knows: the first shows it.
    first = Conversation("first", 0.0, (Call(2000, 5),))
    burst = Workload("burst", [first, *(Conversation(str(number), 10.0, (Call(2000, 5),)) for number in range(50))])
    played = play(burst, FleetSpec(workers=1, engine=QUICK), limits=QueueLimits(max_requests=10))
    outcome = summarise(played)
    assert outcome.refused > 0
    assert {flight.refused for flight in played.flights} == {"", "queue_full"}
    assert all(flight.finished_at > 0 for flight in played.flights if not flight.refused)


def test_an_objective_divides_what_was_served_well_from_the_rest() -> None:
    talks = [
        Conversation(str(number), 10.0 * number, (Call(900 * (1 + 4 * (number % 2)), 11),)) for number in range(10)
    ]
    played = play(Workload("two", talks), FleetSpec(workers=1, engine=QUICK))
    assert summarise(played, Objective(ttft_ms=200)).goodput == 0.5
    assert summarise(played, Objective(ttft_ms=2000)).goodput == 1.0
    assert summarise(played, Objective(ttft_ms=2000, tpot_ms=9)).goodput == 0.0


def test_one_shared_prefix_does_not_collect_all_on_one_worker() -> None:
    outcome = summarise(play(one_prefix(300).faster(10.0), FleetSpec(workers=4, engine=QUICK)), skip=20)
    # All on one would be 4.
    assert outcome.imbalance < 1.8
    assert outcome.hit_rate > 0.7


def test_what_no_cache_could_hold_is_refused_by_the_engine_and_the_conversation_goes_on() -> None:
    talk = Conversation("a", 0.0, (Call(100_001, 5), Call(100, 5, think_s=1.0)))
    played = play(Workload("long", [talk], block_tokens=100), FleetSpec(workers=2, engine=QUICK))
    refused, served = played.flights
    assert (refused.refused, served.refused) == (TOO_LONG, "")
    assert served.finished_at > 1.0
    outcome = summarise(played)
    assert (outcome.calls, outcome.refused, outcome.goodput) == (2, 1, 0.5)


def test_a_replay_can_end_before_its_calls() -> None:
    workload = poisson(200)
    fleet = FleetSpec(workers=2, engine=QUICK)
    played = Replay(workload, fleet, build_policy("cost")).run(until_s=50.0)
    assert 0 < len(played.flights) < 100
    assert all(0 <= flight.finished_at <= 50.0 for flight in played.flights)


@pytest.mark.parametrize("policy", ["cost", "lmetric", "least_requests"])
@pytest.mark.parametrize("speed", [3.0, 12.0])
def test_steps_and_reports_that_nobody_looks_at_change_nothing_by_being_put_off(policy: str, speed: float) -> None:
    workload = multi_turn(150).faster(speed)
    incidents = (Incident(3.0, 1, "slow", 3.0), Incident(6.0, 0, "die"), Incident(8.0, 0, "start"))
    fleet = FleetSpec(workers=3, engine=QUICK, incidents=incidents)

    def times(replay: Replay) -> list[tuple[float, ...]]:
        return [
            (flight.asked_at, flight.sent_at, flight.first_at, flight.finished_at, flight.cached_tokens)
            for flight in replay.run().flights
        ]

    eager = Replay(workload, fleet, build_policy(policy), puts_off=False)
    lazy = Replay(workload, fleet, build_policy(policy))
    assert times(eager) == times(lazy)


def test_a_worker_tells_of_its_cache_by_the_blocks_that_prompts_came_with() -> None:
    worker = SimWorker("w", QUICK, 128, 1, reports_prefixes=True)
    assert worker.prefix_report() == PrefixReport(1, MODEL, whole=True)
    answer_included = Call(256, 130, (1, 2, 3))
    worker.receive(Flight(0, answer_included, 0.0, ticket=Ticket(1)))
    while worker.step(worker.ends_at):
        worker.end_step(worker.ends_at)
    assert worker.prefix_report() == PrefixReport(2, MODEL, stored=(1, 2))
    assert worker.prefix_report() is None
    # The answer is in the cache already when the prompt comes that says what its blocks are called.
    worker.receive(Flight(1, Call(512, 1, (1, 2, 3, 4)), 0.0, ticket=Ticket(2)))
    assert worker.prefix_report() == PrefixReport(3, MODEL, stored=(3,))


def test_with_prefix_events_every_call_is_answered_and_more_of_a_crowded_cache_is_found() -> None:
    crowded = EngineSpec(step_time=QUICK.step_time, kv_tokens=60_000, max_num_seqs=32)
    workload = system_prompts(400).faster(3.0)
    told = play(workload, FleetSpec(workers=3, engine=crowded, prefix_events=True))
    blind = play(workload, FleetSpec(workers=3, engine=crowded), "least_requests")
    assert len(told.flights) == workload.calls
    assert not any(flight.refused for flight in told.flights)
    assert summarise(told).hit_rate > summarise(blind).hit_rate
