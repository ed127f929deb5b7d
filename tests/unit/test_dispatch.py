"""One request's way: elsewhere before the first token, never after it, and nothing left booked or running."""

from __future__ import annotations

import asyncio

import pytest

from lbcore.dispatch import MAX_ATTEMPTS, End
from lbcore.errors import (
    Cancelled,
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    LoadBalancerError,
    ModelNotFound,
    Saturated,
    StreamInterrupted,
    WorkerUnreachable,
)
from lbcore.flow import Flow
from lbcore.generation import Embedding, Failed, Started
from lbcore.types import NO_TICKET, Route, Ticket, WorkerId
from tests.fakes import settle
from tests.unit.dispatch_scene import (
    END,
    MORE,
    NOBODY,
    STARTED,
    TOKEN,
    UNREACHABLE,
    Batch,
    FakeRouting,
    FakeWorkers,
    Scene,
    route,
    target,
)


async def test_a_good_answer_is_passed_on_batch_by_batch() -> None:
    scene = Scene(FakeRouting(route("w0", 1)), FakeWorkers(w0=[[STARTED, TOKEN], [MORE], [END]]))
    await scene.read()
    assert scene.batches == [[STARTED, TOKEN], [MORE], [END]]
    assert scene.attempts == [("w0", None)]
    assert scene.workers.calls["w0"].request.ticket == 1
    assert scene.routing.returned == []


async def test_the_start_waits_for_the_first_token_and_is_not_lost() -> None:
    scene = Scene(FakeRouting(route("w0", 1)), FakeWorkers(w0=[[STARTED], [TOKEN], [MORE, END]]))
    await scene.read()
    assert scene.batches == [[STARTED, TOKEN], [MORE, END]]


async def test_an_answer_without_a_token_is_an_answer() -> None:
    scene = Scene(FakeRouting(route("w0", 1)), FakeWorkers(w0=[[STARTED], [END]]))
    await scene.read()
    assert scene.batches == [[STARTED, END]]


async def test_a_worker_that_fails_before_the_first_token_is_replaced_unseen() -> None:
    routing = FakeRouting(route("w0", 1, "w1"), route("w1", 2))
    scene = Scene(routing, FakeWorkers(w0=[[STARTED], [Failed(UNREACHABLE)]], w1=[[Started(11), TOKEN, END]]))
    await scene.read()
    assert scene.events == [Started(11), TOKEN, END]
    assert scene.attempts == [("w0", None), ("w0", "WORKER_UNREACHABLE"), ("w1", None)]


async def test_a_worker_that_fails_with_its_first_tokens_unsent_is_replaced_unseen() -> None:
    routing = FakeRouting(route("w0", 1), route("w1", 2))
    scene = Scene(routing, FakeWorkers(w0=[[STARTED, TOKEN, Failed(UNREACHABLE)]], w1=[[Started(11), MORE, END]]))
    await scene.read()
    assert scene.events == [Started(11), MORE, END]


async def test_a_worker_that_fails_among_the_vectors_is_replaced_unseen() -> None:
    vectors: Batch = [Embedding(0, b"\0\0\0\0"), Embedding(1, b"\0\0\0\0")]
    workers = FakeWorkers(w0=[[STARTED], vectors[:1], [Failed(UNREACHABLE)]], w1=[[STARTED], vectors, [END]])
    scene = Scene(FakeRouting(route("w0", 1), route("w1", 2)), workers)
    await scene.read()
    assert scene.batches == [[STARTED, *vectors, END]]


async def test_the_next_attempt_leaves_out_who_was_tried_and_gives_the_ticket_back() -> None:
    routing = FakeRouting(route("w0", 1), route("w1", 2))
    scene = Scene(routing, FakeWorkers(w0=[[Failed(UNREACHABLE)]], w1=[[TOKEN, END]]))
    await scene.read(tried=frozenset({WorkerId("w9")}))
    assert [facts.tried for facts in routing.asked] == [{"w9"}, {"w9", "w0"}]
    assert routing.returned == [1]
    assert scene.workers.calls["w1"].request.ticket == 2


