"""What a pool believes of workers that tell what their prefix caches hold."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore.pool import WorkerPool
from lbcore.pool_events import (
    Deregistered,
    Disconnected,
    Dispatched,
    PoolEffect,
    PrefixesMissed,
    PrefixesReported,
    Registered,
    Released,
    Reported,
    Ticked,
)
from lbcore.pool_records import MAX_PROMPTS
from lbcore.types import (
    Epoch,
    LoadReport,
    PickRequest,
    PrefixReport,
    RouteFacts,
    Ticket,
    TicketPhase,
    TicketUpdate,
    WorkerId,
)
from tests.fleet import MODEL, spec

TELLER, SILENT = WorkerId("teller"), WorkerId("silent")
ACCEPTED, FINISHED = TicketPhase.ACCEPTED, TicketPhase.FINISHED
TICKET_S = 5.0


class Pool(WorkerPool):
    """A pool with one worker that tells and one that does not; each block is 400 bytes, 100 tokens."""

    def __init__(self, *models: str) -> None:
        super().__init__(lease_ttl_s=1e6, ticket_ttl_s=TICKET_S)
        self.teller = spec(TELLER, models=models or (MODEL,), reports_prefixes=True)
        self.handle(Registered(self.teller, 1), 0.0)
        self.handle(Registered(spec(SILENT, models=models or (MODEL,)), 2), 0.0)
        self._load_sequence = 0

    def tell(
        self,
        sequence: int,
        stored: tuple[int, ...] = (),
        removed: tuple[int, ...] = (),
        *,
        whole: bool = False,
        model: str = MODEL,
        worker_id: WorkerId = TELLER,
        epoch: int = 1,
    ) -> list[PoolEffect]:
        report = PrefixReport(sequence, model, whole, stored, removed)
        return self.handle(PrefixesReported(worker_id, Epoch(epoch), report), 0.0)

    def ask(self, *hashes: int, model: str = MODEL) -> PickRequest:
        return self.pick_request(RouteFacts("r", model, 400 * len(hashes), hashes, 400))

    def held(self, *hashes: int, model: str = MODEL, worker_id: WorkerId = TELLER) -> int:
        """Blocks that the worker is believed to hold."""
        return round(self.ask(*hashes, model=model).hit_tokens.get(worker_id, 0.0) / 100)

    def dispatch(self, ticket: int, *hashes: int, worker_id: WorkerId = TELLER) -> None:
        facts = RouteFacts("r", MODEL, 400 * len(hashes), hashes, 400)
        self.handle(Dispatched(Ticket(ticket), worker_id, self.pick_request(facts), facts), 0.0)

    def news(self, *updates: TicketUpdate, epoch: int = 1) -> None:
        self._load_sequence += 1
        report = LoadReport(self._load_sequence, ticket_updates=updates)
        self.handle(Reported(TELLER, Epoch(epoch), report), 0.0)


def test_what_a_worker_told_is_believed_of_it_and_of_nobody_else() -> None:
    pool = Pool()
    assert pool.tell(1, (1, 2), whole=True) == []
    assert pool.tell(2, (3,), (2,)) == []
    assert pool.ask(1, 3).hit_tokens == {TELLER: 200}
    assert pool.held(1, 2) == 1


def test_workers_that_tell_and_workers_that_do_not_are_believed_beside_each_other() -> None:
    pool = Pool()
    pool.tell(1, (1, 2), whole=True)
    pool.dispatch(1, 1, 2, 3, worker_id=SILENT)
    assert pool.ask(1, 2, 3).hit_tokens == {TELLER: 200, SILENT: 300}


def test_a_target_says_whether_it_wants_hashes() -> None:
    pool = Pool()
    assert {one.worker_id: one.spec.target.wants_prefix_hashes for one in pool.endpoints()} == {
        TELLER: True,
        SILENT: False,
    }


def test_a_missing_report_makes_all_that_was_told_forgotten_and_asked_for_once() -> None:
    pool = Pool()
    pool.tell(1, (1,), whole=True)
    assert pool.tell(3, (2,)) == [PrefixesMissed(pool.teller)]
    assert (pool.held(1), pool.held(2)) == (0, 0)
    assert pool.tell(4, (3,)) == []
    assert pool.tell(6, (3,)) == []
    assert pool.held(3) == 0
    assert pool.tell(7, (1, 2), whole=True) == []
    assert pool.held(1, 2) == 2
    assert pool.tell(9, (5,)) == [PrefixesMissed(pool.teller)]


def test_a_worker_that_does_not_begin_with_a_whole_is_asked_for_it() -> None:
    pool = Pool()
    assert pool.tell(1, (1,)) == [PrefixesMissed(pool.teller)]
    assert pool.held(1) == 0


def test_a_whole_report_fills_any_gap() -> None:
    pool = Pool()
    pool.tell(1, (1,), whole=True)
    assert pool.tell(40, (2,), whole=True) == []
    assert (pool.held(1), pool.held(2)) == (0, 1)


@pytest.mark.parametrize("sequence", [1, 2])
def test_what_is_told_again_or_late_changes_nothing(sequence: int) -> None:
    pool = Pool()
    pool.tell(1, (1,), whole=True)
    pool.tell(2, (2,))
    assert pool.tell(sequence, (9,), (1,), whole=sequence == 1) == []
    assert pool.held(1, 2, 9) == 2


def test_each_model_is_told_of_by_itself_and_a_gap_concerns_them_all() -> None:
    pool = Pool("a", "b")
    pool.tell(1, (1,), whole=True, model="a")
    pool.tell(2, (1, 2), whole=True, model="b")
    assert (pool.held(1, 2, model="a"), pool.held(1, 2, model="b")) == (1, 2)
    assert pool.tell(4, (3,), model="a") == [PrefixesMissed(pool.teller)]
    assert pool.tell(5, (1,), whole=True, model="a") == []
    assert pool.tell(6, (9,), model="b") == [PrefixesMissed(pool.teller)]
    assert (pool.held(1, model="a"), pool.held(1, model="b")) == (1, 0)


def test_of_a_model_that_the_worker_does_not_serve_nothing_is_kept() -> None:
    pool = Pool()
    assert pool.tell(1, (1,), whole=True, model="other") == []
    assert pool.tell(2, (1,), whole=True) == []
    assert pool.held(1) == 1


def test_reports_of_others_are_dropped() -> None:
    pool = Pool()
    assert pool.tell(1, (1,), whole=True, worker_id=WorkerId("unknown")) == []
    assert pool.tell(1, (1,), whole=True, epoch=2) == []
    assert pool.tell(1, (1,), whole=True, worker_id=SILENT) == []
    assert pool.ask(1).hit_tokens == {}


def test_a_stream_that_breaks_costs_nothing_that_was_told() -> None:
    pool = Pool()
    pool.tell(1, (1,), whole=True)
    pool.handle(Disconnected(TELLER, Epoch(1), 1), 0.1)
    pool.handle(Registered(pool.teller, 3), 0.2)
    assert pool.held(1) == 1


def test_what_was_asked_for_on_a_stream_that_broke_is_asked_for_again() -> None:
    pool = Pool()
    assert pool.tell(2, (1,)) == [PrefixesMissed(pool.teller)]
    pool.handle(Disconnected(TELLER, Epoch(1), 1), 0.1)
    pool.handle(Registered(pool.teller, 3), 0.2)
    assert pool.tell(3, (1,)) == [PrefixesMissed(pool.teller)]


def test_a_restarted_worker_holds_nothing() -> None:
    pool = Pool()
    pool.tell(1, (1,), whole=True)
    pool.handle(Registered(spec(TELLER, epoch=2, reports_prefixes=True), 3), 0.2)
    assert pool.held(1) == 0
    assert pool.tell(1, (2,), whole=True, epoch=2) == []
    assert pool.held(2) == 1


def test_a_prompt_counts_as_held_from_dispatch_to_the_end_of_its_request() -> None:
    pool = Pool()
    pool.tell(1, whole=True)
    pool.dispatch(1, 1, 2)
    assert pool.held(1, 2) == 2
    pool.news(TicketUpdate(Ticket(1), ACCEPTED, 200))
    assert pool.held(1, 2) == 2
    pool.tell(2, (1,))
    pool.news(TicketUpdate(Ticket(1), FINISHED, 200, 0, 5))
    assert pool.held(1, 2) == 1


def test_a_dispatch_that_never_arrived_makes_nobody_hold_anything() -> None:
    pool = Pool()
    pool.dispatch(1, 1)
    pool.handle(Released((Ticket(1),)), 0.0)
    assert pool.held(1) == 0
    pool.dispatch(2, 1)
    pool.handle(Ticked(), TICKET_S)
    assert pool.held(1) == 0


def test_of_tickets_whose_end_nobody_tells_the_oldest_are_given_up() -> None:
    pool = Pool()
    for ticket in range(1, MAX_PROMPTS + 2):
        pool.dispatch(ticket, ticket)
    pool.news(*(TicketUpdate(Ticket(ticket), ACCEPTED, 100) for ticket in range(1, MAX_PROMPTS + 2)))
    assert (pool.held(1), pool.held(2), pool.held(MAX_PROMPTS + 1)) == (0, 1, 1)


def test_cold_answers_take_nothing_from_what_was_told() -> None:
    pool = Pool()
    pool.tell(1, (1, 2), whole=True)
    for ticket in range(1, 20):
        pool.dispatch(ticket, 1, 2)
        pool.news(TicketUpdate(Ticket(ticket), ACCEPTED, 200))
        pool.news(TicketUpdate(Ticket(ticket), FINISHED, 200, 0, 5))
    assert pool.held(1, 2) == 2


BLOCKS = range(8)
some = st.lists(st.sampled_from(BLOCKS), max_size=4).map(tuple)
doings = st.sampled_from(
    ("tell", "tell", "lose", "again", "whole", "dispatch", "accept", "finish", "release", "reconnect", "restart")
)
happenings = st.lists(st.tuples(doings, some, some, st.integers(1, 6)), max_size=50)


@dataclass
class Plain:
    """A worker that tells, and what should be believed of it, in the plainest way."""

    cache: set[int] = field(default_factory=set)
    sequence: int = 0
    epoch: int = 1
    must_tell_all: bool = True
    in_step: bool = False
    """Whether all reports since the last whole one arrived."""
    missed: bool = False
    told: set[int] = field(default_factory=set)
    expected: dict[int, set[int]] = field(default_factory=dict)

    def report(self, stored: tuple[int, ...], removed: tuple[int, ...], whole: bool) -> PrefixReport:
        gone, come = self.cache & set(removed), set(stored) - self.cache
        self.cache = (self.cache - gone) | come
        self.sequence += 1
        whole = whole or self.must_tell_all
        self.must_tell_all = False
        if whole:
            return PrefixReport(self.sequence, MODEL, True, tuple(self.cache))
        return PrefixReport(self.sequence, MODEL, False, tuple(come - gone), tuple(gone - come))

    def heard(self, report: PrefixReport) -> None:
        if report.whole:
            self.in_step, self.missed, self.told = True, False, set(report.stored)
        elif self.missed or not self.in_step:
            self.in_step, self.told = False, set()
        else:
            self.told = (self.told - set(report.removed)) | set(report.stored)


@settings(derandomize=True, max_examples=300, database=None, deadline=None)
@given(happenings)
def test_whatever_comes_or_is_lost_the_belief_is_what_was_told_and_is_expected(
    happened: list[tuple[str, tuple[int, ...], tuple[int, ...], int]],
) -> None:
    pool, plain = Pool(), Plain()
    last: PrefixReport | None = None
    accepted: set[int] = set()
    for turn, (what, stored, removed, number) in enumerate(happened):
        # Tickets are never used twice: so many different ones are open at once.
        ticket = next((one for one in plain.expected if one % 6 == number % 6), 0)
        if what in ("tell", "lose", "whole"):
            report = plain.report(stored, removed, what == "whole")
            if what == "lose":
                plain.missed = True
                continue
            effects = pool.handle(PrefixesReported(TELLER, Epoch(plain.epoch), report), 0.0)
            plain.heard(report)
            plain.must_tell_all |= bool(effects)
            last = report
        elif what == "again" and last is not None:
            assert pool.handle(PrefixesReported(TELLER, Epoch(plain.epoch), last), 0.0) == []
        elif what == "dispatch" and not ticket:
            ticket = 6 * (turn + 1) + number
            pool.dispatch(ticket, *stored)
            plain.expected[ticket] = set(stored) - plain.told
        elif what in ("accept", "finish") and ticket:
            phase = ACCEPTED if what == "accept" else FINISHED
            pool.news(TicketUpdate(Ticket(ticket), phase, 100, 0, 1), epoch=plain.epoch)
            accepted.add(ticket)
            if what == "finish":
                del plain.expected[ticket]
        elif what == "release" and ticket:
            pool.handle(Released((Ticket(ticket),)), 0.0)
            # What the worker has is not given back.
            if ticket not in accepted:
                del plain.expected[ticket]
        elif what == "reconnect":
            pool.handle(Registered(spec(TELLER, epoch=plain.epoch, reports_prefixes=True), turn + 5), 0.0)
            plain.must_tell_all = True
        elif what == "restart":
            plain, last = Plain(epoch=plain.epoch + 1), None
            pool.handle(Registered(spec(TELLER, epoch=plain.epoch, reports_prefixes=True), turn + 5), 0.0)
        held = plain.told.union(*plain.expected.values())
        assert {block for block in BLOCKS if pool.held(block)} == held
    pool.handle(Deregistered(TELLER, Epoch(plain.epoch)), 0.0)
    assert all(not pool.ask(block).hit_tokens for block in BLOCKS)
