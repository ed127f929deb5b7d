"""An answer whose worker is lost in the middle is gone on with by another, and its reader notices nothing."""

from __future__ import annotations

from typing import Any

import pytest

from lbcore import dispatch
from lbcore.dispatch import MAX_ATTEMPTS, MAX_CONTINUATIONS
from lbcore.errors import (
    CannotContinue,
    DeadlineExceeded,
    EngineFailed,
    LoadBalancerError,
    Saturated,
    StreamInterrupted,
)
from lbcore.generation import (
    Continuation,
    Delta,
    Event,
    Failed,
    Finished,
    FinishReason,
    Started,
    ToolCallDelta,
)
from lbcore.types import Ticket, WorkerId
from tests.fakes import settle
from tests.unit.dispatch_scene import NOBODY, UNREACHABLE, FakeRouting, FakeWorkers, Scene, route

STARTED, LOST = Started(10, 4), Failed(UNREACHABLE)
A, B, C = (Delta(text=text, token_ids=(number,)) for number, text in enumerate("abc", start=1))
STOP = Delta(finish_reason=FinishReason.STOP)
END = Finished(10, 0, 3)


def scene(*answers: Any, **workers: Any) -> Scene:
    return Scene(FakeRouting(*answers), FakeWorkers(**workers))


def given(one: Scene, name: str) -> Continuation | None:
    """What a worker was told of the answer."""
    return one.workers.calls[name].request.continuation


async def test_the_answer_goes_on_at_another_worker_without_a_second_start() -> None:
    one = scene(route("w0", 1), route("w1", 2), w0=[[STARTED, A], [B], [LOST]], w1=[[Started(12)], [C], [STOP, END]])
    await one.read(may_continue=True)
    assert one.events == [STARTED, A, B, C, STOP, END]
    assert given(one, "w0") is None
    assert given(one, "w1") == Continuation("ab", "", (1, 2))
    assert one.attempts == [("w0", None), ("w0", "WORKER_UNREACHABLE"), ("w1", None)]


async def test_who_lost_it_is_left_out_its_ticket_given_back_and_the_rest_asked_for_as_what_it_is() -> None:
    one = scene(route("w0", 1), route("w1", 2), w0=[[STARTED, A], [B], [LOST]], w1=[[C, STOP, END]])
    await one.read(may_continue=True, max_output_tokens=20)
    first, second = one.routing.asked
    assert (first.tried, first.prompt_bytes, first.max_output_tokens) == (frozenset(), 600, 20)
    assert (second.tried, second.prompt_bytes, second.max_output_tokens) == ({"w0"}, 602, 18)
    assert second.prefix_hashes == first.prefix_hashes
    assert one.routing.returned == [Ticket(1)]


async def test_what_came_with_the_loss_is_kept() -> None:
    one = scene(route("w0", 1), route("w1", 2), w0=[[STARTED, A], [B, LOST]], w1=[[C, STOP, END]])
    await one.read(may_continue=True)
    assert given(one, "w1") == Continuation("ab", "", (1, 2))


async def test_tokens_that_were_not_told_are_not_made_up() -> None:
    bare = A._replace(token_ids=())
    one = scene(route("w0", 1), route("w1", 2), w0=[[STARTED, bare], [B], [LOST]], w1=[[C, STOP, END]])
    await one.read(may_continue=True)
    assert given(one, "w1") == Continuation("ab")


async def test_reasoning_goes_on_too() -> None:
    thought = Delta(reasoning="hm ", token_ids=(9,))
    one = scene(route("w0", 1), route("w1", 2), w0=[[thought], [A], [LOST]], w1=[[C, STOP, END]])
    await one.read(may_continue=True)
    assert given(one, "w1") == Continuation("a", "hm ", (9, 1))


async def test_an_answer_can_lose_one_worker_after_the_other() -> None:
    one = scene(
        *(route(f"w{number}", number + 1) for number in range(3)),
        w0=[[STARTED, A], [LOST]],
        w1=[[B], [LOST]],
        w2=[[C, STOP, END]],
    )
    await one.read(may_continue=True)
    assert one.events == [STARTED, A, B, C, STOP, END]
    assert given(one, "w2") == Continuation("ab", "", (1, 2))
    # The one before last may be back by now.
    assert one.routing.asked[-1].tried == {WorkerId("w1")}


async def test_one_that_fails_before_it_goes_on_is_replaced_too() -> None:
    one = scene(
        *(route(f"w{number}", number + 1) for number in range(3)),
        w0=[[STARTED, A], [LOST]],
        w1=[[Failed(Saturated("Full."))]],
        w2=[[B, STOP, END]],
    )
    await one.read(may_continue=True)
    assert one.events == [STARTED, A, B, STOP, END]
    assert one.routing.asked[-1].tried == {"w0", "w1"}


