"""What the last turn of a session tells of the next."""

from __future__ import annotations

import pytest

from lbcore.credit import Account
from lbcore.pool import WorkerPool
from lbcore.pool_events import Deregistered, Dispatched, Registered, Reported
from lbcore.prefix import PREFIX_BLOCK_BYTES
from lbcore.sessions import MAX_ID_CHARS, MAX_SESSIONS, Sessions, Turn, goes_on
from lbcore.types import Epoch, LoadReport, RouteFacts, Ticket, TicketPhase, TicketUpdate, WorkerId
from tests.fleet import MODEL, spec

W0, W1 = WorkerId("w0"), WorkerId("w1")
ACCOUNT = Account(W0)


def test_the_last_turn_is_the_one_that_is_remembered() -> None:
    sessions = Sessions()
    sessions.answered("s", Turn(ACCOUNT, 100, 150))
    sessions.answered("s", Turn(ACCOUNT, 200, 250))
    assert sessions.last("s") == Turn(ACCOUNT, 200, 250)
    assert sessions.last("other") is None


def test_sessions_that_were_not_heard_of_are_forgotten() -> None:
    sessions = Sessions()
    for number in range(MAX_SESSIONS + 5):
        sessions.answered(str(number), Turn(ACCOUNT, 1, 2))
    assert len(sessions) == MAX_SESSIONS
    assert sessions.last("4") is None
    assert sessions.last("5") is not None


def test_a_name_without_end_is_not_kept() -> None:
    sessions = Sessions()
    sessions.answered("s" * (MAX_ID_CHARS + 1), Turn(ACCOUNT, 1, 2))
    assert len(sessions) == 0


@pytest.mark.parametrize(
    ("prompt_tokens", "held_tokens", "expected"),
    [(1500, 1000, True), (1500, 900, True), (1500, 500, False), (900, 900, False), (1500, None, True)],
)
def test_a_prompt_goes_on_when_it_is_longer_and_begins_alike(
    prompt_tokens: int, held_tokens: float | None, expected: bool
) -> None:
    assert goes_on(Turn(ACCOUNT, 1000, 1300), prompt_tokens, held_tokens) is expected


def test_of_a_short_turn_a_missing_block_is_no_difference() -> None:
    assert goes_on(Turn(ACCOUNT, 100, 130), 200, 0.0)


class Talk:
    """A session of 4,000 bytes that w0 answered with 500 tokens."""

    def __init__(self, *, hashes: bool) -> None:
        self.pool = WorkerPool(lease_ttl_s=1e9, ticket_ttl_s=1e9)
        for name in ("w0", "w1"):
            self.pool.handle(Registered(spec(name), 0), 0.0)
        self.hashes = tuple(range(1, 16)) if hashes else ()
        facts = RouteFacts("r", MODEL, 4000, self.hashes, PREFIX_BLOCK_BYTES, session_id="s")
        self.pool.handle(Dispatched(Ticket(1), W0, self.pool.pick_request(facts), facts), 0.0)
        phases = (TicketPhase.ACCEPTED, TicketPhase.FINISHED)
        updates = tuple(TicketUpdate(Ticket(1), phase, 1000, 0, 500, 10.0, 20.0) for phase in phases)
        self.pool.handle(Reported(W0, Epoch(1), LoadReport(1, ticket_updates=updates)), 0.0)

    def hits(self, session: str = "s", *, begins_alike: bool = True, prompt_bytes: int = 8000) -> dict[WorkerId, float]:
        hashes = self.hashes if begins_alike else tuple(range(100, 115))
        facts = RouteFacts("r", MODEL, prompt_bytes, hashes, PREFIX_BLOCK_BYTES, session_id=session)
        return dict(self.pool.pick_request(facts).hit_tokens)


def test_the_answer_counts_where_the_next_prompt_goes_on_from_it() -> None:
    talk = Talk(hashes=True)
    assert talk.hits("") == {W0: pytest.approx(960)}
    assert talk.hits() == {W0: pytest.approx(1500)}


def test_a_session_that_begins_anew_holds_nothing() -> None:
    assert Talk(hashes=True).hits(begins_alike=False) == {}


def test_callers_that_do_not_hash_have_their_session_instead() -> None:
    talk = Talk(hashes=False)
    assert talk.hits() == {W0: pytest.approx(1500)}
    assert talk.hits("another") == {}
    assert talk.hits(prompt_bytes=2000) == {}


def test_no_more_is_held_than_there_is_of_a_prompt() -> None:
    assert Talk(hashes=False).hits(prompt_bytes=4400) == {W0: pytest.approx(1100)}


@pytest.mark.parametrize("again", [False, True])
def test_what_is_gone_with_a_worker_is_held_by_nobody(again: bool) -> None:
    talk = Talk(hashes=False)
    talk.pool.handle(Deregistered(W0, Epoch(1)), 1.0)
    if again:
        talk.pool.handle(Registered(spec("w0", epoch=2), 1), 1.0)
    assert talk.hits() == {}