async def test_the_hashes_of_the_prompt_go_to_a_worker_that_wants_them_and_to_no_other() -> None:
    wants = target("w1")._replace(wants_prefix_hashes=True)
    routing = FakeRouting(route("w0", 1), Route(wants, Ticket(2)), route("w2", 3))
    failing = [[Failed(UNREACHABLE)]]
    scene = Scene(routing, FakeWorkers(w0=failing, w1=failing, w2=[[TOKEN, END]]))
    await scene.read()
    sent = {name: call.request for name, call in scene.workers.calls.items()}
    assert [(one.prefix_hashes, one.prompt_bytes) for one in sent.values()] == [((), 0), ((1, 2), 600), ((), 0)]


async def test_no_more_workers_are_tried_than_allowed_and_no_ticket_stays_booked() -> None:
    names = [f"w{number}" for number in range(MAX_ATTEMPTS + 1)]
    routing = FakeRouting(*(route(name, number) for number, name in enumerate(names, start=1)))
    scene = Scene(routing, FakeWorkers(**{name: [[Failed(UNREACHABLE)]] for name in names}))
    assert isinstance(await scene.fail(), WorkerUnreachable)
    assert len(scene.workers.calls) == MAX_ATTEMPTS
    assert routing.returned == [1, 2, 3]


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("No.", param="n"),
        ContextLengthExceeded("Too long."),
        DeadlineExceeded("Late."),
        Cancelled("Stopped."),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_that_would_be_the_same_elsewhere_is_final(error: LoadBalancerError) -> None:
    scene = Scene(FakeRouting(route("w0", 1)), FakeWorkers(w0=[[Failed(error)]]))
    assert await scene.fail() is error
    assert len(scene.routing.asked) == 1
    assert scene.routing.returned == [1]


async def test_a_worker_lost_after_the_first_token_is_an_interruption() -> None:
    scene = Scene(FakeRouting(route("w0", 1)), FakeWorkers(w0=[[STARTED, TOKEN], [Failed(UNREACHABLE)]]))
    assert isinstance(await scene.fail(), StreamInterrupted)
    assert scene.events == [STARTED, TOKEN]
    assert scene.attempts == [("w0", None), ("w0", "WORKER_UNREACHABLE")]
    assert len(scene.routing.asked) == 1


async def test_what_came_with_the_interruption_is_still_passed_on() -> None:
    scene = Scene(FakeRouting(route("w0", 1)), FakeWorkers(w0=[[TOKEN], [MORE, Failed(UNREACHABLE)]]))
    assert isinstance(await scene.fail(), StreamInterrupted)
    assert scene.batches == [[TOKEN], [MORE]]


@pytest.mark.parametrize("error", [EngineFailed("Broken."), DeadlineExceeded("Late.")], ids=["engine", "deadline"])
async def test_a_worker_s_own_error_after_the_first_token_stays_what_it_is(error: LoadBalancerError) -> None:
    scene = Scene(FakeRouting(route("w0", 1)), FakeWorkers(w0=[[TOKEN], [Failed(error)]]))
    assert await scene.fail() is error


async def test_a_fleet_of_full_workers_is_saturated() -> None:
    routing = FakeRouting(route("w0", 1), route("w1", 2), NOBODY)
    full = Saturated("The worker's queue is full.", retry_after_s=7)
    scene = Scene(routing, FakeWorkers(w0=[[Failed(full)]], w1=[[Failed(full)]]))
    error = await scene.fail()
    assert isinstance(error, Saturated)
    assert error.retry_after_s == 7


async def test_a_refusal_of_the_first_question_is_the_answer() -> None:
    for refusal in (ModelNotFound("No."), Saturated("Full."), NOBODY):
        scene = Scene(FakeRouting(refusal), FakeWorkers())
        assert await scene.fail() is refusal
        assert scene.attempts == []


