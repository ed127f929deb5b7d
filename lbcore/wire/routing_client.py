"""The client of the scheduler: asks where requests should go, and follows the routing table."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import NamedTuple

import grpc
import structlog

from lbcore.api.v1 import routing_pb2, routing_pb2_grpc
from lbcore.deadlines import Deadlines
from lbcore.errors import DeadlineExceeded, InvalidRequest, LoadBalancerError, SchedulerLost
from lbcore.types import NO_TICKET, Route, RouteFacts, Ticket, WorkerId, WorkerStatus
from lbcore.wire.channel import open_channel
from lbcore.wire.convert import route_from_proto, worker_status_from_proto, write_facts
from lbcore.wire.mux import MuxClient
from lbcore.wire.status import error_from_failure, error_from_rpc

log = structlog.get_logger()

SILENCE_S = 2.0
"""A scheduler that says nothing of a question for so long counts as gone. It answers in about a millisecond, if only
that the request waits; two seconds forgive it a pause."""

PROBE_S = 0.5
"""One that counts as gone for its silence is asked again so often; others do not wait for what it says."""

WAITING_GRACE_S = 1.0
"""The scheduler ends a request itself whose time is over while it waits; one of which nothing was heard this much later
it has forgotten."""

_QUESTION_BYTES = 100
"""Of a question beside its hashes and its strings: a dozen numbers, the names of a few workers."""

Answered = Callable[[Route | LoadBalancerError], None]
"""Takes where a request should go, or why nobody can say. Must not raise."""


@dataclass(frozen=True, slots=True)
class TableStep:
    """A step of the routing table: forget everything first when `snapshot` is set."""

    snapshot: bool
    workers: tuple[WorkerStatus, ...]
    removed: tuple[WorkerId, ...]


class Question:
    """A route that is asked for, until its answer is there."""

    __slots__ = ("_client", "abandoned", "answered", "call_id", "facts", "is_cancelled", "is_waiting", "timeout_s")

    def __init__(
        self,
        client: RoutingClient,
        call_id: int,
        facts: RouteFacts,
        abandoned: tuple[Ticket, ...],
        timeout_s: float | None,
        answered: Answered,
    ) -> None:
        self._client = client
        self.call_id = call_id
        self.facts = facts
        self.abandoned = abandoned
        self.timeout_s = timeout_s
        self.answered = answered
        self.is_cancelled = False
        self.is_waiting = False
        """Whether the scheduler has said that it waits there."""

    def cancel(self) -> None:
        """Nobody wants the answer any more: what is booked with it will be given back. Harmless once it came."""
        self.is_cancelled = True
        self._client.withdraw(self)

    def refuse(self, error: Exception) -> None:
        """No message can carry it. The others that would have travelled with it have no part in that."""
        self._client.forget(self)
        refusal = InvalidRequest(f"The request cannot be sent: {error}.")
        asyncio.get_running_loop().call_soon(self._tell, refusal)

    def expire(self) -> None:
        """Its time is over, or the scheduler's to say a word."""
        was_silent = not self.is_waiting and (self.timeout_s is None or self.timeout_s >= SILENCE_S)
        self._client.withdraw(self)
        if was_silent:
            self._client.was_silent()
            self.answered(SchedulerLost("The scheduler does not answer."))
        else:
            self.answered(DeadlineExceeded("No worker was found in time."))

    def _tell(self, refusal: InvalidRequest) -> None:
        if not self.is_cancelled:
            self.answered(refusal)


class _Withdrawn(NamedTuple):
    """A question that waits at the scheduler for nobody."""

    call_id: int