async def test_an_answer_whose_end_alone_is_lost_ends_here() -> None:
    one = scene(route("w0", 1), w0=[[STARTED, A], [B, STOP], [LOST]])
    await one.read(may_continue=True)
    assert one.events == [STARTED, A, B, STOP, Finished(10, 4, 2)]
    assert len(one.routing.asked) == 1


async def test_an_answer_that_has_all_its_tokens_needs_no_other_worker() -> None:
    one = scene(route("w0", 1), w0=[[STARTED, A], [B], [LOST]])
    await one.read(may_continue=True, max_output_tokens=2)
    assert one.events == [STARTED, A, B, Delta(finish_reason=FinishReason.LENGTH), Finished(10, 4, 2)]


async def test_usage_that_the_last_worker_does_not_know_is_what_the_first_one_said() -> None:
    one = scene(route("w0", 1), route("w1", 2), w0=[[STARTED, A], [LOST]], w1=[[STOP, Finished(0, 0, 5)]])
    await one.read(may_continue=True)
    assert one.events[-1] == Finished(10, 4, 5)


@pytest.mark.parametrize("error", [EngineFailed("Broken."), UNREACHABLE], ids=["engine", "worker"])
async def test_it_goes_on_after_whatever_another_worker_might_do(error: LoadBalancerError) -> None:
    one = scene(route("w0", 1), route("w1", 2), w0=[[A], [Failed(error)]], w1=[[B, STOP, END]])
    await one.read(may_continue=True)
    assert one.events == [A, B, STOP, END]


async def test_it_does_not_go_on_after_what_would_be_the_same_elsewhere() -> None:
    late = DeadlineExceeded("Late.")
    one = scene(route("w0", 1), w0=[[A], [Failed(late)]])
    assert await one.fail(may_continue=True) is late
    assert len(one.routing.asked) == 1


async def test_one_that_may_not_is_not_gone_on_with() -> None:
    one = scene(route("w0", 1), w0=[[STARTED, A], [LOST]])
    assert isinstance(await one.fail(may_continue=False), StreamInterrupted)
    assert len(one.routing.asked) == 1


async def test_a_tool_call_under_way_is_not_gone_on_with() -> None:
    call = Delta(tool_calls=(ToolCallDelta(0, "id", "look"),))
    one = scene(route("w0", 1), w0=[[A], [call], [LOST]])
    assert isinstance(await one.fail(may_continue=True), StreamInterrupted)
    assert one.events == [A, call]


async def test_where_no_engine_can_go_on_the_answer_is_interrupted() -> None:
    refusals = {f"w{number}": [[Failed(CannotContinue("No."))]] for number in range(1, 4)}
    one = scene(*(route(f"w{number}", number + 1) for number in range(4)), w0=[[A], [LOST]], **refusals)
    assert isinstance(await one.fail(may_continue=True), StreamInterrupted)
    # The one that was lost counts among those that were tried.
    assert len(one.routing.asked) == MAX_ATTEMPTS


async def test_an_answer_that_kills_all_its_workers_is_given_up() -> None:
    count = MAX_CONTINUATIONS + 2
    answers: dict[str, Any] = {f"w{number}": [[A], [LOST]] for number in range(count)}
    one = scene(*(route(f"w{number}", number + 1) for number in range(count)), **answers)
    assert isinstance(await one.fail(may_continue=True), StreamInterrupted)
    assert one.events == [A] * (MAX_CONTINUATIONS + 1)


async def test_with_nobody_there_it_waits_until_somebody_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "PAUSE_S", 0.0)
    one = scene(route("w0", 1), NOBODY, NOBODY, route("w0", 2), w0=[[A], [LOST]])
    answers: list[list[list[Event]]] = [[[B, STOP, END]], [[A], [LOST]]]
    one.workers.answer = lambda name: answers.pop()  # type: ignore[method-assign]
    await one.read(may_continue=True)
    assert one.events == [A, B, STOP, END]
    # Who lost it may be the one that comes back.
    assert [facts.tried for facts in one.routing.asked] == [set(), {"w0"}, set(), set()]


async def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "PATIENCE_S", 0.0)
    one = scene(route("w0", 1), NOBODY, w0=[[A], [LOST]])
    assert isinstance(await one.fail(may_continue=True), StreamInterrupted)


async def test_one_that_has_not_begun_does_not_wait_for_anybody() -> None:
    one = scene(NOBODY)
    assert await one.fail(may_continue=True) is NOBODY


async def test_an_answer_read_as_a_whole_that_may_not_be_gone_on_with_is_begun_again() -> None:
    one = scene(route("w0", 1), route("w1", 2), w0=[[STARTED, A], [B], [LOST]], w1=[[STARTED, A], [C], [STOP, END]])
    await one.read(is_whole=True)
    assert one.batches == [[STARTED, A, C, STOP, END]]
    assert given(one, "w1") is None


