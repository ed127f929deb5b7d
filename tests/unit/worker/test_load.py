"""What a worker counts of itself: exact at every moment, and every ticket's end told until somebody has heard it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lbcore.types import NO_TICKET, LoadReport, Ticket, TicketPhase, TicketUpdate
from worker.engine import EngineLoad
from worker.load import BYTES_PER_TOKEN, MAX_NEWS, LoadTracker

IDLE = EngineLoad()
NOW = 1000.0


@pytest.fixture
def tracker() -> LoadTracker:
    return LoadTracker()


def test_a_request_counts_as_queued_until_the_engine_begins_with_it(tracker: LoadTracker) -> None:
    tracker.accepted("a", Ticket(1), 400, NOW)
    queued = tracker.look(IDLE, 0.0)
    tracker.started("a", 120, 20, 0.0)
    running = tracker.look(IDLE, 0.0)
    assert (queued.queued_requests, queued.running_requests) == (1, 0)
    assert (running.queued_requests, running.running_requests) == (0, 1)


def test_bytes_stand_in_for_tokens_until_the_engine_has_counted(tracker: LoadTracker) -> None:
    tracker.accepted("a", Ticket(1), 100 * BYTES_PER_TOKEN, NOW)
    estimated = tracker.look(IDLE, 0.0)
    tracker.started("a", 120, 20, 0.0)
    counted = tracker.look(IDLE, 0.0)
    assert (estimated.tokens_in_flight, estimated.queued_prompt_tokens) == (100, 100)
    assert (counted.tokens_in_flight, counted.queued_prompt_tokens) == (120, 100)


def test_an_engine_may_count_the_prompt_late(tracker: LoadTracker) -> None:
    tracker.accepted("a", Ticket(1), 100 * BYTES_PER_TOKEN, NOW)
    tracker.started("a", 0, 0, 0.0)
    uncounted = tracker.look(IDLE, 0.0)
    tracker.prefilled("a", NOW)
    tracker.generated("a", 5)
    tracker.counted("a", 120, 20)
    counted = tracker.look(IDLE, 0.0)
    assert (uncounted.running_requests, uncounted.tokens_in_flight, uncounted.queued_prompt_tokens) == (1, 100, 100)
    assert (counted.tokens_in_flight, counted.queued_prompt_tokens) == (125, 0)
    assert (counted.prompt_token_total, counted.cached_prompt_token_total) == (120, 20)


def test_a_vector_ends_the_prefill_and_is_no_token(tracker: LoadTracker) -> None:
    tracker.accepted("a", Ticket(1), 400, NOW)
    tracker.started("a", 120, 0, 0.0)
    tracker.prefilled("a", NOW)
    report = tracker.look(IDLE, 0.0)
    assert (report.running_requests, report.queued_prompt_tokens, report.queued_prompt_pairs) == (1, 0, 0.0)
    assert (report.tokens_in_flight, report.output_token_total) == (120, 0)


def test_a_later_count_replaces_the_first(tracker: LoadTracker) -> None:
    tracker.accepted("a", Ticket(1), 400, NOW)
    tracker.started("a", 100, 0, 0.0)
    tracker.counted("a", 100, 60)
    report = tracker.look(IDLE, 0.0)
    assert (report.queued_prompt_tokens, report.tokens_in_flight) == (40, 100)
    assert (report.prompt_token_total, report.cached_prompt_token_total) == (100, 60)
    tracker.finished("a", NOW)
    (update,) = tracker.look(IDLE, 0.0).ticket_updates
    assert (update.prompt_tokens, update.cached_tokens) == (100, 60)


def test_a_prompt_that_nobody_counted_is_not_made_up_in_the_ticket(tracker: LoadTracker) -> None:
    tracker.accepted("a", Ticket(1), 400, NOW)
    tracker.started("a", 0, 0, 0.0)
    tracker.finished("a", NOW)
    (update,) = tracker.look(IDLE, 0.0).ticket_updates
    assert update.prompt_tokens == 0


def test_what_others_have_in_the_engine_counts_too(tracker: LoadTracker) -> None:
    tracker.accepted("a", Ticket(1), 400, NOW)
    report = tracker.look(
        EngineLoad(
            other_queued_requests=2,
            other_running_requests=3,
            other_queued_prompt_tokens=50,
            other_tokens_in_flight=700,
        ),
        0.0,
    )
    assert (report.queued_requests, report.running_requests) == (3, 3)
    assert (report.queued_prompt_tokens, report.tokens_in_flight) == (150, 800)


def test_the_first_token_ends_the_prefill(tracker: LoadTracker) -> None:
    tracker.accepted("a", Ticket(1), 400, NOW)
    tracker.started("a", 120, 20, 0.0)
    tracker.prefilled("a", NOW)
    tracker.generated("a", 1)
    tracker.generated("a", 2)
    report = tracker.look(IDLE, 0.0)
    assert (report.queued_prompt_tokens, report.tokens_in_flight) == (0, 123)


def test_a_request_that_leaves_the_queue_unserved_takes_its_estimate_with_it(tracker: LoadTracker) -> None:
    tracker.accepted("a", Ticket(1), 400, NOW)
    tracker.finished("a", NOW)
    report = tracker.look(IDLE, 0.0)
    assert (report.queued_requests, report.queued_prompt_tokens, report.tokens_in_flight) == (0, 0, 0)
    assert report.queued_prompt_pairs == 0.0
    assert report.ticket_updates == (TicketUpdate(Ticket(1), TicketPhase.FINISHED),)


def test_the_end_of_an_unknown_request_changes_nothing(tracker: LoadTracker) -> None:
    tracker.accepted("a", Ticket(1), 400, NOW)
    before = tracker.look(IDLE, 0.0)
    tracker.finished("b", NOW)
    assert tracker.look(IDLE, 0.0) == before


def test_the_last_update_of_a_ticket_says_what_it_came_to(tracker: LoadTracker) -> None:
    tracker.accepted("a", Ticket(7), 400, NOW)
    tracker.started("a", 120, 20, 0.0)
    tracker.prefilled("a", NOW + 0.25)
    tracker.generated("a", 5)
    tracker.finished("a", NOW + 1.5)
    update = TicketUpdate(Ticket(7), TicketPhase.FINISHED, 120, 20, 5, ttft_ms=250.0, duration_ms=1500.0)
    assert tracker.look(IDLE, 0.0).ticket_updates == (update,)


def test_a_request_without_a_token_has_no_time_to_one(tracker: LoadTracker) -> None:
    tracker.accepted("a", Ticket(7), 400, NOW)
    tracker.started("a", 120, 20, 0.0)
    tracker.finished("a", NOW + 1.5)
    (update,) = tracker.look(IDLE, 0.0).ticket_updates
    assert (update.ttft_ms, update.duration_ms) == (0.0, 1500.0)


def test_the_pairs_of_prompts_are_those_of_their_uncached_tokens_with_all_before_them(tracker: LoadTracker) -> None:
    tracker.accepted("a", Ticket(1), 100 * BYTES_PER_TOKEN, NOW)
    tracker.accepted("b", Ticket(2), 100 * BYTES_PER_TOKEN, NOW)
    estimated = tracker.look(IDLE, 0.0)
    tracker.started("a", 120, 20, 0.0)
    counted = tracker.look(IDLE, 0.0)
    tracker.counted("a", 120, 60)
    recounted = tracker.look(IDLE, 0.0)
    tracker.prefilled("a", NOW)
    tracker.counted("a", 130, 0)
    prefilled = tracker.look(IDLE, 0.0)
    assert estimated.queued_prompt_pairs == 2 * 100**2 / 2
    assert counted.queued_prompt_pairs == (120**2 - 20**2) / 2 + 100**2 / 2
    assert recounted.queued_prompt_pairs == (120**2 - 60**2) / 2 + 100**2 / 2
    assert prefilled.queued_prompt_pairs == 100**2 / 2


def test_what_the_engine_has_computed_of_a_prompt_does_not_wait_any_more(tracker: LoadTracker) -> None:
    tracker.accepted("a", Ticket(1), 400, NOW)
    tracker.started("a", 120, 20, 0.0)
    report = tracker.look(EngineLoad(prefilled_tokens=70, prefilled_pairs=(90**2 - 20**2) / 2), 0.0)
    assert (report.queued_prompt_tokens, report.queued_prompt_pairs) == (30, (120**2 - 90**2) / 2)
    assert report.tokens_in_flight == 120


def test_an_engine_that_has_computed_more_than_there_was_leaves_nothing_and_takes_nothing_from_others(
    tracker: LoadTracker,
) -> None:
    tracker.accepted("a", Ticket(1), 400, NOW)
    engine = EngineLoad(prefilled_tokens=1000, prefilled_pairs=1e9, other_queued_prompt_tokens=50)
    report = tracker.look(engine, 0.0)
    assert (report.queued_prompt_tokens, report.queued_prompt_pairs) == (50, 0.0)


def test_a_request_without_a_ticket_is_load_but_no_news(tracker: LoadTracker) -> None:
    tracker.accepted("a", NO_TICKET, 400, NOW)
    assert tracker.look(IDLE, 0.0).queued_requests == 1
    assert tracker.look(IDLE, 0.0).ticket_updates == ()


def test_a_refused_ticket_is_over_and_was_never_load(tracker: LoadTracker) -> None:
    tracker.refused(Ticket(3))
    report = tracker.look(IDLE, 0.0)
    assert report.ticket_updates == (TicketUpdate(Ticket(3), TicketPhase.FINISHED),)
    assert report.queued_requests == 0


def test_news_are_told_again_until_a_report_that_held_them_is_acknowledged(tracker: LoadTracker) -> None:
    tracker.refused(Ticket(1))
    first = tracker.report(IDLE, 0.0)
    tracker.refused(Ticket(2))
    second = tracker.report(IDLE, 0.0)
    tracker.acknowledged(first.sequence)
    third = tracker.report(IDLE, 0.0)
    assert [len(report.ticket_updates) for report in (first, second, third)] == [1, 2, 1]
    assert third.ticket_updates == second.ticket_updates[1:]


def test_news_that_came_after_a_report_outlive_its_acknowledgement(tracker: LoadTracker) -> None:
    tracker.accepted("a", Ticket(1), 0, NOW)
    report = tracker.report(IDLE, 0.0)
    tracker.finished("a", NOW)
    tracker.acknowledged(report.sequence)
    assert [update.phase for update in tracker.look(IDLE, 0.0).ticket_updates] == [TicketPhase.FINISHED]


def test_an_acknowledgement_covers_all_that_was_told_though_an_older_ticket_has_news_since(
    tracker: LoadTracker,
) -> None:
    tracker.accepted("a", Ticket(1), 0, NOW)
    tracker.accepted("b", Ticket(2), 0, NOW)
    report = tracker.report(IDLE, 0.0)
    tracker.finished("a", NOW)
    tracker.acknowledged(report.sequence)
    assert [update.ticket for update in tracker.look(IDLE, 0.0).ticket_updates] == [1]


def test_the_acknowledgement_of_a_report_never_made_loses_no_news(tracker: LoadTracker) -> None:
    tracker.refused(Ticket(1))
    tracker.acknowledged(2**64 - 1)
    assert len(tracker.look(IDLE, 0.0).ticket_updates) == 1


def test_looking_makes_no_report(tracker: LoadTracker) -> None:
    tracker.look(IDLE, 0.0)
    tracker.look(IDLE, 0.0)
    assert tracker.report(IDLE, 0.0).sequence == 1
    assert tracker.report(IDLE, 0.0).sequence == 2


def test_a_report_passes_on_what_only_the_engine_knows(tracker: LoadTracker) -> None:
    report = tracker.report(EngineLoad(10, 20, 3000.0, 4.5, 1e-5), 0.0)
    assert (report.kv_used_blocks, report.kv_cached_blocks) == (10, 20)
    assert (report.prefill_tokens_per_s, report.step_time_ms, report.attention_ratio) == (3000.0, 4.5, 1e-5)


def test_unheard_news_are_bounded_and_the_oldest_go_first(tracker: LoadTracker) -> None:
    for number in range(1, MAX_NEWS + 11):
        tracker.refused(Ticket(number))
    updates = tracker.look(IDLE, 0.0).ticket_updates
    assert len(updates) == MAX_NEWS
    assert updates[0].ticket == 11


@dataclass
class _Request:
    """What the machine below knows of a request in flight."""

    ticket: Ticket
    estimate: int
    prompt: int = 0
    cached: int = 0
    output: int = 0
    started: bool = False


class Bookkeeping(RuleBasedStateMachine):
    """Any life of requests, beside a plain model of it, told to a scheduler that hears some reports and not others."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker = LoadTracker()
        self.requests: dict[str, _Request] = {}
        self.totals = [0, 0, 0]
        self.serial = 0
        self.over: dict[Ticket, TicketUpdate] = {}
        self.heard: dict[Ticket, TicketUpdate] = {}
        self.reports: list[LoadReport] = []

    @rule(body_bytes=st.integers(0, 100_000), ticketed=st.booleans())
    def accept(self, body_bytes: int, ticketed: bool) -> None:
        self.serial += 1
        ticket = Ticket(self.serial) if ticketed else NO_TICKET
        self.requests[str(self.serial)] = _Request(ticket, body_bytes // BYTES_PER_TOKEN)
        self.tracker.accepted(str(self.serial), ticket, body_bytes, NOW)

    @rule()
    def refuse(self) -> None:
        self.serial += 1
        self.over[Ticket(self.serial)] = TicketUpdate(Ticket(self.serial), TicketPhase.FINISHED)
        self.tracker.refused(Ticket(self.serial))

    @precondition(lambda self: any(not request.started and not request.output for request in self.requests.values()))
    @rule(data=st.data(), prompt=st.integers(1, 50_000), cached_part=st.floats(0, 1))
    def start(self, data: st.DataObject, prompt: int, cached_part: float) -> None:
        waiting = [key for key, request in self.requests.items() if not request.started and not request.output]
        key = data.draw(st.sampled_from(waiting))
        request, cached = self.requests[key], int(prompt * cached_part)
        request.prompt, request.cached, request.started = prompt, cached, True
        self.totals[0] += prompt
        self.totals[1] += cached
        self.tracker.started(key, prompt, cached, 0.0)

    @precondition(lambda self: any(request.started for request in self.requests.values()))
    @rule(data=st.data(), prompt=st.integers(1, 50_000), cached_part=st.floats(0, 1))
    def count(self, data: st.DataObject, prompt: int, cached_part: float) -> None:
        running = [key for key, request in self.requests.items() if request.started]
        key = data.draw(st.sampled_from(running))
        request, cached = self.requests[key], int(prompt * cached_part)
        self.totals[0] += prompt - request.prompt
        self.totals[1] += cached - request.cached
        request.prompt, request.cached = prompt, cached
        self.tracker.counted(key, prompt, cached)

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), tokens=st.integers(1, 50))
    def generate(self, data: st.DataObject, tokens: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.requests)))
        if not self.requests[key].output:
            self.tracker.prefilled(key, NOW)
        self.requests[key].output += tokens
        self.totals[2] += tokens
        self.tracker.generated(key, tokens)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.requests)))
        self._finish(key)

    @rule(arrives=st.booleans())
    def report(self, arrives: bool) -> None:
        report = self.tracker.report(IDLE, 0.0)
        if arrives:
            self._hear(report)

    @precondition(lambda self: self.reports)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        self.tracker.acknowledged(data.draw(st.sampled_from(self.reports)).sequence)

    @invariant()
    def counts_are_those_of_the_model(self) -> None:
        report = self.tracker.look(IDLE, 0.0)
        requests = self.requests.values()
        queued = sum(not request.started for request in requests)
        assert (report.queued_requests, report.running_requests) == (queued, len(requests) - queued)
        assert self.tracker.requests == len(requests)
        assert self.tracker.queued_requests == queued
        assert report.queued_prompt_tokens == sum(
            request.prompt - request.cached if request.started else request.estimate
            for request in requests
            if not request.output
        )
        assert report.queued_prompt_pairs == sum(
            (request.prompt**2 - request.cached**2) / 2 if request.started else request.estimate**2 / 2
            for request in requests
            if not request.output
        )
        assert report.tokens_in_flight == sum(
            (request.prompt if request.started else request.estimate) + request.output for request in requests
        )
        assert self.totals == [
            report.prompt_token_total,
            report.cached_prompt_token_total,
            report.output_token_total,
        ]

    def teardown(self) -> None:
        for key in [*self.requests]:
            self._finish(key)
        self.counts_are_those_of_the_model()
        last = self.tracker.report(IDLE, 0.0)
        self._hear(last)
        assert {ticket: update for ticket, update in self.heard.items() if ticket in self.over} == self.over
        self.tracker.acknowledged(last.sequence)
        assert self.tracker.look(IDLE, 0.0).ticket_updates == ()

    def _finish(self, key: str) -> None:
        request = self.requests.pop(key)
        if request.ticket:
            self.over[request.ticket] = TicketUpdate(
                request.ticket, TicketPhase.FINISHED, request.prompt, request.cached, request.output
            )
        self.tracker.finished(key, NOW)

    def _hear(self, report: LoadReport) -> None:
        assert all(report.sequence > earlier.sequence for earlier in self.reports)
        self.reports.append(report)
        for update in report.ticket_updates:
            self.heard[update.ticket] = update