async def test_the_engine_s_error_is_told_rather_than_that_nobody_else_is_there() -> None:
    broken = EngineFailed("Out of memory.")
    scene = Scene(FakeRouting(route("w0", 1), NOBODY), FakeWorkers(w0=[[Failed(broken)]]))
    assert await scene.fail() is broken


async def test_that_nobody_is_there_is_told_rather_than_that_one_was_unreachable() -> None:
    scene = Scene(FakeRouting(route("w0", 1), NOBODY), FakeWorkers(w0=[[Failed(UNREACHABLE)]]))
    assert await scene.fail() is NOBODY


async def test_without_a_scheduler_the_last_decision_s_other_candidates_serve() -> None:
    routing = FakeRouting(route("w0", 1, "w1", "w2"), NOBODY, NOBODY)
    workers = FakeWorkers(w0=[[Failed(UNREACHABLE)]], w1=[[Failed(UNREACHABLE)]], w2=[[TOKEN, END]])
    scene = Scene(routing, workers)
    await scene.read()
    assert scene.events == [TOKEN, END]
    assert [name for name, error in scene.attempts if error is None] == ["w0", "w1", "w2"]
    assert workers.calls["w1"].request.ticket == NO_TICKET


async def test_candidates_that_run_out_leave_the_refusal() -> None:
    routing = FakeRouting(route("w0", 1, "w1"), NOBODY, NOBODY)
    scene = Scene(routing, FakeWorkers(w0=[[Failed(UNREACHABLE)]], w1=[[Failed(UNREACHABLE)]]))
    assert await scene.fail() is NOBODY


async def test_a_full_fleet_is_not_asked_behind_the_scheduler_s_back() -> None:
    full = Saturated("All are full.")
    scene = Scene(FakeRouting(route("w0", 1, "w1"), full), FakeWorkers(w0=[[Failed(UNREACHABLE)]]))
    assert await scene.fail() is full
    assert [*scene.workers.calls] == ["w0"]


async def test_closing_the_answer_stops_the_request() -> None:
    scene = Scene(FakeRouting(route("w0", 1)), FakeWorkers(w0=[[TOKEN], [MORE, END]]))
    batches = scene.run()
    assert await anext(batches) == [TOKEN]
    await batches.aclose()
    assert scene.workers.calls["w0"].is_cancelled
    assert scene.routing.returned == []