async def test_an_answer_read_as_a_whole_is_gone_on_with_and_told_at_its_end() -> None:
    one = scene(route("w0", 1), route("w1", 2), w0=[[STARTED, A], [B], [LOST]], w1=[[C], [STOP, END]])
    await one.read(is_whole=True, may_continue=True)
    assert one.batches == [[STARTED, A, B, C, STOP, END]]
    assert given(one, "w1") == Continuation("ab", "", (1, 2))


async def test_one_that_no_engine_can_go_on_with_is_begun_again() -> None:
    one = scene(
        *(route(f"w{number}", number + 1) for number in range(3)),
        w0=[[STARTED, A], [LOST]],
        w1=[[Failed(CannotContinue("No."))]],
        w2=[[Started(11), B], [STOP, END]],
    )
    await one.read(is_whole=True, may_continue=True)
    assert one.batches == [[Started(11), B, STOP, END]]
    assert given(one, "w2") is None


async def test_one_that_is_begun_again_is_tried_no_more_often_than_others() -> None:
    failing: dict[str, Any] = {f"w{number}": [[STARTED, A], [LOST]] for number in range(5)}
    one = scene(*(route(f"w{number}", number + 1) for number in range(5)), **failing)
    assert await one.fail(is_whole=True) is UNREACHABLE
    assert len(one.workers.calls) == MAX_ATTEMPTS
    assert one.events == []


async def test_the_first_token_of_an_answer_read_as_a_whole_is_noted_when_it_comes() -> None:
    one = scene(route("w0", 1), w0=[[STARTED, A]])
    running = one.start(lambda batch, flow: None, lambda end: None, is_whole=True)
    await settle()
    came_at = one.clock.now()
    one.clock.advance(5.0)
    one.workers.calls["w0"].feed([STOP, END])
    await settle()
    assert running.first_token_at == came_at


async def test_refusals_are_tried_elsewhere_for_a_share_of_the_requests_only() -> None:
    one = scene()
    outcomes = []
    for number in range(200):
        full, free = f"full{number}", f"free{number}"
        one.routing.will_say(route(full, 2 * number + 1), route(free, 2 * number + 2))
        one.workers.will_answer(full, [[Failed(Saturated("Full."))]])
        one.workers.will_answer(free, [[A, END]])
        try:
            await one.read()
            outcomes.append(True)
        except Saturated:
            outcomes.append(False)
            one.routing.forget_answers()
    assert all(outcomes[:20])
    assert 0.15 < sum(outcomes[50:]) / 150 < 0.25


async def test_lost_workers_are_always_replaced() -> None:
    one = scene()
    for number in range(100):
        lost, there = f"lost{number}", f"there{number}"
        one.routing.will_say(route(lost, 2 * number + 1), route(there, 2 * number + 2))
        one.workers.will_answer(lost, [[LOST]])
        one.workers.will_answer(there, [[A, END]])
        await one.read()


async def test_a_worker_that_stops_answering_is_given_up_and_told_so() -> None:
    one = scene(route("w0", 1), route("w1", 2), w0=[[STARTED, A], [B]], w1=[[C, STOP, END]])
    events: list[Event] = []
    ends: list[Any] = []
    running = one.start(lambda batch, flow: events.extend(batch), ends.append, may_continue=True)
    await settle()
    running.look(one.clock.now() + 5.0)
    await settle()
    assert (events, ends) == ([STARTED, A, B], [])
    running.look(one.clock.now() + 5.1)
    await settle()
    assert one.workers.calls["w0"].is_cancelled
    assert (events, ends) == ([STARTED, A, B, C, STOP, END], [END])
    # Its end is not looked at.
    running.look(one.clock.now() + 100.0)


async def test_a_client_that_does_not_read_is_no_stall_of_its_worker() -> None:
    one = scene(route("w0", 1), w0=[[STARTED, A]])
    running = one.start(lambda batch, flow: flow.pause(), lambda end: None, may_continue=True)
    await settle()
    for second in range(100):
        running.look(one.clock.now() + second)
    assert not one.workers.calls["w0"].is_cancelled
    running.cancel()


async def test_a_worker_that_stops_in_what_was_not_passed_on_is_replaced() -> None:
    one = scene(route("w0", 1), route("w1", 2), w0=[[STARTED, A]], w1=[[A, STOP, END]])
    events: list[Event] = []
    running = one.start(lambda batch, flow: events.extend(batch), lambda end: None, is_whole=True)
    await settle()
    running.look(one.clock.now() + 5.1)
    await settle()
    assert events == [A, STOP, END]
