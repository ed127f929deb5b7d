"""The ledger of credit: expected work that was dispatched and that no report acknowledges yet.

It knows tickets and accounts, not workers, leases or models.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

from lbcore.types import NO_TICKET, Ticket, WorkerId

MAX_LESSONS = 1024
"""Accepted dispatches remembered for each account because their end still teaches something; the oldest are forgotten.

Four times the 256 sequences that engines run at once by default, at about 350 bytes each.
"""


@dataclass(slots=True, eq=False)
class Account:
    """What one worker epoch has been sent and has not acknowledged. Only the ledger changes it."""

    worker_id: WorkerId
    open: dict[Ticket, Booking] = field(default_factory=dict)
    """Its open bookings, in the order in which they were made."""
    tokens: int = 0
    """Expected uncached prompt tokens over its open bookings."""
    lessons: OrderedDict[Ticket, Booking] = field(default_factory=OrderedDict)
    """Accepted bookings whose end still teaches something, oldest first; they are no credit."""

    @property
    def requests(self) -> int:
        """How many open bookings there are."""
        return len(self.open)


class Booking(NamedTuple):
    """One dispatch."""

    account: Account
    at: float
    """When it was dispatched."""
    expires_at: float
    tokens: int
    """Expected uncached prompt tokens."""
    prefill_ms: float
    """Expected milliseconds that they take."""
    model: str
    prompt_bytes: int
    """0 when nothing is to be learned from them, or nothing any more."""
    held_ratio: float
    """Which part of the prompt the worker was believed to hold, 0..1."""
    ticket: Ticket = NO_TICKET
    """Its own number, for what else hangs on it."""
    loaded_ttft_ms: float = -1.0
    """When its first token would have been expected had its adapter been loaded; negative when it was."""
    session_id: str = ""


class Ledger:
    """Open bookings by ticket. Credit leaves an account only in `_close`, together with its booking: never twice."""

    def __init__(self) -> None:
        # First to expire first: time never runs backwards in a pool, and all have the same time to live.
        self._open: OrderedDict[Ticket, Booking] = OrderedDict()

    def book(self, ticket: Ticket, booking: Booking) -> None:
        """Give credit; a ticket that is open already changes nothing."""
        if ticket not in self._open:
            self._open[ticket] = booking
            booking.account.open[ticket] = booking
            booking.account.tokens += booking.tokens

    def accept(self, ticket: Ticket, account: Account) -> Booking | None:
        """Take back the credit of a ticket that is open for `account`."""
        booking = self._open.get(ticket)
        if booking is None or booking.account is not account:
            return None
        return self._close(ticket)

    def finish(self, ticket: Ticket, account: Account) -> Booking | None:
        """The same for a ticket whose request is over; what was kept of an accepted one is given out here."""
        return self.accept(ticket, account) or account.lessons.pop(ticket, None)

    def keep(self, ticket: Ticket, booking: Booking) -> None:
        """Remember an accepted booking until it finishes."""
        lessons = booking.account.lessons
        lessons[ticket] = booking
        if len(lessons) > MAX_LESSONS:
            lessons.popitem(last=False)

    def release(self, tickets: Iterable[Ticket]) -> list[Booking]:
        """Take back the credit of these tickets, whoever has it: the bookings of those that were open."""
        return [self._close(ticket) for ticket in tickets if ticket in self._open]

    def expire(self, now: float) -> list[Booking]:
        """Take back the credit whose time is over: the bookings."""
        due = takewhile(lambda item: item[1].expires_at <= now, self._open.items())
        return self.release([ticket for ticket, _ in due])

    def close(self, account: Account) -> None:
        """Take back all credit of an account; nothing more is learned of it."""
        self.release(list(account.open))
        account.lessons.clear()

    def next_expiry(self) -> float | None:
        """When the first open booking expires."""
        return next((booking.expires_at for booking in self._open.values()), None)

    def __len__(self) -> int:
        return len(self._open)

    def _close(self, ticket: Ticket) -> Booking:
        booking = self._open.pop(ticket)
        account = booking.account
        del account.open[ticket]
        account.tokens -= booking.tokens
        return booking
