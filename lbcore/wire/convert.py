"""Protobuf to domain values and back: the only reader of both. Never raises on what a peer sent but InvalidRequest."""

from __future__ import annotations

import re
from math import isfinite

import orjson

from lbcore.api.v1 import generation_pb2, load_pb2, routing_pb2, worker_pb2
from lbcore.errors import EngineFailed, InvalidRequest
from lbcore.generation import (
    Delta,
    Dialect,
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
from lbcore.wire.status import error_from_failure, failure_from_error

_ROLES = {
    Role.MIXED: worker_pb2.WORKER_ROLE_MIXED,
    Role.PREFILL: worker_pb2.WORKER_ROLE_PREFILL,
    Role.DECODE: worker_pb2.WORKER_ROLE_DECODE,
}
_ROLES_BACK = {number: role for role, number in _ROLES.items()}
_STATES = {
    EndpointState.READY: worker_pb2.WORKER_STATE_READY,
    EndpointState.DRAINING: worker_pb2.WORKER_STATE_DRAINING,
    EndpointState.SILENT: worker_pb2.WORKER_STATE_SILENT,
}
_STATES_BACK = {number: state for state, number in _STATES.items()}
_PHASES = {
    TicketPhase.ACCEPTED: load_pb2.TICKET_PHASE_ACCEPTED,
    TicketPhase.FINISHED: load_pb2.TICKET_PHASE_FINISHED,
}
_PHASES_BACK = {number: phase for phase, number in _PHASES.items()}
_FINISH = {
    FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: generation_pb2.FINISH_REASON_TOOL_CALLS,
    FinishReason.CONTENT_FILTER: generation_pb2.FINISH_REASON_CONTENT_FILTER,
}
_FINISH_BACK = {number: reason for reason, number in _FINISH.items()}

_ADDRESS = re.compile(r"(?:[\w.-]+|\[[\w.:%-]+\]):([0-9]{1,5})", re.ASCII)
_UINT32 = 2**32 - 1


def spec_to_proto(spec: WorkerSpec) -> worker_pb2.WorkerSpec:
    return worker_pb2.WorkerSpec(
        worker_id=spec.worker_id,
        epoch=spec.epoch,
        address=spec.address,
        models=[
            worker_pb2.ServedModel(
                name=model.name,
                adapters=model.adapters,
                context_length=model.context_length,
                created_unix_s=model.created_unix_s,
            )
            for model in spec.models
        ],
        role=_ROLES[spec.role],
        engine=spec.engine,
        capacity=worker_pb2.Capacity(
            max_sequence_count=spec.capacity.max_sequences,
            max_queued_request_count=spec.capacity.max_queued_requests,
            kv_block_count=spec.capacity.kv_blocks,
            kv_block_size=spec.capacity.kv_block_size,
        ),
        labels=dict(spec.labels),
        version=spec.version,
    )


def spec_from_proto(message: worker_pb2.WorkerSpec) -> WorkerSpec:
    """A registration as a value.

    Raises:
        InvalidRequest: a name is missing, or the address is no HOST:PORT.
    """
    address = _ADDRESS.fullmatch(message.address)
    if address is None or not 0 < int(address[1]) < 65536:
        raise InvalidRequest("address is not HOST:PORT", param="address")
    if not message.worker_id:
        raise InvalidRequest("worker_id is empty", param="worker_id")
    if not message.epoch:
        raise InvalidRequest("epoch is 0", param="epoch")
    if not message.models or not all(all((model.name, *model.adapters)) for model in message.models):
        raise InvalidRequest("models is empty or holds a model or an adapter without a name", param="models")
    return WorkerSpec(
        worker_id=WorkerId(message.worker_id),
        epoch=Epoch(message.epoch),
        address=message.address,
        models=tuple(
            ServedModel(
                name=model.name,
                adapters=tuple(model.adapters),
                context_length=model.context_length,
                created_unix_s=model.created_unix_s,
            )
            for model in message.models
        ),
        role=_ROLES_BACK.get(message.role, Role.MIXED),
        engine=message.engine,
        capacity=Capacity(
            max_sequences=max(1, message.capacity.max_sequence_count),
            max_queued_requests=message.capacity.max_queued_request_count,
            kv_blocks=message.capacity.kv_block_count,
            kv_block_size=message.capacity.kv_block_size,
        ),
        labels=dict(message.labels),
        version=message.version,
    )


def load_to_proto(report: LoadReport) -> load_pb2.LoadReport:
    return load_pb2.LoadReport(
        sequence=report.sequence,
        queued_request_count=report.queued_requests,
        running_request_count=report.running_requests,
        queued_prompt_token_count=report.queued_prompt_tokens,
        tokens_in_flight_count=report.tokens_in_flight,
        kv_used_block_count=report.kv_used_blocks,
        kv_cached_block_count=report.kv_cached_blocks,
        prefill_tokens_per_s=report.prefill_tokens_per_s,
        step_time_ms=report.step_time_ms,
        ticket_updates=[
            load_pb2.TicketUpdate(
                ticket=update.ticket,
                phase=_PHASES[update.phase],
                prompt_token_count=update.prompt_tokens,
                cached_token_count=update.cached_tokens,
                output_token_count=update.output_tokens,
            )
            for update in report.ticket_updates
        ],
        cached_prompt_token_total=report.cached_prompt_token_total,
        prompt_token_total=report.prompt_token_total,
        output_token_total=report.output_token_total,
    )


def load_from_proto(message: load_pb2.LoadReport) -> LoadReport:
    """A report as a value; updates with a phase this version does not know are left out."""
    return LoadReport(
        sequence=message.sequence,
        queued_requests=message.queued_request_count,
        running_requests=message.running_request_count,
        queued_prompt_tokens=message.queued_prompt_token_count,
        tokens_in_flight=message.tokens_in_flight_count,
        kv_used_blocks=message.kv_used_block_count,
        kv_cached_blocks=message.kv_cached_block_count,
        prefill_tokens_per_s=_measure(message.prefill_tokens_per_s),
        step_time_ms=_measure(message.step_time_ms),
        ticket_updates=tuple(
            TicketUpdate(
                Ticket(update.ticket),
                _PHASES_BACK[update.phase],
                update.prompt_token_count,
                update.cached_token_count,
                update.output_token_count,
            )
            for update in message.ticket_updates
            if update.phase in _PHASES_BACK
        ),
        cached_prompt_token_total=message.cached_prompt_token_total,
        prompt_token_total=message.prompt_token_total,
        output_token_total=message.output_token_total,
    )


def worker_status_to_proto(status: WorkerStatus) -> worker_pb2.WorkerStatus:
    return worker_pb2.WorkerStatus(
        spec=spec_to_proto(status.spec),
        state=_STATES[status.state],
        load=load_to_proto(status.load),
        report_age_ms=status.report_age_ms,
        credit_request_count=status.credit_requests,
        credit_token_count=status.credit_tokens,
    )


def worker_status_from_proto(message: worker_pb2.WorkerStatus) -> WorkerStatus:
    return WorkerStatus(
        spec=spec_from_proto(message.spec),
        state=_STATES_BACK.get(message.state, EndpointState.SILENT),
        load=load_from_proto(message.load),
        report_age_ms=_measure(message.report_age_ms),
        credit_requests=message.credit_request_count,
        credit_tokens=message.credit_token_count,
    )


def facts_to_proto(
    facts: RouteFacts, abandoned: tuple[Ticket, ...] = (), timeout_s: float | None = None
) -> routing_pb2.RouteRequest:
    """A question as a message. Numbers too large for it become the largest: it is the engine that refuses them."""
    return routing_pb2.RouteRequest(
        request_id=facts.request_id,
        model=facts.model,
        prompt_byte_count=_uint32(facts.prompt_bytes),
        prefix_hashes=facts.prefix_hashes,
        prefix_block_byte_count=facts.prefix_block_bytes,
        max_output_token_count=_uint32(facts.max_output_tokens),
        priority=facts.priority,
        timeout_ms=_milliseconds(timeout_s),
        session_id=facts.session_id,
        tried_worker_ids=facts.tried,
        abandoned_tickets=abandoned,
    )


def facts_from_proto(message: routing_pb2.RouteRequest) -> RouteFacts:
    """A question as a value.

    Raises:
        InvalidRequest: the model is missing.
    """
    if not message.model:
        raise InvalidRequest("model is empty", param="model")
    return RouteFacts(
        request_id=message.request_id,
        model=message.model,
        prompt_bytes=message.prompt_byte_count,
        prefix_hashes=tuple(message.prefix_hashes),
        prefix_block_bytes=message.prefix_block_byte_count,
        max_output_tokens=message.max_output_token_count,
        priority=message.priority,
        session_id=message.session_id,
        tried=frozenset(WorkerId(worker_id) for worker_id in message.tried_worker_ids),
    )


def _target_to_proto(target: Target) -> routing_pb2.WorkerTarget:
    return routing_pb2.WorkerTarget(worker_id=target.worker_id, epoch=target.epoch, address=target.address)


def _target_from_proto(message: routing_pb2.WorkerTarget) -> Target:
    return Target(WorkerId(message.worker_id), Epoch(message.epoch), message.address)


def route_to_proto(route: Route) -> routing_pb2.RouteResponse:
    return routing_pb2.RouteResponse(
        worker=_target_to_proto(route.target),
        ticket=route.ticket,
        fallbacks=[_target_to_proto(target) for target in route.fallbacks],
        predicted_ttft_ms=route.predicted_ttft_ms,
    )


def route_from_proto(message: routing_pb2.RouteResponse) -> Route:
    return Route(
        target=_target_from_proto(message.worker),
        ticket=Ticket(message.ticket),
        fallbacks=tuple(_target_from_proto(target) for target in message.fallbacks),
        predicted_ttft_ms=_measure(message.predicted_ttft_ms),
    )


def generation_to_proto(request: GenerationRequest) -> generation_pb2.GenerateRequest:
    message = generation_pb2.GenerateRequest(
        request_id=request.request_id,
        ticket=request.ticket,
        timeout_ms=_milliseconds(request.timeout_s),
        priority=request.priority,
    )
    if request.dialect is Dialect.CHAT:
        message.chat_completion_json = request.body
    else:
        message.completion_json = request.body
    return message


def generation_from_proto(message: generation_pb2.GenerateRequest) -> GenerationRequest:
    """A request as a value; typed input becomes the OpenAI body that says the same, so that engines see one form.

    Raises:
        InvalidRequest: there is no input.
    """
    match message.WhichOneof("input"):
        case "chat_completion_json":
            dialect, body = Dialect.CHAT, message.chat_completion_json
        case "completion_json":
            dialect, body = Dialect.COMPLETION, message.completion_json
        case "typed":
            dialect, body = _body_of_typed(message.typed)
        case _:
            raise InvalidRequest("input is missing", param="input")
    return GenerationRequest(
        request_id=message.request_id,
        dialect=dialect,
        body=body,
        ticket=Ticket(message.ticket),
        timeout_s=message.timeout_ms / 1000 if message.timeout_ms else None,
        priority=message.priority,
    )


def _body_of_typed(typed: generation_pb2.TypedInput) -> tuple[Dialect, bytes]:
    sampling = typed.sampling
    body: dict[str, object] = {"model": typed.model}
    dialect = Dialect.COMPLETION
    match typed.WhichOneof("prompt"):
        case "text":
            body["prompt"] = typed.text
        case "token_ids":
            body["prompt"] = list(typed.token_ids.ids)
        case "conversation":
            dialect = Dialect.CHAT
            body["messages"] = [
                {"role": message.role, "content": message.content} for message in typed.conversation.messages
            ]
        case _:
            raise InvalidRequest("prompt is missing", param="prompt")
    for field, key in (
        ("max_token_count", "max_tokens"),
        ("temperature", "temperature"),
        ("top_p", "top_p"),
        ("seed", "seed"),
        ("choice_count", "n"),
        ("ignore_eos", "ignore_eos"),
    ):
        if sampling.HasField(field):
            body[key] = _json_number(getattr(sampling, field), key)
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    return dialect, orjson.dumps(body)


def _json_number(value: object, param: str) -> object:
    if not isinstance(value, float):
        return value
    if not isfinite(value):
        raise InvalidRequest(f"{param} is not a number", param=param)
    # A 32-bit float holds seven digits; the rest of its 64-bit twin is noise that the caller never wrote.
    return float(f"{value:.7g}")


def response_from_event(event: Started | Delta | Finished) -> generation_pb2.GenerateResponse:
    """An event as a message of Generate."""
    match event:
        case Delta():
            return generation_pb2.GenerateResponse(delta=_delta_to_proto(event))
        case Started():
            return generation_pb2.GenerateResponse(started=_started_to_proto(event))
        case Finished():
            return generation_pb2.GenerateResponse(finished=_finished_to_proto(event))


def call_event(call_id: int, event: Event) -> generation_pb2.CallEvent:
    """An event as an entry of a GenerateStream message.

    One that no message can carry (text that is no Unicode, a number out of range) becomes the failure of its call: the
    other calls on the stream have no part in it.
    """
    try:
        match event:
            case Delta():
                return generation_pb2.CallEvent(call_id=call_id, delta=_delta_to_proto(event))
            case Started():
                return generation_pb2.CallEvent(call_id=call_id, started=_started_to_proto(event))
            case Finished():
                return generation_pb2.CallEvent(call_id=call_id, finished=_finished_to_proto(event))
            case Failed():
                return generation_pb2.CallEvent(call_id=call_id, failure=failure_from_error(event.error))
    except ValueError:
        error = EngineFailed("The engine answered with something that cannot be passed on.")
        return generation_pb2.CallEvent(call_id=call_id, failure=failure_from_error(error))


def event_from_proto(message: generation_pb2.CallEvent | generation_pb2.GenerateResponse) -> Event | None:
    """The event in a message of Generate or an entry of GenerateStream; None for a kind this version does not know."""
    kind = message.WhichOneof("event")
    if kind == "delta":
        return _delta_from_proto(message.delta)
    if kind == "started":
        return Started(message.started.prompt_token_count, message.started.cached_token_count)
    if kind == "finished":
        finished = message.finished
        return Finished(finished.prompt_token_count, finished.cached_token_count, finished.output_token_count)
    if kind == "failure" and isinstance(message, generation_pb2.CallEvent):
        return Failed(error_from_failure(message.failure))
    return None


def _started_to_proto(event: Started) -> generation_pb2.Started:
    return generation_pb2.Started(prompt_token_count=event.prompt_tokens, cached_token_count=event.cached_tokens)


def _finished_to_proto(event: Finished) -> generation_pb2.Finished:
    return generation_pb2.Finished(
        prompt_token_count=event.prompt_tokens,
        cached_token_count=event.cached_tokens,
        output_token_count=event.output_tokens,
    )


def _delta_to_proto(event: Delta) -> generation_pb2.Delta:
    message = generation_pb2.Delta(choice_index=event.choice, text=event.text, token_ids=event.token_ids)
    if event.reasoning:
        message.reasoning = event.reasoning
    if event.finish_reason is not None:
        message.finish_reason = _FINISH[event.finish_reason]
    for call in event.tool_calls:
        message.tool_calls.add(index=call.index, id=call.id, name=call.name, arguments=call.arguments)
    for entry in event.logprobs:
        message.logprobs.add(
            token=entry.token,
            logprob=entry.logprob,
            token_bytes=entry.token_bytes,
            top=[
                generation_pb2.TopLogprob(token=top.token, logprob=top.logprob, token_bytes=top.token_bytes)
                for top in entry.top
            ],
        )
    return message


def _delta_from_proto(message: generation_pb2.Delta) -> Delta:
    return Delta(
        message.choice_index,
        message.text,
        tuple(message.token_ids),
        message.reasoning,
        tuple(ToolCallDelta(call.index, call.id, call.name, call.arguments) for call in message.tool_calls)
        if message.tool_calls
        else (),
        tuple(
            TokenLogprob(
                entry.token,
                entry.logprob,
                entry.token_bytes,
                tuple(TopLogprob(top.token, top.logprob, top.token_bytes) for top in entry.top),
            )
            for entry in message.logprobs
        )
        if message.logprobs
        else (),
        _FINISH_BACK.get(message.finish_reason),
    )


def _measure(value: float) -> float:
    # A peer may send NaN, infinity or a negative number; "nothing measured" is the honest reading of all three.
    return value if 0.0 < value < 1e12 else 0.0


def _milliseconds(timeout_s: float | None) -> int:
    # 0 stands for no limit, so that what is over already becomes the shortest there is.
    return 0 if timeout_s is None else max(1, round(min(timeout_s * 1000, _UINT32)))


def _uint32(value: int) -> int:
    return max(0, min(value, _UINT32))
