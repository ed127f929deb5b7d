"""What can happen to a worker pool, and what follows from it. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lbcore.types import Epoch, LoadReport, PickRequest, PrefixReport, RouteFacts, Ticket, WorkerId, WorkerSpec


@dataclass(frozen=True, slots=True)
class Registered:
    """A worker said what it is, on a connection that the shell numbered."""

    spec: WorkerSpec
    connection: int


@dataclass(frozen=True, slots=True)
class Reported:
    """A worker's load report arrived."""

    worker_id: WorkerId
    epoch: Epoch
    report: LoadReport


@dataclass(frozen=True, slots=True)
class PrefixesReported:
    """A worker's news of its prefix cache arrived."""

    worker_id: WorkerId
    epoch: Epoch
    report: PrefixReport


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A worker's connection broke."""

    worker_id: WorkerId
    epoch: Epoch
    connection: int


@dataclass(frozen=True, slots=True)
class DrainNoticed:
    """A worker takes nothing new from now on, by its own word or an operator's."""

    worker_id: WorkerId
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Deregistered:
    """A worker has gone in good order, or an operator removed it."""

    worker_id: WorkerId
    epoch: Epoch


class Dispatched(NamedTuple):
    """A request was sent to a worker under a ticket never used before."""

    ticket: Ticket
    worker_id: WorkerId
    request: PickRequest
    """What the pick knew of it."""
    facts: RouteFacts


@dataclass(frozen=True, slots=True)
class Released:
    """These dispatches never reached their workers."""

    tickets: tuple[Ticket, ...]


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time went by."""


PoolEvent = (
    Registered
    | Reported
    | PrefixesReported
    | Disconnected
    | DrainNoticed
    | Deregistered
    | Dispatched
    | Released
    | Ticked
)


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker can be picked that could not before."""

    spec: WorkerSpec


@dataclass(frozen=True, slots=True)
class WorkerReturned:
    """A worker's stream broke and came back; what was known of it still holds."""

    spec: WorkerSpec


@dataclass(frozen=True, slots=True)
class WorkerSilent:
    """A worker's stream broke; its lease still runs."""

    spec: WorkerSpec


@dataclass(frozen=True, slots=True)
class WorkerDraining:
    """A worker takes nothing new."""

    spec: WorkerSpec


@dataclass(frozen=True, slots=True)
class WorkerUnready:
    """A worker's engine cannot serve for now, or can again."""

    spec: WorkerSpec
    unready: bool


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    """A worker has gone in good order."""

    spec: WorkerSpec


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker has gone otherwise."""

    spec: WorkerSpec
    reason: str
    """`replaced` or `lease expired`."""


@dataclass(frozen=True, slots=True)
class ReportRejected:
    """A report came from a worker that is not in the pool, or not in this epoch: it must register again."""

    worker_id: WorkerId
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class PrefixesMissed:
    """A prefix report of this worker never came: what it told is forgotten, and it must tell all of it again."""

    spec: WorkerSpec


@dataclass(frozen=True, slots=True)
class CreditReleased:
    """So many of the released tickets were still booked."""

    count: int


@dataclass(frozen=True, slots=True)
class TicketsExpired:
    """So many dispatches were never acknowledged in their time; their credit is taken back."""

    count: int


PoolEffect = (
    WorkerJoined
    | WorkerReturned
    | WorkerSilent
    | WorkerDraining
    | WorkerUnready
    | WorkerLeft
    | WorkerLost
    | ReportRejected
    | PrefixesMissed
    | CreditReleased
    | TicketsExpired
)
