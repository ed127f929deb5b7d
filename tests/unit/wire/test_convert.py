"""Domain values to protobuf and back: nothing is lost, and nothing that a peer sends is worse than InvalidRequest."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from lbcore.api.v1 import generation_pb2, load_pb2, routing_pb2, worker_pb2
from lbcore.errors import EngineFailed, InvalidRequest, Saturated
from lbcore.generation import (
    Continuation,
    Delta,
    Dialect,
    Embedding,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    Started,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
)
from lbcore.types import (
    Capacity,
    EndpointState,
    Epoch,
    LoadReport,
    Role,
    Route,
    RouteFacts,
    ServedModel,
    Target,
    Ticket,
    TicketPhase,
    TicketUpdate,
    WorkerId,
    WorkerSpec,
    WorkerStatus,
)
from lbcore.wire import convert

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
NAMES = st.text(min_size=1, max_size=20)
TEXTS = st.text(max_size=20)
MEASURES = st.floats(0, 1e11)

PAIRS = st.just(0.0) | st.floats(1e-3, 1e17)
tickets = U64.map(Ticket)
worker_ids = NAMES.map(WorkerId)
epochs = st.integers(1, 2**64 - 1).map(Epoch)
models = st.builds(
    ServedModel,
    name=NAMES,
    adapters=st.lists(NAMES, max_size=3).map(tuple),
    context_length=U32,
    created_unix_s=st.integers(-(2**63), 2**63 - 1),
)
specs = st.builds(
    WorkerSpec,
    worker_id=worker_ids,
    epoch=epochs,
    address=st.sampled_from(["127.0.0.1:1", "gpu-7.cluster.local:65535", "[::1]:50052"]),
    models=st.lists(models, min_size=1, max_size=3).map(tuple),
    role=st.sampled_from(Role),
    engine=TEXTS,
    capacity=st.builds(
        Capacity,
        max_sequences=st.integers(1, 2**32 - 1),
        max_queued_requests=U32,
        kv_blocks=U64,
        kv_block_size=U32,
        adapter_slots=U32,
    ),
    labels=st.dictionaries(TEXTS, TEXTS, max_size=3),
    version=TEXTS,
    reports_prefixes=st.booleans(),
)
reports = st.builds(
    LoadReport,
    sequence=U64,
    queued_requests=U32,
    running_requests=U32,
    queued_prompt_tokens=U64,
    queued_prompt_pairs=PAIRS,
    tokens_in_flight=U64,
    kv_used_blocks=U64,
    kv_cached_blocks=U64,
    prefill_tokens_per_s=MEASURES,
    attention_ratio=MEASURES,
    step_time_ms=MEASURES,
    ticket_updates=st.lists(
        st.builds(TicketUpdate, tickets, st.sampled_from(TicketPhase), U32, U32, U32, MEASURES, MEASURES), max_size=3
    ).map(tuple),
    cached_prompt_token_total=U64,
    prompt_token_total=U64,
    output_token_total=U64,
)
statuses = st.builds(
    WorkerStatus,
    spec=specs,
    state=st.sampled_from(EndpointState),
    load=reports,
    report_age_ms=MEASURES,
    credit_requests=U32,
    credit_tokens=U64,
)
facts = st.builds(
    RouteFacts,
    request_id=TEXTS,
    model=NAMES,
    prompt_bytes=U32,
    prefix_hashes=st.lists(U64, max_size=3).map(tuple),
    prefix_block_bytes=U32,
    max_output_tokens=U32,
    priority=st.integers(-(2**31), 2**31 - 1),
    session_id=TEXTS,
    tried=st.frozensets(worker_ids, max_size=3),
    tenant=TEXTS,
    ttft_slo_ms=U32,
    tpot_slo_ms=U32,
    phase=st.sampled_from(Role),
    explain=st.booleans(),
)
targets = st.builds(Target, worker_ids, epochs, TEXTS, st.booleans())
routes = st.builds(Route, targets, tickets, st.lists(targets, max_size=3).map(tuple), MEASURES, st.none())
generation_requests = st.builds(
    GenerationRequest,
    request_id=TEXTS,
    dialect=st.sampled_from(Dialect),
    body=st.binary(max_size=50),
    ticket=tickets,
    timeout_s=st.none() | st.integers(1, 2**32 - 1).map(lambda milliseconds: milliseconds / 1000),
    priority=st.integers(-(2**31), 2**31 - 1),
    # These travel beside the request, on the stream that many share, or not at all.
    wants_token_ids=st.just(True),
    is_whole=st.just(False),
    may_continue=st.just(False),
    prefix_hashes=st.lists(U64, min_size=1, max_size=3).map(tuple),
    prefix_block_bytes=U32,
    prompt_bytes=st.integers(1, 2**32 - 1),
    continuation=st.none() | st.builds(Continuation, TEXTS, TEXTS, st.lists(U32, max_size=5).map(tuple)),
)
logprobs = st.builds(
    TokenLogprob,
    TEXTS,
    st.floats(allow_nan=False),
    st.binary(max_size=4),
    st.lists(st.builds(TopLogprob, TEXTS, st.floats(allow_nan=False), st.binary(max_size=4)), max_size=2).map(tuple),
)
deltas = st.builds(
    Delta,
    choice=U32,
    text=TEXTS,
    token_ids=st.lists(U32, max_size=3).map(tuple),
    reasoning=TEXTS,
    tool_calls=st.lists(st.builds(ToolCallDelta, U32, TEXTS, TEXTS, TEXTS), max_size=2).map(tuple),
    logprobs=st.lists(logprobs, max_size=2).map(tuple),
    finish_reason=st.none() | st.sampled_from(FinishReason),
)
embeddings = st.builds(Embedding, U32, st.binary(max_size=12))
good_events = st.one_of(st.builds(Started, U32, U32), deltas, embeddings, st.builds(Finished, U32, U32, U32))


@given(specs)
def test_a_worker_s_spec_survives(spec: WorkerSpec) -> None:
    assert convert.spec_from_proto(convert.spec_to_proto(spec)) == spec


@given(reports)
def test_a_load_report_survives(report: LoadReport) -> None:
    assert convert.load_from_proto(convert.load_to_proto(report)) == report


@given(statuses)
def test_a_worker_s_status_survives(status: WorkerStatus) -> None:
    assert convert.worker_status_from_proto(convert.worker_status_to_proto(status)) == status


@given(facts, st.lists(tickets, max_size=3))
def test_the_facts_of_a_request_survive_with_its_abandoned_tickets(facts: RouteFacts, abandoned: list[Ticket]) -> None:
    message = routing_pb2.RouteRequest()
    convert.write_facts(facts, tuple(abandoned), None, message)
    assert convert.facts_from_proto(message) == facts
    assert [*message.abandoned_tickets] == abandoned


@given(routes)
def test_a_route_survives(route: Route) -> None:
    assert convert.route_from_proto(convert.route_to_proto(route)) == route


@given(generation_requests)
def test_a_request_survives_and_its_body_byte_for_byte(request: GenerationRequest) -> None:
    assert convert.generation_from_proto(convert.generation_to_proto(request)) == request


@given(generation_requests, U64, U32, st.booleans())
def test_a_call_in_parts_is_the_same_message(
    request: GenerationRequest, call_id: int, room: int, without_token_ids: bool
) -> None:
    usual = generation_pb2.GenerateCall(call_id=call_id, room=room, without_token_ids=without_token_ids)
    filled = generation_pb2.GenerateCall(call_id=call_id, room=room, without_token_ids=without_token_ids)
    convert.write_generation(request, filled.request)
    parts = convert.call_in_parts(request, usual)
    assert parts[-1] is request.body
    before = generation_pb2.GenerateStreamRequest(cancelled_call_ids=[call_id]).SerializeToString()
    assert generation_pb2.GenerateStreamRequest.FromString(b"".join((before, *parts, *parts))) == (
        generation_pb2.GenerateStreamRequest(calls=[filled, filled], cancelled_call_ids=[call_id])
    )


def question_of(facts: RouteFacts) -> routing_pb2.RouteRequest:
    """A question as it travels."""
    message = routing_pb2.RouteRequest()
    convert.write_facts(facts, (), None, message)
    return message


def never(call_id: int, error: EngineFailed) -> None:
    raise AssertionError("every event can be carried")


def entry_of(event: Event, with_token_ids: bool = True) -> generation_pb2.CallEvent:
    """An event of call 7 as it travels among others."""
    [entry] = convert.call_events([(7, event, with_token_ids)], never).events
    return entry


def as_read(event: Event, with_token_ids: bool) -> Event:
    """An event as a caller gets it that reads token ids, or does not."""
    return event if with_token_ids or not isinstance(event, Delta) else event._replace(token_ids=())


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), good_events, st.booleans())))
def test_events_that_travel_together_keep_their_order_and_their_calls(numbered: list[tuple[int, Event, bool]]) -> None:
    message = convert.call_events(numbered, never)
    assert [(entry.call_id, convert.event_from_proto(entry)) for entry in message.events] == [
        (number, as_read(event, with_token_ids)) for number, event, with_token_ids in numbered
    ]


def mark_of(delta: generation_pb2.Delta) -> str:
    """By what a reader sees that it need not look further."""
    assert not (delta.text_only and delta.token_plus_one)
    return "text" if delta.text_only else "token" if delta.token_plus_one else ""


@given(deltas, st.booleans())
def test_a_delta_is_marked_when_it_says_no_more_than_a_token(delta: Delta, with_token_ids: bool) -> None:
    entry = entry_of(delta, with_token_ids).delta
    arrives = as_read(delta, with_token_ids)
    assert isinstance(arrives, Delta)
    is_small = arrives == Delta(delta.choice, delta.text, arrives.token_ids)
    assert mark_of(entry) == (("text", "token", "")[min(2, len(arrives.token_ids))] if is_small else "")


@pytest.mark.parametrize(
    ("delta", "with_token_ids", "mark"),
    [
        (Delta(text="a"), True, "text"),
        (Delta(text="a"), False, "text"),
        (Delta(choice=3, text="a"), True, "text"),
        (Delta(), True, "text"),
        (Delta(), False, "text"),
        (Delta(text="a", token_ids=(5,)), True, "token"),
        (Delta(text="a", token_ids=(0,)), True, "token"),
        (Delta(text="a", token_ids=(2**32 - 1,)), True, "token"),
        (Delta(text="a", token_ids=(5,)), False, "text"),
        (Delta(text="a", token_ids=(5, 6)), True, ""),
        (Delta(text="a", token_ids=(5, 6)), False, "text"),
        (Delta(token_ids=(5,)), True, "token"),
        (Delta(text="a", reasoning="b"), False, ""),
        (Delta(text="a", finish_reason=FinishReason.STOP), False, ""),
        (Delta(text="a", token_ids=(0,), finish_reason=FinishReason.STOP), True, ""),
        (Delta(finish_reason=FinishReason.STOP), False, ""),
        (Delta(text="a", tool_calls=(ToolCallDelta(0, "call"),)), False, ""),
        (Delta(text="a", logprobs=(TokenLogprob("a", -1.0, b"a"),)), False, ""),
        (Delta(text="a", token_ids=(5,), logprobs=(TokenLogprob("a", -1.0, b"a"),)), True, ""),
    ],
)
def test_what_is_marked_is_read_as_it_was_said(delta: Delta, with_token_ids: bool, mark: str) -> None:
    entry = entry_of(delta, with_token_ids)
    assert entry.WhichOneof("event") == "delta"
    assert mark_of(entry.delta) == mark
    assert convert.event_from_proto(entry) == as_read(delta, with_token_ids)
    again = generation_pb2.CallEvent.FromString(entry.SerializeToString())
    assert convert.event_from_proto(again) == as_read(delta, with_token_ids)
    assert type(convert.event_from_proto(again)) is Delta


def test_generate_tells_token_ids_in_their_list() -> None:
    plain = convert.response_from_event(Delta(choice=1, text="a"))
    with_ids = convert.response_from_event(Delta(choice=1, text="a", token_ids=(5,)))
    assert (mark_of(plain.delta), mark_of(with_ids.delta)) == ("text", "")
    assert [*with_ids.delta.token_ids] == [5]
    assert convert.event_from_proto(plain) == Delta(choice=1, text="a")
    assert convert.event_from_proto(with_ids) == Delta(choice=1, text="a", token_ids=(5,))


def test_a_token_id_that_nobody_reads_may_be_any() -> None:
    assert convert.event_from_proto(entry_of(Delta(text="a", token_ids=(-1,)), with_token_ids=False)) == Delta(text="a")


@given(good_events)
def test_an_event_survives_both_ways_of_travelling(event: Started | Delta | Embedding | Finished) -> None:
    assert convert.event_from_proto(convert.response_from_event(event)) == event
    assert convert.event_from_proto(entry_of(event)) == event


def test_a_failure_travels_inside_a_stream() -> None:
    entry = entry_of(Failed(Saturated("Full.", retry_after_s=3.0)))
    event = convert.event_from_proto(entry)
    assert entry.call_id == 7
    assert isinstance(event, Failed)
    assert isinstance(event.error, Saturated)
    assert event.error.retry_after_s == 3.0


def test_an_event_of_a_later_version_is_no_event() -> None:
    assert convert.event_from_proto(generation_pb2.CallEvent(call_id=1)) is None
    assert convert.event_from_proto(generation_pb2.GenerateResponse()) is None


@pytest.mark.parametrize(
    "event",
    [Delta(text="\ud83d"), Delta(token_ids=(-1,)), Delta(choice=2**32), Started(-1), Finished(0, 0, 2**32)],
    ids=["half a pair", "negative token", "huge choice", "negative count", "huge count"],
)
def test_an_event_that_no_message_can_carry_is_the_end_of_its_call_and_of_no_other(event: Event) -> None:
    refused: list[tuple[int, EngineFailed]] = []
    message = convert.call_events(
        [
            (6, Delta(text="a"), True),
            (7, Delta(text="said"), True),
            (7, event, True),
            (8, Delta(text="b"), True),
            (7, Delta(text="unsaid"), True),
            (7, event, True),
            (7, Finished(0, 0, 0), True),
        ],
        lambda call_id, error: refused.append((call_id, error)),
    )
    *others, entry, last = message.events
    arrived = convert.event_from_proto(entry)
    [(call_id, error)] = refused
    assert entry.call_id == call_id == 7
    assert isinstance(arrived, Failed)
    assert isinstance(arrived.error, EngineFailed)
    assert arrived.error.message == error.message
    assert [(other.call_id, convert.event_from_proto(other)) for other in (*others, last)] == [
        (6, Delta(text="a")),
        (7, Delta(text="said")),
        (8, Delta(text="b")),
    ]


def test_generate_says_of_what_no_message_can_carry_that_the_engine_failed() -> None:
    with pytest.raises(EngineFailed):
        convert.response_from_event(Delta(text="\ud83d"))


@pytest.mark.parametrize(
    "address",
    [
        "",
        ":",
        "host",
        "host:",
        ":50052",
        "host:0",
        "host:65536",
        "host:-1",
        "host:+1",
        "host:1e3",
        "host:²",
        "host:٣",
        "host:" + "9" * 5000,
        "::1:50052",
        "[]:50052",
        "unix:/run/x:1",
        "dns://8.8.8.8/host:1",
        "a b:1",
        "host\n:1",
    ],
)
def test_an_address_that_is_not_host_and_port_is_named(address: str) -> None:
    message = _spec_message(address=address)
    with pytest.raises(InvalidRequest) as caught:
        convert.spec_from_proto(message)
    assert caught.value.param == "address"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("worker_id", ""),
        ("epoch", 0),
        ("models", []),
        ("models", [worker_pb2.ServedModel()]),
        ("models", [worker_pb2.ServedModel(name="m", adapters=[""])]),
    ],
    ids=["no name", "no epoch", "no model", "nameless model", "nameless adapter"],
)
def test_a_registration_without_what_it_needs_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        convert.spec_from_proto(_spec_message(**{field: value}))
    assert caught.value.param == field


def test_a_role_of_a_later_version_is_mixed() -> None:
    assert convert.spec_from_proto(_spec_message(role=77)).role is Role.MIXED


def test_a_worker_that_says_no_capacity_can_run_one_request() -> None:
    assert convert.spec_from_proto(_spec_message()).capacity == Capacity(max_sequences=1)


def test_a_state_of_a_later_version_is_not_picked_first() -> None:
    message = worker_pb2.WorkerStatus(spec=_spec_message(), state=77)
    assert convert.worker_status_from_proto(message).state is EndpointState.SILENT


def test_updates_with_a_phase_of_a_later_version_are_left_out() -> None:
    updates = [
        load_pb2.TicketUpdate(ticket=1),
        load_pb2.TicketUpdate(ticket=2, phase=77),
        load_pb2.TicketUpdate(ticket=3, phase=load_pb2.TICKET_PHASE_FINISHED),
    ]
    report = convert.load_from_proto(load_pb2.LoadReport(ticket_updates=updates))
    assert [update.ticket for update in report.ticket_updates] == [3]


def test_a_finish_reason_of_a_later_version_is_none() -> None:
    entry = generation_pb2.CallEvent(delta=generation_pb2.Delta(finish_reason=77))
    assert convert.event_from_proto(entry) == Delta()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 1e13])
def test_a_senseless_measurement_is_none(value: float) -> None:
    update = load_pb2.TicketUpdate(phase=load_pb2.TICKET_PHASE_FINISHED, ttft_ms=value, duration_ms=value)
    report = convert.load_from_proto(
        load_pb2.LoadReport(
            prefill_tokens_per_s=value, step_time_ms=value, attention_ratio=value, ticket_updates=[update]
        )
    )
    route = convert.route_from_proto(routing_pb2.RouteResponse(predicted_ttft_ms=value))
    status = convert.worker_status_from_proto(worker_pb2.WorkerStatus(spec=_spec_message(), report_age_ms=value))
    assert (report.prefill_tokens_per_s, report.step_time_ms, report.attention_ratio) == (0.0, 0.0, 0.0)
    assert (report.ticket_updates[0].ttft_ms, report.ticket_updates[0].duration_ms) == (0.0, 0.0)
    assert (route.predicted_ttft_ms, status.report_age_ms) == (0.0, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 1e19])
def test_a_senseless_count_of_pairs_is_none(value: float) -> None:
    report = convert.load_from_proto(load_pb2.LoadReport(queued_prompt_pair_count=value))
    assert report.queued_prompt_pairs == 0.0


@pytest.mark.parametrize(("asked_ms", "sent_ms"), [(0.25, 1), (1e12, 2**32 - 1), (0.0, 0), (250.0, 250)])
def test_a_goal_arrives_as_the_nearest_that_a_message_can_carry(asked_ms: float, sent_ms: int) -> None:
    message = question_of(RouteFacts("r", "m", ttft_slo_ms=asked_ms, tpot_slo_ms=asked_ms))
    assert (message.ttft_slo_ms, message.tpot_slo_ms) == (sent_ms, sent_ms)


def test_a_question_without_a_model_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest) as caught:
        convert.facts_from_proto(routing_pb2.RouteRequest())
    assert caught.value.param == "model"


def test_a_request_without_input_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest) as caught:
        convert.generation_from_proto(generation_pb2.GenerateRequest())
    assert caught.value.param == "input"


@pytest.mark.parametrize(
    ("asked", "sent"), [(-5, 0), (10**12, 2**32 - 1), (0, 0), (17, 17)], ids=["negative", "huge", "none", "usual"]
)
def test_a_limit_that_no_message_can_carry_is_the_nearest_that_one_can(asked: int, sent: int) -> None:
    # A caller's own number: what it does to the answer is for the engine to say, and it will.
    message = question_of(RouteFacts("r", "m", prompt_bytes=asked, max_output_tokens=asked))
    assert (message.max_output_token_count, message.prompt_byte_count) == (sent, sent)


@pytest.mark.parametrize(
    ("timeout_s", "arrives_s"),
    [(None, None), (0.0, 0.001), (-1.0, 0.001), (0.25, 0.25), (math.inf, (2**32 - 1) / 1000)],
    ids=["never", "now", "past", "usual", "no end"],
)
def test_a_timeout_arrives_as_the_nearest_that_a_message_can_carry(
    timeout_s: float | None, arrives_s: float | None
) -> None:
    request = GenerationRequest("r", Dialect.CHAT, b"{}", timeout_s=timeout_s)
    assert convert.generation_from_proto(convert.generation_to_proto(request)).timeout_s == arrives_s
    question = routing_pb2.RouteRequest()
    convert.write_facts(RouteFacts("r", "m"), (), timeout_s, question)
    assert question.timeout_ms == round((arrives_s or 0) * 1000)
    assert convert.timeout_from_proto(question) == arrives_s


_READERS: list[tuple[Callable[[Any], object], type[Message], st.SearchStrategy[Message]]] = [
    (convert.spec_from_proto, worker_pb2.WorkerSpec, specs.map(convert.spec_to_proto)),
    (convert.load_from_proto, load_pb2.LoadReport, reports.map(convert.load_to_proto)),
    (convert.worker_status_from_proto, worker_pb2.WorkerStatus, statuses.map(convert.worker_status_to_proto)),
    (convert.facts_from_proto, routing_pb2.RouteRequest, facts.map(question_of)),
    (convert.route_from_proto, routing_pb2.RouteResponse, routes.map(convert.route_to_proto)),
    (
        convert.generation_from_proto,
        generation_pb2.GenerateRequest,
        generation_requests.map(convert.generation_to_proto),
    ),
    (
        convert.event_from_proto,
        generation_pb2.CallEvent,
        good_events.map(entry_of),
    ),
]


@pytest.mark.parametrize(("read", "kind", "messages"), _READERS, ids=[kind.__name__ for _, kind, _ in _READERS])
@given(data=st.data())
def test_no_bytes_that_are_a_message_are_too_strange_to_read(
    read: Callable[[Any], object], kind: type[Message], messages: st.SearchStrategy[Message], data: st.DataObject
) -> None:
    good = data.draw(messages).SerializeToString()
    at = data.draw(st.integers(0, len(good)))
    strange = good[:at] + data.draw(st.binary(max_size=8)) + good[data.draw(st.integers(at, len(good))) :]
    try:
        message = kind.FromString(strange)
    except DecodeError:
        return
    with contextlib.suppress(InvalidRequest):
        read(message)


def _spec_message(**fields: Any) -> worker_pb2.WorkerSpec:
    good: dict[str, Any] = {
        "worker_id": "w",
        "epoch": 1,
        "address": "host:1",
        "models": [worker_pb2.ServedModel(name="m")],
    }
    return worker_pb2.WorkerSpec(**{**good, **fields})
