"""The ledger of credit."""

from __future__ import annotations

from lbcore.credit import MAX_LESSONS, Account, Booking, Ledger
from lbcore.types import Ticket, WorkerId


def account(name: str = "w0") -> Account:
    return Account(WorkerId(name))


def booking(owner: Account, tokens: int = 100, expires_at: float = 10.0) -> Booking:
    return Booking(owner, 0.0, expires_at, tokens, tokens / 10, "model", prompt_bytes=400, held_ratio=0.0)


def test_an_account_is_the_sum_of_its_open_bookings() -> None:
    ledger, owner = Ledger(), account()
    ledger.book(Ticket(1), booking(owner, 100))
    ledger.book(Ticket(2), booking(owner, 50))
    assert (owner.requests, owner.tokens, len(ledger)) == (2, 150, 2)


def test_a_ticket_is_booked_once() -> None:
    ledger, owner, other = Ledger(), account(), account("w1")
    ledger.book(Ticket(1), booking(owner))
    ledger.book(Ticket(1), booking(other))
    assert (owner.requests, other.requests) == (1, 0)


def test_credit_goes_back_once_whoever_asks_again() -> None:
    ledger, owner = Ledger(), account()
    ledger.book(Ticket(1), booking(owner))
    assert ledger.accept(Ticket(1), owner) is not None
    assert ledger.accept(Ticket(1), owner) is None
    assert ledger.finish(Ticket(1), owner) is None
    assert ledger.release([Ticket(1)]) == []
    assert (owner.requests, owner.tokens) == (0, 0)


def test_only_its_own_account_can_acknowledge_a_ticket() -> None:
    ledger, owner, stranger = Ledger(), account(), account()
    ledger.book(Ticket(1), booking(owner))
    assert ledger.accept(Ticket(1), stranger) is None
    assert ledger.finish(Ticket(1), stranger) is None
    assert owner.requests == 1


def test_a_ticket_released_twice_in_one_breath_counts_once() -> None:
    ledger, owner = Ledger(), account()
    ledger.book(Ticket(1), booking(owner))
    assert [one.account for one in ledger.release([Ticket(1), Ticket(1), Ticket(9)])] == [owner]


def test_bookings_expire_at_their_time_and_not_before() -> None:
    ledger, owner = Ledger(), account()
    ledger.book(Ticket(1), booking(owner, expires_at=10.0))
    ledger.book(Ticket(2), booking(owner, expires_at=20.0))
    assert ledger.expire(9.9) == []
    assert ledger.next_expiry() == 10.0
    assert [one.account for one in ledger.expire(10.0)] == [owner]
    assert ledger.next_expiry() == 20.0


def test_a_closed_account_has_no_credit_and_others_keep_theirs() -> None:
    ledger, owner, other = Ledger(), account(), account("w1")
    ledger.book(Ticket(1), booking(owner))
    ledger.book(Ticket(2), booking(other))
    ledger.close(owner)
    assert (owner.requests, other.requests, len(ledger)) == (0, 1, 1)


def test_what_is_kept_of_an_accepted_booking_is_given_out_when_it_finishes() -> None:
    ledger, owner = Ledger(), account()
    ledger.keep(Ticket(1), booking(owner))
    assert ledger.finish(Ticket(1), owner) is not None
    assert ledger.finish(Ticket(1), owner) is None


def test_lessons_are_bounded_and_the_oldest_is_given_up() -> None:
    ledger, owner = Ledger(), account()
    for number in range(MAX_LESSONS + 1):
        ledger.keep(Ticket(number), booking(owner))
    assert len(owner.lessons) == MAX_LESSONS
    assert ledger.finish(Ticket(0), owner) is None
