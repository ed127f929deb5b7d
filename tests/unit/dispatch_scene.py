"""A dispatcher among a scheduler and workers that say what they were told to, and everything that came out of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import pytest

from lbcore.dispatch import Attempt, Dispatch, Dispatcher, End
from lbcore.errors import LoadBalancerError, NoReadyWorker, WorkerUnreachable
from lbcore.flow import Take
from lbcore.generation import Delta, Dialect, Event, Finished, GenerationRequest, Started
from lbcore.types import NO_TICKET, Epoch, Route, RouteFacts, Target, Ticket, WorkerId
from tests.fakes import ManualClock

STARTED, TOKEN, MORE, END = Started(10), Delta(text="a"), Delta(text="b"), Finished(10, 0, 2)
UNREACHABLE = WorkerUnreachable("The worker cannot be reached.")
NOBODY = NoReadyWorker("Nobody is ready.")

Batch = list[Event]


def target(name: str) -> Target:
    return Target(WorkerId(name), Epoch(1), f"{name}:8000")


class FakeRouting:
    """A scheduler that gives the answers it was told to give, and notes what it was asked and given back."""

    def __init__(self, *answers: Route | LoadBalancerError) -> None:
        self._answers = list(answers)
        self.asked: list[RouteFacts] = []
        self.time_limits: list[float | None] = []
        self.returned: list[Ticket] = []
        self.questions: list[asyncio.Handle] = []
        self._answered: Callable[[Route | LoadBalancerError], None]

    def ask(
        self,
        facts: RouteFacts,
        answered: Callable[[Route | LoadBalancerError], None],
        abandoned: tuple[Ticket, ...],
        timeout_s: float | None,
    ) -> asyncio.Handle:
        self.asked.append(facts)
        self.time_limits.append(timeout_s)
        self.returned += abandoned
        self._answered = answered
        loop = asyncio.get_running_loop()
        # Without an answer left to give, it is silent.
        question = loop.call_soon(answered, self._answers.pop(0)) if self._answers else loop.call_soon(lambda: None)
        self.questions.append(question)
        return question

    def will_say(self, *answers: Route | LoadBalancerError) -> None:
        self._answers += answers

    def forget_answers(self) -> None:
        self._answers.clear()

    def answer(self, answer: Route | LoadBalancerError) -> None:
        """Breaks its silence."""
        self._answered(answer)

    def release(self, ticket: Ticket) -> None:
        if ticket != NO_TICKET:
            self.returned.append(ticket)


class FakeCall:
    """A call whose batches of events are known beforehand; after the last it is silent until it is fed.

    A batch is handed over in a turn of its own. While paused, or when cancelled, none is.
    """

    def __init__(self, request: GenerationRequest, take: Take, batches: list[Batch]) -> None:
        self.request = request
        self.is_cancelled = False
        self._take = take
        self.is_paused = False
        self._waiting: deque[Batch] = deque()
        for batch in batches:
            self.feed(batch)

    def feed(self, batch: Batch) -> None:
        self._waiting.append([*batch])
        self._go_on()

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False
        self._go_on()

    def cancel(self) -> None:
        self.is_cancelled = True

    def _go_on(self) -> None:
        asyncio.get_running_loop().call_soon(self._hand_over)

    def _hand_over(self) -> None:
        if self._waiting and not self.is_paused and not self.is_cancelled:
            self._take(self._waiting.popleft(), self)
            self._go_on()


class FakeWorkers:
    """Workers by name, each with what it answers to each request it gets."""

    def __init__(self, **answers: list[Batch]) -> None:
        self._answers = answers
        self.calls: dict[str, FakeCall] = {}
        """The last of each."""

    def to(self, target: Target) -> FakeClient:
        return FakeClient(self, target.worker_id)

    def will_answer(self, name: str, batches: list[Batch]) -> None:
        self._answers[name] = batches

    def answer(self, name: str) -> list[Batch]:
        return self._answers[name]


class FakeClient:
    def __init__(self, workers: FakeWorkers, name: str) -> None:
        self._workers = workers
        self._name = name

    def begin(self, request: GenerationRequest, take: Take) -> FakeCall:
        call = self._workers.calls[self._name] = FakeCall(request, take, self._workers.answer(self._name))
        return call


class Scene:
    """A dispatcher among fakes, and everything that came out of it."""

    def __init__(self, routing: FakeRouting, workers: FakeWorkers) -> None:
        self.routing = routing
        self.workers = workers
        self.clock = ManualClock()
        self.attempts: list[tuple[str, str | None]] = []
        self.batches: list[Batch] = []
        collaborators: Any = (routing, workers)
        self.dispatcher = Dispatcher(*collaborators, self.clock)

    def run(self, **request: Any) -> AsyncGenerator[Batch, None]:
        """The pulled form."""
        return self.dispatcher.batches(*self._asked(request), self._observe)

    async def push(self, take: Take, **request: Any) -> Finished:
        """The pushed form."""
        return await self.dispatcher.run(*self._asked(request), take, self._observe)

    async def read(self, **request: Any) -> None:
        """Runs a request to its end and keeps the batches."""
        async with aclosing(self.run(**request)) as batches:
            async for batch in batches:
                self.batches.append(batch)

    async def fail(self, **request: Any) -> LoadBalancerError:
        """Runs a request to the error it ends in."""
        with pytest.raises(LoadBalancerError) as caught:
            await self.read(**request)
        return caught.value

    @property
    def events(self) -> Batch:
        return [event for batch in self.batches for event in batch]

    def start(self, take: Take, done: Callable[[End], None], **request: Any) -> Dispatch:
        """The form without a task."""
        return self.dispatcher.start(*self._asked(request), take, done, self._observe)

    @staticmethod
    def _asked(request: dict[str, Any]) -> tuple[RouteFacts, GenerationRequest]:
        tried, limit = request.pop("tried", frozenset()), request.pop("max_output_tokens", 0)
        facts = RouteFacts("r", "m", 600, (1, 2), max_output_tokens=limit, tried=tried)
        return facts, GenerationRequest("r", Dialect.CHAT, b"{}", **request)

    def _observe(self, attempt: Attempt) -> None:
        self.attempts.append((attempt.worker_id, attempt.error.reason if attempt.error else None))


def route(name: str, ticket: int, *fallbacks: str) -> Route:
    return Route(target(name), Ticket(ticket), tuple(map(target, fallbacks)))
