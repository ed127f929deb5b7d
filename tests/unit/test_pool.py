"""The worker pool: what each event does, and what it must not do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lbcore.cost import DEFAULT_PREFILL_MS_PER_TOKEN
from lbcore.pool import WorkerPool
from lbcore.pool_events import (
    CreditReleased,
    Deregistered,
    Disconnected,
    Dispatched,
    DrainNoticed,
    PoolEffect,
    Registered,
    Released,
    Reported,
    ReportRejected,
    Ticked,
    TicketsExpired,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
    WorkerLost,
    WorkerReturned,
    WorkerSilent,
    WorkerUnready,
)
from lbcore.types import (
    Capacity,
    Endpoint,
    EndpointState,
    Epoch,
    LoadReport,
    PickRequest,
    Role,
    RouteFacts,
    Ticket,
    TicketPhase,
    TicketUpdate,
    WorkerId,
    WorkerSpec,
)
from tests.fleet import MODEL, spec

LEASE_S, TICKET_S = 1.0, 5.0
W0, W1 = WorkerId("w0"), WorkerId("w1")
ACCEPTED, FINISHED = TicketPhase.ACCEPTED, TicketPhase.FINISHED
READY, DRAINING, SILENT = EndpointState.READY, EndpointState.DRAINING, EndpointState.SILENT


class Pool(WorkerPool):
    """A pool with what tests say often."""

    def __init__(self, *specs: WorkerSpec) -> None:
        super().__init__(lease_ttl_s=LEASE_S, ticket_ttl_s=TICKET_S)
        for number, worker in enumerate(specs):
            self.handle(Registered(worker, connection=number), 0.0)

    def endpoint(self, worker_id: WorkerId = W0) -> Endpoint:
        return next(endpoint for endpoint in self.endpoints() if endpoint.worker_id == worker_id)

    def credit(self, worker_id: WorkerId = W0) -> tuple[int, int]:
        endpoint = self.endpoint(worker_id)
        return endpoint.credit_requests, endpoint.credit_tokens

    def dispatch(
        self,
        ticket: int,
        worker_id: WorkerId = W0,
        *,
        now: float = 0.0,
        hashes: tuple[int, ...] = (),
        block_bytes: int | None = None,
    ) -> list[PoolEffect]:
        """A prompt of 4,000 bytes, all of them in blocks unless `block_bytes` says otherwise."""
        if block_bytes is None:
            block_bytes = 4000 // len(hashes) if hashes else 0
        facts = RouteFacts("r", MODEL, 4000, hashes, block_bytes)
        return self.handle(Dispatched(Ticket(ticket), worker_id, self.pick_request(facts), facts), now)

    def report(
        self,
        sequence: int,
        *updates: TicketUpdate,
        worker: WorkerSpec | None = None,
        now: float = 0.1,
        rate: float = 0.0,
    ) -> list[PoolEffect]:
        worker = worker or spec()
        report = LoadReport(sequence, ticket_updates=updates, prefill_tokens_per_s=rate)
        return self.handle(Reported(worker.worker_id, worker.epoch, report), now)


class TestRegistration:
    def test_a_new_worker_joins_and_can_be_picked(self) -> None:
        pool = Pool()
        assert pool.handle(Registered(spec(), 1), 0.0) == [WorkerJoined(spec())]
        assert [endpoint.state for endpoint in pool.snapshot(MODEL, 0.0).endpoints] == [READY]

    def test_another_epoch_of_the_same_name_takes_the_place(self) -> None:
        old, new = spec(epoch=1), spec(epoch=2)
        pool = Pool(old)
        assert pool.handle(Registered(new, 2), 0.5) == [WorkerLost(old, "replaced"), WorkerJoined(new)]
        assert [endpoint.spec for endpoint in pool.endpoints()] == [new]

    def test_the_same_epoch_on_another_connection_returns_with_load_and_credit(self) -> None:
        pool = Pool(spec())
        pool.report(7)
        pool.dispatch(1)
        pool.handle(Disconnected(W0, Epoch(1), connection=0), 0.2)
        assert pool.handle(Registered(spec(), connection=9), 0.3) == [WorkerReturned(spec())]
        assert (pool.endpoint().state, pool.endpoint().load.sequence, pool.credit()) == (READY, 7, (1, 1000))

    def test_a_worker_is_found_under_each_of_its_names(self) -> None:
        pool = Pool(spec(models=("a", "b"), adapters=("lora",)))
        assert pool.models() == ("a", "b", "lora")
        assert all(len(pool.snapshot(name, 0.0).endpoints) == 1 for name in pool.models())

    def test_an_unknown_model_has_an_empty_snapshot(self) -> None:
        assert Pool(spec()).snapshot("other", 0.0).endpoints == ()

    def test_endpoints_are_ordered_by_id_whoever_came_first(self) -> None:
        pool = Pool(spec("w2"), spec("w0"), spec("w1"))
        names = ["w0", "w1", "w2"]
        assert [endpoint.worker_id for endpoint in pool.snapshot(MODEL, 0.0).endpoints] == names
        assert [endpoint.worker_id for endpoint in pool.endpoints()] == names


class TestReports:
    def test_a_report_replaces_the_load_and_renews_the_lease(self) -> None:
        pool = Pool(spec())
        assert pool.report(1, now=0.9) == []
        assert (pool.endpoint().load.sequence, pool.endpoint().reported_at) == (1, 0.9)
        assert pool.handle(Ticked(), 1.5) == []

    @pytest.mark.parametrize("stranger", [spec("unknown"), spec(epoch=2)])
    def test_a_report_of_nobody_or_of_another_epoch_is_rejected_and_changes_nothing(self, stranger: WorkerSpec) -> None:
        pool = Pool(spec())
        pool.dispatch(1)
        before = pool.endpoints(), pool.next_deadline()
        effects = pool.report(9, TicketUpdate(Ticket(1), ACCEPTED), worker=stranger, now=0.5)
        assert effects == [ReportRejected(stranger.worker_id, stranger.epoch)]
        assert (pool.endpoints(), pool.next_deadline()) == before

    @pytest.mark.parametrize("sequence", [5, 4])
    def test_a_report_seen_before_or_overtaken_does_nothing(self, sequence: int) -> None:
        pool = Pool(spec())
        pool.report(5)
        pool.dispatch(1)
        before = pool.endpoints(), pool.next_deadline()
        assert pool.report(sequence, TicketUpdate(Ticket(1), ACCEPTED), now=0.5) == []
        assert (pool.endpoints(), pool.next_deadline()) == before

    def test_a_snapshot_taken_before_stays_as_it_was(self) -> None:
        pool = Pool(spec())
        taken = pool.snapshot(MODEL, 0.0)
        pool.report(1)
        assert taken.endpoints[0].load.sequence == 0
        assert pool.snapshot(MODEL, 0.1).endpoints[0].load.sequence == 1

    def test_a_snapshot_says_what_holds_for_all(self) -> None:
        one = Capacity(max_sequences=1)
        pool = Pool(spec("w0", capacity=one), spec("w1", capacity=one))
        assert pool.snapshot(MODEL, 0.0).agreement == (True, True, True)
        pool.dispatch(1, W0)
        assert pool.snapshot(MODEL, 0.0).agreement == (True, True, False)
        pool.handle(Released((Ticket(1),)), 0.0)
        assert pool.snapshot(MODEL, 0.0).agreement == (True, True, True)
        pool.handle(Disconnected(W0, Epoch(1), connection=0), 0.0)
        assert pool.snapshot(MODEL, 0.0).agreement == (True, False, True)
        pool.handle(Deregistered(W0, Epoch(1)), 0.0)
        assert pool.snapshot(MODEL, 0.0).agreement == (True, True, True)
        pool.handle(Registered(spec("w2", role=Role.DECODE), 2), 0.0)
        assert pool.snapshot(MODEL, 0.0).agreement == (False, True, True)

    def test_a_worker_of_several_models_changes_in_each_of_their_snapshots(self) -> None:
        pool = Pool(spec("w1", models=("a", "b")), spec("w0", models=("b",)))
        pool.handle(DrainNoticed(W1, Epoch(1)), 0.1)
        states = {name: [one.state for one in pool.snapshot(name, 0.1).endpoints] for name in ("a", "b")}
        assert states == {"a": [DRAINING], "b": [READY, DRAINING]}


class TestLeaving:
    def test_a_broken_connection_makes_silent_and_the_lease_runs_on(self) -> None:
        pool = Pool(spec())
        assert pool.handle(Disconnected(W0, Epoch(1), connection=0), 0.5) == [WorkerSilent(spec())]
        assert pool.endpoint().state is SILENT
        assert pool.handle(Ticked(), LEASE_S) == [WorkerLost(spec(), "lease expired")]

    def test_the_end_of_an_older_connection_means_nothing(self) -> None:
        pool = Pool(spec())
        pool.handle(Registered(spec(), connection=5), 0.1)
        assert pool.handle(Disconnected(W0, Epoch(1), connection=0), 0.2) == []
        assert pool.endpoint().state is READY

    def test_a_report_does_not_end_silence(self) -> None:
        pool = Pool(spec())
        pool.handle(Disconnected(W0, Epoch(1), connection=0), 0.1)
        pool.report(1)
        assert pool.endpoint().state is SILENT

    def test_a_draining_worker_stays_draining_through_silence_and_return(self) -> None:
        pool = Pool(spec())
        assert pool.handle(DrainNoticed(W0, Epoch(1)), 0.1) == [WorkerDraining(spec())]
        assert pool.handle(DrainNoticed(W0, Epoch(1)), 0.1) == []
        pool.handle(Disconnected(W0, Epoch(1), connection=0), 0.2)
        assert pool.endpoint().state is DRAINING
        pool.handle(Registered(spec(), connection=1), 0.3)
        assert pool.endpoint().state is DRAINING

    def test_a_worker_whose_engine_is_away_says_so_and_comes_back(self) -> None:
        pool = Pool(spec())
        away, back = LoadReport(sequence=1, unready=True), LoadReport(sequence=3)
        assert pool.handle(Reported(W0, Epoch(1), away), 0.1) == [WorkerUnready(spec(), True)]
        assert pool.handle(Reported(W0, Epoch(1), replace(away, sequence=2)), 0.2) == []
        assert pool.endpoint().state is EndpointState.UNREADY
        assert pool.handle(Reported(W0, Epoch(1), back), 0.3) == [WorkerUnready(spec(), False)]
        assert pool.endpoint().state is READY

    def test_an_engine_that_is_away_makes_no_silent_worker_a_choice(self) -> None:
        pool = Pool(spec())
        pool.handle(Reported(W0, Epoch(1), LoadReport(sequence=1, unready=True)), 0.1)
        pool.handle(Disconnected(W0, Epoch(1), connection=0), 0.2)
        assert pool.endpoint().state is EndpointState.UNREADY

    def test_a_worker_that_deregisters_is_gone(self) -> None:
        pool = Pool(spec())
        assert pool.handle(Deregistered(W0, Epoch(1)), 0.1) == [WorkerLeft(spec())]
        assert (pool.endpoints(), pool.models(), pool.next_deadline()) == ((), (), None)

    @pytest.mark.parametrize(
        "event", [DrainNoticed(W0, Epoch(9)), Deregistered(W0, Epoch(9)), Disconnected(W0, Epoch(9), 0)]
    )
    def test_another_epoch_cannot_send_a_worker_away(self, event: DrainNoticed | Deregistered | Disconnected) -> None:
        pool = Pool(spec())
        assert pool.handle(event, 0.1) == []
        assert pool.endpoint().state is READY

    def test_whoever_reports_last_is_lost_last(self) -> None:
        pool = Pool(spec("w0"), spec("w1"))
        pool.report(1, worker=spec("w0"), now=0.4)
        assert pool.next_deadline() == LEASE_S
        assert pool.handle(Ticked(), LEASE_S) == [WorkerLost(spec("w1"), "lease expired")]
        assert pool.next_deadline() == 0.4 + LEASE_S

    def test_a_tick_at_the_deadline_does_all_that_was_due(self) -> None:
        pool = Pool(spec("w0"), spec("w1"))
        for sequence in range(1, 40):
            pool.dispatch(sequence, now=sequence / 7)
            pool.report(sequence, worker=spec("w0"), now=sequence / 7)
        deadline = pool.next_deadline()
        while deadline is not None:
            assert pool.handle(Ticked(), deadline) != []
            later = pool.next_deadline()
            assert later is None or later > deadline
            deadline = later
        assert pool.endpoints() == ()


class TestCredit:
    def test_a_dispatch_is_booked_at_once(self) -> None:
        pool = Pool(spec())
        assert pool.dispatch(1) == []
        assert pool.credit() == (1, 1000)
        assert pool.snapshot(MODEL, 0.0).pick_count == 1

    def test_only_the_expected_uncached_tokens_are_booked(self) -> None:
        pool = Pool(spec())
        pool.dispatch(1, hashes=(1, 2, 3, 4))
        pool.dispatch(2, hashes=(1, 2, 3, 5))
        assert pool.credit() == (2, 1000 + 250)

    @pytest.mark.parametrize("phase", TicketPhase)
    def test_a_report_acknowledges_a_ticket_once(self, phase: TicketPhase) -> None:
        pool = Pool(spec())
        pool.dispatch(1)
        pool.dispatch(2)
        pool.report(1, TicketUpdate(Ticket(1), phase))
        pool.report(2, TicketUpdate(Ticket(1), phase))
        assert pool.credit() == (1, 1000)

    def test_a_report_leaves_credit_that_it_does_not_acknowledge(self) -> None:
        pool = Pool(spec())
        pool.dispatch(1)
        pool.report(1)
        assert pool.credit() == (1, 1000)

    def test_an_unknown_ticket_and_a_ticket_of_another_worker_do_nothing(self) -> None:
        pool = Pool(spec("w0"), spec("w1"))
        pool.dispatch(1, W0)
        pool.report(1, TicketUpdate(Ticket(1), ACCEPTED), TicketUpdate(Ticket(99), FINISHED), worker=spec("w1"))
        assert pool.credit(W0) == (1, 1000)

    def test_a_restarted_worker_cannot_acknowledge_tickets_of_its_former_life(self) -> None:
        pool = Pool(spec(epoch=1))
        pool.dispatch(1)
        pool.handle(Registered(spec(epoch=2), 1), 0.1)
        assert pool.credit() == (0, 0)
        pool.dispatch(2)
        pool.report(1, TicketUpdate(Ticket(1), ACCEPTED), worker=spec(epoch=2))
        assert pool.credit() == (1, 1000)

    def test_released_tickets_are_counted_once(self) -> None:
        pool = Pool(spec())
        pool.dispatch(1)
        tickets = (Ticket(1), Ticket(7))
        assert pool.handle(Released(tickets), 0.1) == [CreditReleased(1)]
        assert pool.handle(Released(tickets), 0.1) == [CreditReleased(0)]
        assert pool.credit() == (0, 0)

    def test_a_ticket_that_nobody_acknowledges_expires(self) -> None:
        pool = Pool(spec())
        pool.dispatch(1)
        pool.report(1, now=TICKET_S - 0.1)
        assert pool.next_deadline() == TICKET_S
        assert pool.handle(Ticked(), TICKET_S) == [TicketsExpired(1)]
        assert pool.credit() == (0, 0)

    def test_a_dispatch_to_a_worker_that_has_just_gone_is_not_booked(self) -> None:
        pool = Pool(spec("w0"))
        assert pool.dispatch(1, W1) == []
        assert pool.handle(Released((Ticket(1),)), 0.1) == [CreditReleased(0)]

    def test_credit_takes_room(self) -> None:
        pool = Pool(spec(capacity=Capacity(max_sequences=2, max_queued_requests=1)))
        for ticket in range(3):
            pool.dispatch(ticket)
        assert pool.endpoint().room == 0


class TestLearning:
    def test_a_prompt_has_a_quarter_of_its_bytes_in_tokens_before_anything_was_counted(self) -> None:
        assert Pool().pick_request(RouteFacts("r", MODEL, 4000)).prompt_tokens == 1000

    def test_reported_prompt_tokens_teach_the_model_and_no_other(self) -> None:
        pool = Pool(spec(models=(MODEL, "other")))
        for ticket in range(1, 50):
            pool.dispatch(ticket)
            pool.report(ticket, TicketUpdate(Ticket(ticket), ACCEPTED, prompt_tokens=2000))
        assert pool.pick_request(RouteFacts("r", MODEL, 4000)).prompt_tokens == pytest.approx(2000, rel=0.05)
        assert pool.pick_request(RouteFacts("r", "other", 4000)).prompt_tokens == 1000

    @pytest.mark.parametrize("first", [0, 2000])
    def test_a_ticket_teaches_its_length_once(self, first: int) -> None:
        once, twice = Pool(spec()), Pool(spec())
        for pool in (once, twice):
            pool.dispatch(9, hashes=(1,))
            pool.dispatch(1, hashes=(1,))
        once.report(1, TicketUpdate(Ticket(1), FINISHED, 2000, 0, 9))
        twice.report(1, TicketUpdate(Ticket(1), ACCEPTED, first))
        twice.report(2, TicketUpdate(Ticket(1), FINISHED, 2000, 0, 9))
        facts = RouteFacts("r", MODEL, 100_000)
        assert once.pick_request(facts) == twice.pick_request(facts)

    def test_who_was_sent_a_prompt_is_believed_to_hold_it(self) -> None:
        pool = Pool(spec("w0"), spec("w1"))
        pool.dispatch(1, W1, hashes=(1, 2))
        assert pool.pick_request(RouteFacts("r", MODEL, 4000, (1, 3), 2000)).hit_tokens == {W1: 500}

    def test_prefixes_of_one_model_are_of_no_use_to_another(self) -> None:
        pool = Pool(spec(models=(MODEL, "other")))
        pool.dispatch(1, hashes=(1, 2))
        assert pool.pick_request(RouteFacts("r", "other", 4000, (1, 2), 2000)).hit_tokens == {}

    def test_a_restarted_worker_holds_nothing(self) -> None:
        pool = Pool(spec("w0", epoch=1), spec("w1"))
        pool.dispatch(1, W0, hashes=(1, 2))
        pool.dispatch(2, W1, hashes=(1, 2))
        pool.handle(Registered(spec("w0", epoch=2), 1), 0.1)
        assert pool.pick_request(RouteFacts("r", MODEL, 4000, (1, 2), 2000)).hit_tokens == {W1: 1000}

    @pytest.mark.parametrize(("block_bytes", "expected"), [(0, 128), (256, 128), (512, 128), (300, 75), (100, 50)])
    def test_more_than_the_kv_cache_holds_is_not_believed(self, block_bytes: int, expected: int) -> None:
        pool = Pool(spec(capacity=Capacity(kv_blocks=8, kv_block_size=16)))
        hashes = (1, 2, 3, 4)
        pool.dispatch(1, hashes=hashes, block_bytes=block_bytes)
        assert pool.pick_request(RouteFacts("r", MODEL, 4000, hashes, block_bytes)).hit_tokens == {W0: expected}

    def test_deep_blocks_take_the_room_of_the_bytes_they_have(self) -> None:
        pool = Pool(spec(capacity=Capacity(kv_blocks=1024, kv_block_size=16)))
        facts = RouteFacts("r", MODEL, 200_000, tuple(range(1, 105)))
        pool.handle(Dispatched(Ticket(1), W0, pool.pick_request(facts), facts), 0.0)
        assert pool.pick_request(facts).hit_tokens == {W0: 1024 * 16}
        shorter = facts._replace(prefix_hashes=facts.prefix_hashes[:40])
        assert pool.pick_request(shorter).hit_tokens == {W0: (32 * 256 + 8 * 512) / 4}

    @pytest.mark.parametrize(
        ("cached_tokens", "output_tokens", "expected"), [(1000, 5, 1.0), (500, 5, 0.9), (0, 5, 0.8), (0, 0, 1.0)]
    )
    def test_hits_that_do_not_come_true_are_believed_less(
        self, cached_tokens: int, output_tokens: int, expected: float
    ) -> None:
        pool = Pool(spec())
        pool.dispatch(1, hashes=(1, 2))
        pool.dispatch(2, hashes=(1, 2))
        pool.report(1, TicketUpdate(Ticket(2), ACCEPTED))
        pool.report(2, TicketUpdate(Ticket(2), FINISHED, 1000, cached_tokens, output_tokens))
        hit = pool.pick_request(RouteFacts("r", MODEL, 4000, (1, 2), 2000)).hit_tokens[W0]
        assert hit == pytest.approx(1000 * expected)

    @pytest.mark.parametrize("block_bytes", [0, 1_000_000])
    def test_no_worker_holds_more_than_the_prompt_whatever_a_caller_says(self, block_bytes: int) -> None:
        pool = Pool(spec())
        pool.dispatch(1, hashes=(1, 2))
        request = pool.pick_request(RouteFacts("r", MODEL, 400, (1, 2), block_bytes))
        assert request.hit_tokens[W0] <= request.prompt_tokens

    def test_trust_is_learned_from_the_bytes_held_of_the_whole_prompt(self) -> None:
        pool = Pool(spec())
        pool.dispatch(1, hashes=(1, 2), block_bytes=1000)
        pool.dispatch(2, hashes=(1, 2), block_bytes=1000)
        pool.report(1, TicketUpdate(Ticket(2), ACCEPTED))
        pool.report(2, TicketUpdate(Ticket(2), FINISHED, 1000, 500, 1))
        assert pool.pick_request(RouteFacts("r", MODEL, 4000, (1, 2), 1000)).hit_tokens[W0] == pytest.approx(500)

    def test_the_prefill_speed_is_the_measured_one(self) -> None:
        pool = Pool(spec())
        pool.report(1, rate=5000.0)
        assert pool.endpoint().token_ms == pytest.approx(0.2)

    def test_without_a_measurement_it_is_that_of_the_peers_in_the_middle(self) -> None:
        pool = Pool(*(spec(name) for name in ("w1", "w2", "w3")), spec("other", models=("other",)))
        for name, rate in (("w1", 1000.0), ("w2", 2000.0), ("w3", 50_000.0)):
            pool.report(1, worker=spec(name), rate=rate)
        pool.report(1, worker=spec("other", models=("other",)), rate=1.0)
        pool.handle(Registered(spec("w0"), 9), 0.2)
        assert pool.endpoint(W0).token_ms == pytest.approx(0.5)

    @pytest.mark.parametrize("rate", [0.0, float("nan"), float("inf"), -1.0])
    def test_without_any_measurement_it_is_the_default(self, rate: float) -> None:
        pool = Pool(spec())
        pool.report(1, rate=rate)
        assert pool.endpoint().token_ms == DEFAULT_PREFILL_MS_PER_TOKEN


def test_latency_is_the_mean_of_the_last_whole_answers() -> None:
    pool = Pool(spec())
    assert (pool.endpoint().latency_ms, pool.endpoint().latency_requests) == (0.0, 0.0)
    for number, (took_ms, output) in enumerate([(100.0, 5), (300.0, 5), (1.0, 0)]):
        update = TicketUpdate(Ticket(number), TicketPhase.FINISHED, 10, 0, output, 1.0, took_ms)
        load = LoadReport(sequence=number + 1, running_requests=number + 1, ticket_updates=(update,))
        pool.handle(Reported(WorkerId("w0"), Epoch(1), load), 0.0)
    # The third produced nothing: it was refused, or given up. The second is told of once more.
    again = TicketUpdate(Ticket(1), TicketPhase.FINISHED, 10, 0, 5, 1.0, 300.0)
    pool.handle(Reported(WorkerId("w0"), Epoch(1), LoadReport(sequence=9, ticket_updates=(again,))), 0.0)
    assert pool.endpoint().latency_ms == 200.0
    assert pool.endpoint().latency_requests == 0.5


def dispatched(pool: WorkerPool, number: int, prompt_tokens: int, now: float) -> None:
    facts = RouteFacts("r", MODEL, prompt_tokens * 4)
    request = PickRequest(MODEL, prompt_tokens)
    pool.handle(Dispatched(Ticket(number), WorkerId("w0"), request, facts), now)


class TestPrefillInFront:
    """When a worker will be done with the prompts it has, at a tenth of a millisecond a token."""

    def make(self) -> WorkerPool:
        pool = WorkerPool(lease_ttl_s=1e6, ticket_ttl_s=1e6)
        pool.handle(Registered(spec(), 1), 0.0)
        return pool

    def report(self, pool: WorkerPool, sequence: int, now: float, queued: int = 0, *accepted: int) -> None:
        updates = tuple(TicketUpdate(Ticket(number), TicketPhase.ACCEPTED, 10) for number in accepted)
        load = LoadReport(sequence=sequence, queued_prompt_tokens=queued, ticket_updates=updates)
        pool.handle(Reported(WorkerId("w0"), Epoch(1), load), now)

    def wait_ms(self, pool: WorkerPool, now: float) -> float:
        return pool.endpoints()[0].wait_ms(now)

    def test_dispatches_add_up_and_are_worked_off(self) -> None:
        pool = self.make()
        dispatched(pool, 1, 1000, 0.0)
        dispatched(pool, 2, 1000, 0.0)
        assert self.wait_ms(pool, 0.0) == pytest.approx(200, rel=0.02)
        assert self.wait_ms(pool, 0.15) == pytest.approx(50, rel=0.1)
        dispatched(pool, 3, 1000, 1.0)
        assert self.wait_ms(pool, 1.0) == pytest.approx(100, rel=0.02)

    def test_a_report_says_how_much_is_left(self) -> None:
        pool = self.make()
        dispatched(pool, 1, 1000, 0.0)
        self.report(pool, 1, 0.0, 4000, 1)
        assert self.wait_ms(pool, 0.0) == pytest.approx(400)

    def test_what_a_report_does_not_know_of_came_when_it_was_sent(self) -> None:
        pool = self.make()
        dispatched(pool, 1, 1000, 5.0)
        self.report(pool, 1, 5.0)
        assert self.wait_ms(pool, 5.0) == pytest.approx(100, rel=0.02)

    def test_a_dispatch_that_is_taken_back_is_not_waited_for(self) -> None:
        pool = self.make()
        dispatched(pool, 1, 1000, 0.0)
        dispatched(pool, 2, 2000, 0.0)
        pool.handle(Released((Ticket(2),)), 0.0)
        assert self.wait_ms(pool, 0.0) == pytest.approx(100, rel=0.02)

    def test_a_report_that_is_late_is_read_as_of_when_it_was_made(self) -> None:
        pool = self.make()
        dispatched(pool, 1, 10_000, 0.0)
        # A second from dispatch to word of it: so old are this worker's reports.
        self.report(pool, 1, 1.0, 10_000, 1)
        assert self.wait_ms(pool, 1.0) == pytest.approx(0.0, abs=1e-6)
        self.report(pool, 2, 1.5, 20_000)
        assert self.wait_ms(pool, 1.5) == pytest.approx(1000)