TestBookkeeping = Bookkeeping.TestCase
TestBookkeeping.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


class TestAnEngineThatDoesNotSayHowFarItIs:
    """Its speed and the time tell: a thousand tokens a second here."""

    ENGINE = EngineLoad(prefill_tokens_per_s=1000.0)

    def queued(self, tracker: LoadTracker, now: float) -> int:
        return tracker.look(self.ENGINE, now).queued_prompt_tokens

    def test_a_prompt_gets_shorter_while_it_is_computed(self, tracker: LoadTracker) -> None:
        tracker.accepted("a", Ticket(1), 40_000, 0.0)
        assert self.queued(tracker, 5.0) == 10_000
        tracker.started("a", 10_000, 2000, 5.0)
        assert [self.queued(tracker, now) for now in (5.0, 7.0, 12.9, 20.0)] == [8000, 6000, 100, 0]
        report = tracker.look(self.ENGINE, 7.0)
        assert report.queued_prompt_pairs == (10_000**2 - 4000**2) / 2

    def test_the_next_prompt_begins_when_the_one_before_it_is_complete(self, tracker: LoadTracker) -> None:
        for key in ("a", "b"):
            tracker.accepted(key, Ticket(1), 4000, 0.0)
            tracker.started(key, 1000, 0, 0.0)
        assert self.queued(tracker, 0.5) == 1500
        tracker.prefilled("a", 1.0)
        assert self.queued(tracker, 1.0) == 1000
        assert self.queued(tracker, 1.25) == 750
        tracker.finished("b", 1.5)
        assert self.queued(tracker, 1.5) == 0
