"""Decisions as lines: what was read from one decides the same again."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore.adapters import Loading
from lbcore.decisions import WHOLE_EVERY, Decided, Reader, Recorder, outcome, record, rerun
from lbcore.pick import pick
from lbcore.policies.base import Policy
from lbcore.policies.presets import PRESETS
from lbcore.policies.registry import build_policy
from lbcore.pool import WorkerPool
from lbcore.types import (
    Agreement,
    Endpoint,
    LoadReport,
    PickRequest,
    RefusalReason,
    Refused,
    Role,
    Routed,
    Snapshot,
    Ticket,
)
from tests.fleet import MODEL, endpoint, scenes, snapshot
from tests.sim.test_decisions import Life

every_policy = pytest.mark.parametrize("name", sorted(PRESETS))
REQUEST = PickRequest(MODEL, 1000)


def decided(policy: Policy, request: PickRequest, taken: Snapshot, chance: int) -> Decided:
    return Decided("r", request, taken, policy, chance, pick(request, taken, policy, Random(chance)))


@every_policy
def test_hundreds_of_decisions_of_a_life_are_made_again_from_their_lines(name: str) -> None:
    # With sessions, waiting work and priorities, so that whatever a policy may read is there.
    life, policy, recorder, reader = Life(7), build_policy(name), Recorder(), Reader()
    alike = routed = 0
    for step in range(300):
        if sum(one.connected and not one.draining for one in life.workers.values()) < 8:
            life.register()
        for _ in range(life.rng.randrange(4)):
            life.report(life.rng.choice([*life.workers.values()]))
        if life.rng.random() < 0.1:
            life.leave()
        facts = life.question()
        held_ms = {worker_id: life.rng.random() * 100 for worker_id in life.workers if life.rng.random() < 0.1}
        session_id = life.rng.choice(("", "s1", "s2"))
        request = life.pool.pick_request(facts)._replace(held_ms=held_ms, session_id=session_id)
        taken = life.pool.snapshot(MODEL, 0.0)._replace(waiting_requests=life.rng.randrange(5))
        made = decided(policy, request, taken, life.rng.getrandbits(64))
        line = recorder.line(made)
        told = reader.read(orjson.loads(orjson.dumps(line)))
        assert told is not None
        assert told.request == request
        again = rerun(told)
        assert outcome(again) == outcome(made.decision) == told.outcome
        # And from a line of its own, through another writer of JSON.
        assert outcome(rerun(json.loads(json.dumps(record(made))))) == outcome(made.decision)
        alike += 1
        if isinstance(made.decision, Routed):
            routed += 1
            life.book(Ticket(step + 1), facts, made.decision)
    assert (alike, routed > 100) == (300, True)


@every_policy
@settings(derandomize=True, max_examples=30, deadline=None, database=None)
@given(scene=scenes(), pick_count=st.integers(0, 100), chance=st.integers(0, 2**64 - 1))
def test_any_decision_is_made_again_from_its_line(
    name: str, scene: tuple[PickRequest, list[Endpoint]], pick_count: int, chance: int
) -> None:
    request, endpoints = scene
    made = decided(build_policy(name), request, Snapshot(12.5, pick_count, tuple(endpoints)), chance)
    again = rerun(orjson.loads(orjson.dumps(record(made))))
    assert outcome(again) == outcome(made.decision)


def test_a_line_holds_the_request_and_the_endpoints_as_the_policy_saw_them() -> None:
    load = LoadReport(sequence=3, running_requests=2, step_time_ms=9.5)
    one = endpoint("w0", load=load, credit_requests=1, recent_ms=7.0)
    taken = Snapshot(3.25, 4, (one,), Agreement(True, True, False), 9)
    request = PickRequest(MODEL, 10, {one.worker_id: 2.5}, 7, -3, "s", frozenset({one.worker_id}), 2**64 - 1)
    request = request._replace(phase=Role.DECODE, loading={one.worker_id: Loading(3.5, 0.25)}, ttft_slo_ms=20.5)
    told = Reader().read(orjson.loads(orjson.dumps(record(decided(build_policy("cost"), request, taken, 5)))))
    assert told is not None
    assert told.request == request
    assert (told.policy, told.chance, told.outcome) == ("cost", 5, {"refused": "no_ready_worker"})
    [read] = told.snapshot.endpoints
    assert told.snapshot._replace(endpoints=()) == taken._replace(endpoints=())
    assert replace(read, spec=one.spec) == one


def test_a_line_says_nothing_of_where_workers_are() -> None:
    made = decided(build_policy("cost"), REQUEST, snapshot(endpoint("w0")), 1)
    assert b"8000" not in orjson.dumps(record(made))


def test_only_workers_that_changed_are_described_again() -> None:
    recorder, policy = Recorder(), build_policy("cost")
    first, second, third = endpoint("w0"), endpoint("w1"), endpoint("w2")
    busy = replace(second, load=LoadReport(running_requests=1))
    lines = [
        recorder.line(decided(policy, REQUEST, snapshot(*endpoints), 1))
        for endpoints in ((first, second), (first, second), (first, busy), (busy, third), (first,))
    ]
    assert [sorted(line.get("workers", ())) for line in lines] == [["w0", "w1"], [], ["w1"], ["w2"], ["w0"]]
    assert [len(line.get("specs", ())) for line in lines] == [2, 0, 0, 1, 1]
    assert [line.get("gone", []) for line in lines] == [[], [], [], ["w0"], ["w1", "w2"]]
    assert ["whole" in line for line in lines] == [True, False, False, False, False]
    reader = Reader()
    read = [reader.read(line) for line in lines]
    assert [[one.worker_id for one in told.snapshot.endpoints] for told in read if told] == [
        ["w0", "w1"],
        ["w0", "w1"],
        ["w0", "w1"],
        ["w1", "w2"],
        ["w0"],
    ]


def test_models_have_lines_of_their_own() -> None:
    recorder, reader, policy = Recorder(), Reader(), build_policy("cost")
    for model, name in (("a", "w0"), ("b", "w1"), ("a", "w0")):
        told = reader.read(recorder.line(decided(policy, PickRequest(model), snapshot(endpoint(name)), 1)))
        assert told is not None
        assert [one.worker_id for one in told.snapshot.endpoints] == [name]


def test_a_log_can_be_read_from_its_middle() -> None:
    recorder, policy = Recorder(), build_policy("cost")
    made = decided(policy, REQUEST, snapshot(endpoint("w0")), 1)
    lines = [recorder.line(made) for _ in range(WHOLE_EVERY + 2)]
    reader = Reader()
    read = [reader.read(line) for line in lines[1:]]
    assert read[: WHOLE_EVERY - 1] == [None] * (WHOLE_EVERY - 1)
    assert [told.outcome for told in read[WHOLE_EVERY - 1 :] if told] == [outcome(made.decision)] * 2


def test_a_line_that_leans_on_others_is_not_run_alone() -> None:
    recorder = Recorder()
    made = decided(build_policy("cost"), REQUEST, snapshot(endpoint("w0")), 1)
    recorder.line(made)
    with pytest.raises(ValueError, match="changed since the one before"):
        rerun(recorder.line(made))


def test_models_that_nobody_serves_leave_nothing_behind() -> None:
    recorder, pool = Recorder(), WorkerPool(lease_ttl_s=1, ticket_ttl_s=1)
    for number in range(3):
        line = recorder.line(
            decided(build_policy("cost"), PickRequest(f"m{number}"), pool.snapshot(f"m{number}", 0.0), 1)
        )
        assert isinstance(rerun(line), Refused)
    assert vars(recorder) == {"_models": {}}


def test_a_refusal_in_spite_of_a_pick_is_told_beside_it() -> None:
    made = decided(build_policy("cost"), REQUEST, snapshot(endpoint("w0")), 1)
    line = record(made._replace(refused=RefusalReason.QUEUE_FULL, waited_ms=3.5))
    assert (line["picked"], line["answer"], line["waited_ms"]) == ("w0", "queue_full", 3.5)
    assert outcome(rerun(line)) == outcome(made.decision)


def test_another_policy_decides_in_its_own_way() -> None:
    idle, busy = endpoint("w0", load=LoadReport(running_requests=3)), endpoint("w1", load=LoadReport())
    line = record(decided(build_policy("round_robin"), REQUEST, snapshot(idle, busy), 1))
    other = rerun(line, build_policy("least_requests"))
    assert line["picked"] == "w0"
    assert outcome(other)["picked"] == "w1"