async def test_a_reader_that_closes_before_the_first_batch_stops_the_request() -> None:
    scene = Scene(FakeRouting(route("w0", 1)), FakeWorkers(w0=[[TOKEN]]))
    batches = scene.run()
    reading = asyncio.ensure_future(anext(batches))
    while "w0" not in scene.workers.calls:
        await asyncio.sleep(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await batches.aclose()
    assert scene.workers.calls["w0"].is_cancelled


async def test_what_a_reader_has_not_asked_for_stays_at_the_call() -> None:
    scene = Scene(FakeRouting(route("w0", 1)), FakeWorkers(w0=[[TOKEN], [MORE], [END]]))
    batches = scene.run()
    assert await anext(batches) == [TOKEN]
    await settle()
    # The reader had the first, one more waits for it here, and the call keeps the rest.
    assert await anext(batches) == [MORE]
    assert await anext(batches) == [END]
    with pytest.raises(StopAsyncIteration):
        await anext(batches)


async def test_a_run_pushes_what_comes_in_the_turn_it_comes_in_and_returns_the_end() -> None:
    scene = Scene(FakeRouting(route("w0", 1)), FakeWorkers(w0=[]))
    taken: list[Batch] = []
    running = asyncio.ensure_future(scene.push(lambda events, flow: taken.append([*events])))
    await settle()
    call = scene.workers.calls["w0"]
    for batch in ([STARTED], [TOKEN], [MORE], [END]):
        call.feed(batch)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert taken == [[STARTED, TOKEN], [MORE], [END]]
    assert await running == END


async def test_who_takes_may_pause_the_call_and_let_it_go_on() -> None:
    scene = Scene(FakeRouting(route("w0", 1)), FakeWorkers(w0=[[TOKEN], [MORE], [END]]))
    taken: list[Batch] = []
    flows: list[Flow] = []

    def take(events: Batch, flow: Flow) -> None:
        taken.append(events)
        flows.append(flow)
        if len(taken) == 1:
            flow.pause()

    running = asyncio.ensure_future(scene.push(take))
    await settle()
    assert taken == [[TOKEN]]
    assert not running.done()
    flows[0].resume()
    assert await running == END
    assert taken == [[TOKEN], [MORE], [END]]


async def test_a_taker_that_crashes_ends_the_run_and_stops_the_request() -> None:
    scene = Scene(FakeRouting(route("w0", 1)), FakeWorkers(w0=[[TOKEN], [MORE, END]]))

    def take(events: Batch, flow: Flow) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await scene.push(take)
    assert scene.workers.calls["w0"].is_cancelled
    assert scene.routing.returned == []
    assert [*scene.workers.calls] == ["w0"]


@pytest.mark.parametrize("fatal", [0, 1, 2, 3])
async def test_a_taker_that_crashes_in_any_batch_is_told_once_and_gets_no_more(fatal: int) -> None:
    batches: list[Batch] = [[STARTED, TOKEN], [MORE], [MORE, MORE], [MORE, END]]
    scene = Scene(FakeRouting(route("w0", 1), route("w1", 2)), FakeWorkers(w0=batches, w1=[[TOKEN, END]]))
    taken: list[Batch] = []
    ends: list[End] = []

    def take(events: Batch, flow: Flow) -> None:
        taken.append(events)
        if len(taken) > fatal:
            raise ZeroDivisionError

    scene.start(take, ends.append)
    await settle()
    [end] = ends
    assert isinstance(end, ZeroDivisionError)
    assert taken == batches[: fatal + 1]
    assert scene.workers.calls["w0"].is_cancelled
    assert [*scene.workers.calls] == ["w0"]
    assert scene.routing.returned == []


@pytest.mark.parametrize("after", [0, 1, 2])
async def test_who_cancels_in_any_batch_and_then_crashes_hears_nothing_more(after: int) -> None:
    batches: list[Batch] = [[STARTED, TOKEN], [MORE], [MORE, Failed(UNREACHABLE)]]
    scene = Scene(FakeRouting(route("w0", 1)), FakeWorkers(w0=batches))
    taken: list[Batch] = []
    ends: list[End] = []

    def take(events: Batch, flow: Flow) -> None:
        taken.append(events)
        if len(taken) > after:
            dispatch.cancel()
            raise ZeroDivisionError

    dispatch = scene.start(take, ends.append)
    await settle()
    assert len(taken) == after + 1
    assert ends == []
    assert scene.attempts == [("w0", None)]
    assert scene.workers.calls["w0"].is_cancelled


async def test_an_error_with_tokens_before_it_passes_them_on_and_is_told_once() -> None:
    scene = Scene(FakeRouting(route("w0", 1)), FakeWorkers(w0=[[TOKEN], [MORE], [MORE, Failed(UNREACHABLE)]]))
    heard: list[object] = []
    scene.start(lambda events, flow: heard.append([*events]), heard.append)
    await settle()
    assert heard[:3] == [[TOKEN], [MORE], [MORE]]
    [end] = heard[3:]
    assert isinstance(end, StreamInterrupted)


async def test_who_cancels_while_it_takes_the_last_events_hears_no_end() -> None:
    scene = Scene(FakeRouting(route("w0", 1)), FakeWorkers(w0=[[TOKEN, END]]))
    ends: list[End] = []
    taken: list[Batch] = []

    def take(events: Batch, flow: Flow) -> None:
        taken.append(events)
        dispatch.cancel()

    dispatch = scene.start(take, ends.append)
    await settle()
    assert taken == [[TOKEN, END]]
    assert ends == []


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
async def test_nobody_hears_of_what_was_cancelled(turns: int) -> None:
    workers = FakeWorkers(w0=[[STARTED], [TOKEN], [Failed(UNREACHABLE)]])
    scene = Scene(FakeRouting(route("w0", 1), route("w0", 2)), workers)
    heard: list[object] = []
    dispatch = scene.start(lambda events, flow: heard.append(events), heard.append)
    assert heard == []
    await settle(turns)
    heard.clear()
    dispatch.cancel()
    await settle()
    assert heard == []
    assert all(call.is_cancelled for call in workers.calls.values())


async def test_a_reader_cancelled_in_mid_answer_stops_the_request() -> None:
    scene = Scene(FakeRouting(route("w0", 1)), FakeWorkers(w0=[[TOKEN]]))
    reader = asyncio.ensure_future(scene.read())
    await settle()
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    assert scene.events == [TOKEN]
    assert scene.workers.calls["w0"].is_cancelled


async def test_a_reader_cancelled_before_a_word_from_the_worker_gives_the_ticket_back() -> None:
    # The worker may be unreachable, and then nobody else would.
    scene = Scene(FakeRouting(route("w0", 1)), FakeWorkers(w0=[]))
    reader = asyncio.ensure_future(scene.read())
    await settle()
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    assert scene.workers.calls["w0"].is_cancelled
    assert scene.routing.returned == [1]


async def test_a_call_that_ended_is_let_go_too() -> None:
    scene = Scene(FakeRouting(route("w0", 1)), FakeWorkers(w0=[[TOKEN, END]]))
    await scene.read()
    assert scene.workers.calls["w0"].is_cancelled


async def test_all_attempts_share_one_time_limit() -> None:
    routing = FakeRouting(route("w0", 1), route("w1", 2))
    workers = FakeWorkers(w0=[], w1=[[TOKEN, END]])
    scene = Scene(routing, workers)
    reader = asyncio.ensure_future(scene.read(timeout_s=4.0))
    await settle()
    scene.clock.advance(1.5)
    workers.calls["w0"].feed([Failed(UNREACHABLE)])
    await reader
    assert [call.request.timeout_s for call in workers.calls.values()] == [4.0, 2.5]
    assert routing.time_limits == [4.0, 2.5]


async def test_what_a_request_waits_for_its_route_is_no_time_of_its_worker_s() -> None:
    routing = FakeRouting()
    workers = FakeWorkers(w0=[[TOKEN, END]])
    scene = Scene(routing, workers)
    reader = asyncio.ensure_future(scene.read(timeout_s=600.0))
    await settle()
    assert routing.time_limits == [600.0]
    scene.clock.advance(100.0)
    routing.answer(route("w0", 1))
    await reader
    assert workers.calls["w0"].request.timeout_s == 500.0


async def test_a_request_whose_time_is_over_while_it_waits_for_a_route_ends_in_that() -> None:
    late = DeadlineExceeded("No worker had room in time.")
    assert await Scene(FakeRouting(late), FakeWorkers()).fail(timeout_s=600.0) is late


async def test_a_request_that_is_cancelled_while_it_waits_for_a_route_asks_no_more() -> None:
    routing = FakeRouting()
    heard: list[object] = []
    dispatch = Scene(routing, FakeWorkers()).start(lambda events, flow: heard.append(events), heard.append)
    await settle()
    dispatch.cancel()
    assert routing.questions[0].cancelled()
    assert heard == []


async def test_a_request_without_a_limit_reaches_the_worker_without_one() -> None:
    scene = Scene(FakeRouting(route("w0", 1)), FakeWorkers(w0=[[TOKEN, END]]))
    await scene.read()
    assert scene.workers.calls["w0"].request.timeout_s is None
