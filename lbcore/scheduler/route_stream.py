"""One RouteStream: its questions, those of them that wait, and the answers to be written.

A question is answered in the turn in which it is read: with the decision, with why there is none, or with the word that
it waits; then the decision follows when there is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache, partial

from lbcore.api.v1 import routing_pb2
from lbcore.errors import InvalidRequest, LoadBalancerError
from lbcore.pool_events import Released
from lbcore.scheduler.desk import Place
from lbcore.scheduler.state import SchedulerState
from lbcore.types import Route, Target, Ticket
from lbcore.wire.convert import explanation_to_proto, facts_from_proto, target_to_proto, timeout_from_proto
from lbcore.wire.outbox import Outbox
from lbcore.wire.status import failure_from_error

_MAX_ANSWERS = 4096
"""Answers that are never parted: at some 300 bytes each about a megabyte, far below the bound of a message."""


class RouteStream:
    """`outbox` holds what is to be written; several of its messages are one with `build`."""

    def __init__(self, state: SchedulerState) -> None:
        self.outbox: Outbox[routing_pb2.RouteStreamResponse] = Outbox()
        self._state = state
        #: Those that wait, by the number of their call.
        self._places: dict[int, Place] = {}
        self._is_half_closed = False

    def deliver(self, message: routing_pb2.RouteStreamRequest) -> None:
        """Takes what the caller says."""
        calls = message.calls
        # Before any decision: the work of failed attempts is not on their workers any more. And before any question
        # waits, since those who do are served when work is given back.
        if message.abandoned_tickets:
            self._release(message.abandoned_tickets)
        for call in calls:
            if call.request.abandoned_tickets:
                self._release(call.request.abandoned_tickets)
        for start in range(0, len(calls), _MAX_ANSWERS):
            answers = self._answers(calls[start : start + _MAX_ANSWERS])
            self.outbox.put(answers, answers.ByteSize())
        # Behind the questions: one that was withdrawn before it had left comes in the same message.
        for call_id in message.withdrawn_call_ids:
            place = self._places.pop(call_id, None)
            if place is not None:
                place.withdraw()
        self._close_if_done()

    def half_close(self) -> None:
        """The caller will say no more: the stream ends with the last answer."""
        self._is_half_closed = True
        self._close_if_done()

    def stop(self) -> None:
        """The stream is over, and nobody hears of its questions any more."""
        places, self._places = self._places, {}
        for place in places.values():
            place.withdraw()

    @staticmethod
    def build(answers: list[routing_pb2.RouteStreamResponse]) -> routing_pb2.RouteStreamResponse:
        """One message of many."""
        if len(answers) == 1:
            return answers[0]
        batch = routing_pb2.RouteStreamResponse()
        for some in answers:
            batch.MergeFrom(some)
        return batch

    def _answers(self, calls: Iterable[routing_pb2.RouteCall]) -> routing_pb2.RouteStreamResponse:
        answers = routing_pb2.RouteStreamResponse()
        for call in calls:
            if call.request.explain:
                self._answer_alone(call)
                continue
            # Filled in where it stands: a message that is made elsewhere is copied into the one that holds it.
            result = answers.results.add()
            result.call_id = call.call_id
            self._answer_or_refuse(call, result)
        return answers

    def _answer_alone(self, call: routing_pb2.RouteCall) -> None:
        """An explanation names the whole fleet: many in one message would be more than a message may hold."""
        answers = routing_pb2.RouteStreamResponse()
        result = answers.results.add()
        result.call_id = call.call_id
        self._answer_or_refuse(call, result)
        self.outbox.put(answers, answers.ByteSize())

    def _answer_or_refuse(self, call: routing_pb2.RouteCall, result: routing_pb2.RouteResult) -> None:
        try:
            self._answer(call.call_id, call.request, result)
        except LoadBalancerError as error:
            result.failure.CopyFrom(failure_from_error(error))

    def _answer(self, call_id: int, message: routing_pb2.RouteRequest, result: routing_pb2.RouteResult) -> None:
        if call_id in self._places:
            raise InvalidRequest("call_id is that of a question that waits", param="call_id")
        facts = facts_from_proto(message)
        found = self._state.desk.ask(facts, partial(self._tell, call_id), timeout_from_proto(message))
        if isinstance(found, Place):
            self._places[call_id] = found
            result.waiting.waiting_request_count = self._state.desk.waiting(facts.model)
        else:
            _write(found, result.response)

    def _tell(self, call_id: int, answer: Route | LoadBalancerError) -> None:
        del self._places[call_id]
        message = routing_pb2.RouteStreamResponse()
        result = message.results.add()
        result.call_id = call_id
        if isinstance(answer, LoadBalancerError):
            result.failure.CopyFrom(failure_from_error(answer))
        else:
            _write(answer, result.response)
        self.outbox.put(message, message.ByteSize())
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._is_half_closed and not self._places:
            self.outbox.close()

    def _release(self, tickets: Sequence[int]) -> None:
        self._state.handle(Released(tuple(map(Ticket, tickets))))


def _write(route: Route, response: routing_pb2.RouteResponse) -> None:
    response.worker.CopyFrom(_target(route.target))
    response.ticket = route.ticket
    for fallback in route.fallbacks:
        response.fallbacks.append(_target(fallback))
    response.predicted_ttft_ms = route.predicted_ttft_ms
    if route.explanation is not None:
        response.explanation.CopyFrom(explanation_to_proto(route.explanation))


@lru_cache(maxsize=4096)
def _target(target: Target) -> routing_pb2.WorkerTarget:
    """To be copied, never changed: the same for every route to a worker."""
    return target_to_proto(target)