class RoutingClient:
    """Asks the scheduler where requests should go."""

    def __init__(self, address: str) -> None:
        self._channel = open_channel(address)
        self._stub = routing_pb2_grpc.RoutingServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._mux: MuxClient[Question | Ticket | _Withdrawn, routing_pb2.RouteStreamResponse] = MuxClient(
            address,
            "/lbcore.api.v1.RoutingService/RouteStream",
            _route_batch,
            routing_pb2.RouteStreamResponse.FromString,
            self._deliver,
            self._lost,
        )
        self._asked: dict[int, Question] = {}
        self._deadlines = Deadlines()
        self._next_call_id = 0
        self._silent_since: float | None = None
        """When the scheduler began to count as gone for its silence, or was last asked in spite of that; None when it
        does not."""

    def ask(
        self,
        facts: RouteFacts,
        answered: Answered,
        abandoned: tuple[Ticket, ...] = (),
        timeout_s: float | None = None,
    ) -> Question:
        """Asks where to send a request; `answered` hears it once, after this has returned, unless it is cancelled.

        `abandoned` are tickets of the request's earlier attempts that never reached a worker. While no worker has room
        the request waits at the scheduler, up to `timeout_s`. The answer may be NoReadyWorker (nobody can serve now),
        SchedulerLost (it cannot be reached or is silent), DeadlineExceeded (there was no answer in time; nothing stays
        booked), or whatever else the scheduler says.
        """
        if self._silent_since is not None:
            return self._not_asked(facts, answered)
        return self._ask(facts, answered, abandoned, timeout_s)

    def was_silent(self) -> None:
        """The scheduler has said nothing of a question for too long."""
        self._silent_since = asyncio.get_running_loop().time()

    def forget(self, question: Question) -> None:
        """Stops listening for an answer."""
        self._deadlines.drop(question)
        self._asked.pop(question.call_id, None)

    def withdraw(self, question: Question) -> None:
        """Stops listening for an answer, and lets the scheduler know where it waits there."""
        self.forget(question)
        if question.is_waiting:
            question.is_waiting = False
            # With the stream its questions are gone.
            if self._mux.is_open:
                self._mux.send(_Withdrawn(question.call_id))

    def release(self, ticket: Ticket) -> None:
        """Gives back a ticket whose request never reached a worker."""
        if ticket != NO_TICKET:
            self._mux.send(ticket)

    async def watch(self) -> AsyncIterator[TableStep]:
        """The routing table, as snapshot and changes, until the scheduler goes away.

        Raises:
            LoadBalancerError: the scheduler cannot be reached or went away.
        """
        try:
            async for message in self._stub.WatchWorkers(routing_pb2.WatchWorkersRequest()):
                yield TableStep(
                    message.snapshot,
                    tuple(worker_status_from_proto(status) for status in message.workers),
                    tuple(WorkerId(worker_id) for worker_id in message.removed_worker_ids),
                )
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error

    async def close(self) -> None:
        await self._mux.close()
        await self._channel.close()

    def _ask(
        self, facts: RouteFacts, answered: Answered, abandoned: tuple[Ticket, ...], timeout_s: float | None
    ) -> Question:
        self._next_call_id += 1
        call_id = self._next_call_id
        question = self._asked[call_id] = Question(self, call_id, facts, abandoned, timeout_s, answered)
        size = _QUESTION_BYTES + 8 * len(facts.prefix_hashes)
        size += len(facts.request_id) + len(facts.model) + len(facts.session_id) + len(facts.tenant)
        self._mux.send(question, size)
        self._deadlines.add(question, SILENCE_S if timeout_s is None else min(timeout_s, SILENCE_S))
        return question

    def _not_asked(self, facts: RouteFacts, answered: Answered) -> Question:
        """What becomes of a question while the scheduler counts as gone for its silence; now and then it is asked all
        the same, for nobody, to hear whether it is back."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._silent_since is not None and now >= self._silent_since + PROBE_S:
            self._silent_since = now
            self._ask(facts, self._give_back, (), None)
        question = Question(self, 0, facts, (), None, answered)
        loop.call_soon(self._tell, question, SchedulerLost("The scheduler does not answer."))
        return question

    def _give_back(self, answer: Route | LoadBalancerError) -> None:
        if isinstance(answer, Route):
            self.release(answer.ticket)

    def _deliver(self, message: routing_pb2.RouteStreamResponse) -> None:
        self._silent_since = None
        for result in message.results:
            kind = result.WhichOneof("result")
            if kind == "waiting":
                self._wait(result.call_id)
                continue
            question = self._asked.pop(result.call_id, None)
            answer: Route | LoadBalancerError
            if kind == "response":
                answer = route_from_proto(result.response)
                if question is None:
                    self.release(answer.ticket)
                    continue
            else:
                answer = error_from_failure(result.failure)
            if question is not None:
                self._tell(question, answer)

    def _wait(self, call_id: int) -> None:
        question = self._asked.get(call_id)
        if question is None:
            self._mux.send(_Withdrawn(call_id))
            return
        question.is_waiting = True
        # From here on the scheduler is not silent, and only the request's own time counts.
        self._deadlines.drop(question)
        if question.timeout_s is not None:
            self._deadlines.add(question, question.timeout_s + WAITING_GRACE_S)

    def _lost(self) -> None:
        # The next one finds out at once whether it can be reached.
        self._silent_since = None
        asked, self._asked = self._asked, {}
        for question in asked.values():
            self._tell(question, SchedulerLost("The scheduler cannot be reached."))

    def _tell(self, question: Question, answer: Route | LoadBalancerError) -> None:
        self._deadlines.drop(question)
        question.is_waiting = False
        if question.is_cancelled:
            return
        try:
            question.answered(answer)
        except Exception:
            # Against the contract; the others on the stream have no part in it.
            log.exception("answer_not_taken", request_id=question.facts.request_id)


def _route_batch(items: list[Question | Ticket | _Withdrawn]) -> tuple[bytes]:
    batch = routing_pb2.RouteStreamRequest()
    add = batch.calls.add
    for item in items:
        if isinstance(item, Question):
            # Filled in where it stands: a message that is made elsewhere is copied into the one that holds it.
            call = add()
            call.call_id = item.call_id
            try:
                write_facts(item.facts, item.abandoned, item.timeout_s, call.request)
            except (TypeError, ValueError) as error:
                del batch.calls[-1]
                item.refuse(error)
        elif isinstance(item, _Withdrawn):
            batch.withdrawn_call_ids.append(item.call_id)
        else:
            batch.abandoned_tickets.append(item)
    return (batch.SerializeToString(),)
