"""Generation: requests and their events."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite

import orjson
from google.protobuf.message import Message

from lbcore.api.v1 import generation_pb2
from lbcore.errors import EngineFailed, InvalidRequest
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
from lbcore.types import Ticket
from lbcore.wire.convert.numbers import milliseconds, uint32
from lbcore.wire.status import error_from_failure, failure_from_error

_FINISH = {
    FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: generation_pb2.FINISH_REASON_TOOL_CALLS,
    FinishReason.CONTENT_FILTER: generation_pb2.FINISH_REASON_CONTENT_FILTER,
}
_NO_MESSAGE = "The engine answered with something that cannot be passed on."
_MAX_TOKEN = 2**32 - 1
_new = tuple.__new__
_FINISH_BACK = {number: reason for reason, number in _FINISH.items()}


def _key(message: type[Message], field: str) -> bytes:
    """How protobuf begins a field of bytes or of a message; its length and itself follow."""
    return _varint(message.DESCRIPTOR.fields_by_name[field].number << 3 | 2)


def _varint(value: int) -> bytes:
    """A number as protobuf has it: seven bits in a byte, the last ones first."""
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    data.append(value)
    return bytes(data)


_CALLS_KEY = _key(generation_pb2.GenerateStreamRequest, "calls")
_REQUEST_KEY = _key(generation_pb2.GenerateCall, "request")
_BODY_KEYS = {
    Dialect.CHAT: _key(generation_pb2.GenerateRequest, "chat_completion_json"),
    Dialect.COMPLETION: _key(generation_pb2.GenerateRequest, "completion_json"),
    Dialect.EMBEDDING: _key(generation_pb2.GenerateRequest, "embedding_json"),
}


def write_generation(request: GenerationRequest, message: generation_pb2.GenerateRequest) -> None:
    """Fills in a request."""
    _write_all_but_body(request, message)
    match request.dialect:
        case Dialect.CHAT:
            message.chat_completion_json = request.body
        case Dialect.COMPLETION:
            message.completion_json = request.body
        case Dialect.EMBEDDING:
            message.embedding_json = request.body


def call_in_parts(request: GenerationRequest, call: generation_pb2.GenerateCall) -> tuple[bytes, bytes]:
    """The bytes of a GenerateStreamRequest with this one call of this request: all but the body, and then the body.

    For long bodies, of which protobuf would make three copies on their way. `call` is filled in but for `request`, and
    is used up.
    """
    _write_all_but_body(request, call.request)
    fields = call.request.SerializeToString()
    call.ClearField("request")
    around = call.SerializeToString()
    body = bytes(request.body)
    body_head = _BODY_KEYS[request.dialect] + _varint(len(body))
    request_head = _REQUEST_KEY + _varint(len(fields) + len(body_head) + len(body))
    inside = around + request_head + fields + body_head
    return _CALLS_KEY + _varint(len(inside) + len(body)) + inside, body


def _write_all_but_body(request: GenerationRequest, message: generation_pb2.GenerateRequest) -> None:
    message.request_id = request.request_id
    message.ticket = request.ticket
    message.timeout_ms = milliseconds(request.timeout_s)
    if request.priority:
        message.priority = request.priority
    if request.prefix_hashes:
        message.prefix_hashes.extend(request.prefix_hashes)
        message.prefix_block_byte_count = request.prefix_block_bytes
        message.prompt_byte_count = uint32(request.prompt_bytes)
    if request.continuation is not None:
        text, reasoning, token_ids = request.continuation
        # Told though all of it may be empty.
        message.continuation.SetInParent()
        message.continuation.text = text
        message.continuation.reasoning = reasoning
        message.continuation.token_ids.extend(token_ids)


def generation_to_proto(request: GenerationRequest) -> generation_pb2.GenerateRequest:
    """A request as a message."""
    message = generation_pb2.GenerateRequest()
    write_generation(request, message)
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
        case "embedding_json":
            dialect, body = Dialect.EMBEDDING, message.embedding_json
        case "typed":
            dialect, body = _body_of_typed(message.typed)
        case _:
            raise InvalidRequest("input is missing", param="input")
    timeout_ms = message.timeout_ms
    timeout_s = timeout_ms / 1000 if timeout_ms else None
    request = GenerationRequest(message.request_id, dialect, body, Ticket(message.ticket), timeout_s, message.priority)
    prompt_bytes = message.prompt_byte_count
    # A number is looked at in half the time of a list, and without it the hashes would say nothing.
    if prompt_bytes:
        request = request._replace(
            prefix_hashes=tuple(message.prefix_hashes),
            prefix_block_bytes=message.prefix_block_byte_count,
            prompt_bytes=prompt_bytes,
        )
    if message.HasField("continuation"):
        begun = message.continuation
        request = request._replace(continuation=Continuation(begun.text, begun.reasoning, tuple(begun.token_ids)))
    return request


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


def response_from_event(event: Started | Delta | Embedding | Finished) -> generation_pb2.GenerateResponse:
    """An event as a message of Generate.

    Raises:
        EngineFailed: no message can carry it: text that is no Unicode, a number out of range.
    """
    try:
        match event:
            case Delta():
                return generation_pb2.GenerateResponse(delta=_delta_to_proto(event))
            case Started():
                return generation_pb2.GenerateResponse(started=_started_to_proto(event))
            case Embedding():
                return generation_pb2.GenerateResponse(embedding=_embedding_to_proto(event))
            case Finished():
                return generation_pb2.GenerateResponse(finished=_finished_to_proto(event))
    except (ValueError, TypeError) as error:
        raise EngineFailed(_NO_MESSAGE) from error


def call_events(
    numbered: list[tuple[int, Event, bool]], refuse: Callable[[int, EngineFailed], None]
) -> generation_pb2.GenerateStreamResponse:
    """Events as one message of GenerateStream, each with the number of its call and whether token ids are told.

    One that no message can carry (text that is no Unicode, a number out of range) becomes the failure of its call, the
    last that the message says of it, and `refuse` hears of both: the other calls on the stream have no part in it.
    """
    refused: set[int] = set()
    message = generation_pb2.GenerateStreamResponse()
    add = message.events.add
    for call_id, event, with_token_ids in numbered:
        entry = add()
        entry.call_id = call_id
        try:
            # The first branch is taken for every token; setting fields costs half of what building messages does.
            if type(event) is Delta:
                _write_delta(event, entry.delta, with_token_ids)
            elif type(event) is Started:
                _write_started(event, entry.started)
            elif type(event) is Finished:
                _write_finished(event, entry.finished)
            elif type(event) is Embedding:
                entry.embedding.index = event.index
                entry.embedding.values = event.values
            elif type(event) is Failed:
                entry.failure.CopyFrom(failure_from_error(event.error))
        except (ValueError, TypeError):
            error = EngineFailed(_NO_MESSAGE)
            entry.failure.CopyFrom(failure_from_error(error))
            if call_id not in refused:
                refused.add(call_id)
                refuse(call_id, error)
    return _up_to_the_failure(message, refused) if refused else message


def _up_to_the_failure(
    message: generation_pb2.GenerateStreamResponse, refused: set[int]
) -> generation_pb2.GenerateStreamResponse:
    """The message without what follows the failures of these calls."""
    kept: list[generation_pb2.CallEvent] = []
    ended: set[int] = set()
    for entry in message.events:
        if entry.call_id in ended:
            continue
        kept.append(entry)
        if entry.call_id in refused and entry.HasField("failure"):
            ended.add(entry.call_id)
    return generation_pb2.GenerateStreamResponse(events=kept)


def event_from_proto(message: generation_pb2.CallEvent | generation_pb2.GenerateResponse) -> Event | None:
    """The event in a message of Generate or an entry of GenerateStream; None for a kind this version does not know."""
    kind = message.WhichOneof("event")
    if kind == "delta":
        delta = message.delta
        # Once per token: past the constructor, which is a function of Python's.
        token = delta.token_plus_one
        if token:
            return _new(Delta, (delta.choice_index, delta.text, (token - 1,), "", (), (), None))
        if delta.text_only:
            return _new(Delta, (delta.choice_index, delta.text, (), "", (), (), None))
        return _delta_from_proto(delta)
    if kind == "started":
        return Started(message.started.prompt_token_count, message.started.cached_token_count)
    if kind == "finished":
        finished = message.finished
        return Finished(finished.prompt_token_count, finished.cached_token_count, finished.output_token_count)
    if kind == "embedding":
        return Embedding(message.embedding.index, message.embedding.values)
    if kind == "failure" and isinstance(message, generation_pb2.CallEvent):
        return Failed(error_from_failure(message.failure))
    return None


def _started_to_proto(event: Started) -> generation_pb2.Started:
    message = generation_pb2.Started()
    _write_started(event, message)
    return message


def _write_started(event: Started, message: generation_pb2.Started) -> None:
    # Told though all of it may be zero.
    message.SetInParent()
    message.prompt_token_count = event.prompt_tokens
    if event.cached_tokens:
        message.cached_token_count = event.cached_tokens


def _embedding_to_proto(event: Embedding) -> generation_pb2.Embedding:
    return generation_pb2.Embedding(index=event.index, values=event.values)


def _finished_to_proto(event: Finished) -> generation_pb2.Finished:
    message = generation_pb2.Finished()
    _write_finished(event, message)
    return message


def _write_finished(event: Finished, message: generation_pb2.Finished) -> None:
    # Told though all of it may be zero.
    message.SetInParent()
    message.prompt_token_count = event.prompt_tokens
    if event.cached_tokens:
        message.cached_token_count = event.cached_tokens
    message.output_token_count = event.output_tokens


def _delta_to_proto(event: Delta) -> generation_pb2.Delta:
    message = generation_pb2.Delta()
    _write_delta(event, message, with_token_ids=True, is_short=False)
    return message


def _write_delta(event: Delta, message: generation_pb2.Delta, with_token_ids: bool, is_short: bool = True) -> None:
    """Without `is_short` a single token stands in the list too, where callers in other languages look for it."""
    # Once per token: taking it apart in one go costs less than asking for each field.
    choice, text, token_ids, reasoning, tool_calls, logprobs, finish_reason = event
    if text:
        message.text = text
    if choice:
        message.choice_index = choice
    if not with_token_ids:
        token_ids = ()
    if not (reasoning or tool_calls or logprobs or finish_reason):
        if not token_ids:
            message.text_only = True
            return
        if is_short and len(token_ids) == 1:
            # As nearly every delta: a number is read in a third of the time of a list.
            (token,) = token_ids
            if not 0 <= token <= _MAX_TOKEN:
                raise ValueError("a token id beyond 32 bits")
            message.token_plus_one = token + 1
            return
    if token_ids:
        message.token_ids.extend(token_ids)
    if reasoning:
        message.reasoning = reasoning
    if finish_reason is not None:
        message.finish_reason = _FINISH[finish_reason]
    if tool_calls or logprobs:
        _write_details(event, message)


def _write_details(event: Delta, message: generation_pb2.Delta) -> None:
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
