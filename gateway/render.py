"""Events in, OpenAI's JSON out, the same whichever engine spoke.

Per token nothing is rendered but the text: what stays the same in all chunks of a choice is written once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import orjson

from gateway import sse
from gateway.forms import ChatForm, ChoiceSoFar, CompletionForm, Form, Json, usage
from gateway.schema import OpenAIRequest
from gateway.sse import one_line
from gateway.vectors import Vectors
from lbcore.generation import Delta, Dialect, Event, Failed, Finished

_FORMS: dict[Dialect, Form] = {Dialect.CHAT: ChatForm(), Dialect.COMPLETION: CompletionForm()}
"""Of what can be streamed."""

EVENTS_AT_ONCE = 16
"""Events of an answer in one piece to render before other requests get a turn: sixteen vectors of 4,096 numbers take
2.5 ms, and all of a request's could take a third of a second."""

_MARK = "@"
_MARK_JSON = b'"@"'

_Edges = tuple[bytes, bytes, bytes]
"""What stands before a choice's text, after its text or reasoning, and before its reasoning."""


class Chunks:
    """A streamed answer: batches of events to bytes of server-sent events, each batch for one write."""

    def __init__(self, form: Form, *, id: str, created: int, model: str, include_usage: bool = False) -> None:
        """`created` in seconds since 1970. With `include_usage` a last chunk tells it and all others say null."""
        self._form = form
        self._head = sse.HEAD + one_line(_head(form.chunk_object, id, created, model))
        self._tail = (b'],"usage":null}' if include_usage else b"]}") + sse.TAIL
        self._include_usage = include_usage
        self._edges: dict[int, _Edges] = {}
        self._offsets: dict[int, int] = {}
        self.is_over = False
        """The end was rendered, good or bad; the rest is ignored."""

    def render(self, events: Sequence[Event]) -> bytes:
        """The frames for these events; empty when there is nothing to show.

        A failure becomes an error event; but as long as nothing was rendered it is raised, since then it can still be
        answered with a status.
        """
        if len(events) == 1:
            # As nearly every batch is of a stream under way.
            (event,) = events
            if type(event) is Delta and event.text:
                edges = self._edges.get(event.choice)
                if edges is not None and not (
                    event.finish_reason or event.logprobs or event.tool_calls or event.reasoning
                ):
                    return edges[0] + one_line(orjson.dumps(event.text)) + edges[1]
        frames: list[bytes] = []
        for event in events:
            if self.is_over:
                break
            if type(event) is Delta:
                text, reasoning = event.text, event.reasoning
                if event.finish_reason or event.logprobs or event.tool_calls or (text and reasoning):
                    self._render_rich(event, frames)
                elif text:
                    before, after, _ = self._edges.get(event.choice) or self._begin(event.choice, frames)
                    frames += (before, one_line(orjson.dumps(text)), after)
                elif reasoning and self._form.shows_reasoning:
                    _, after, before = self._edges.get(event.choice) or self._begin(event.choice, frames)
                    frames += (before, one_line(orjson.dumps(reasoning)), after)
            elif type(event) is Finished:
                self.is_over = True
                if self._include_usage:
                    frames += (self._head, b'],"usage":', orjson.dumps(usage(event)), b"}", sse.TAIL)
                frames.append(sse.DONE)
            elif type(event) is Failed:
                self.is_over = True
                if not self._edges:
                    raise event.error
                frames.append(sse.error(event.error))
        return b"".join(frames)

    def _begin(self, index: int, frames: list[bytes]) -> _Edges:
        """Opens a choice, and renders what stands around the text in all its chunks."""
        opening = self._form.opening(index)
        if opening is not None:
            frames += (self._head, orjson.dumps(opening), self._tail)
        before, _, after = orjson.dumps(self._form.text(index, _MARK)).partition(_MARK_JSON)
        reasoning, _, _ = orjson.dumps(self._form.reasoning(index, _MARK)).partition(_MARK_JSON)
        edges = self._edges[index] = (self._head + before, after + self._tail, self._head + reasoning)
        return edges

    def _render_rich(self, delta: Delta, frames: list[bytes]) -> None:
        offset = self._offsets.get(delta.choice, 0)
        choices = self._form.rich(delta, offset)
        if choices and delta.choice not in self._edges:
            self._begin(delta.choice, frames)
        for choice in choices:
            frames += (self._head, one_line(orjson.dumps(choice)), self._tail)
        if delta.logprobs:
            self._offsets[delta.choice] = offset + sum(len(token.token) for token in delta.logprobs)


class Answer:
    """An answer in one piece: gathers events until there is one."""

    def __init__(self, form: Form, *, id: str, created: int, model: str, choice_count: int = 1) -> None:
        """`created` in seconds since 1970."""
        self._form = form
        self._head = _head(form.whole_object, id, created, model)
        self._choices = {index: ChoiceSoFar() for index in range(choice_count)}

    def add(self, events: Iterable[Event]) -> bytes | None:
        """The body once the events are complete, else None. Raises the error of a failure."""
        for event in events:
            if type(event) is Delta:
                choice = self._choices.get(event.choice)
                if choice is None:
                    choice = self._choices[event.choice] = ChoiceSoFar()
                choice.add(event)
            elif type(event) is Finished:
                choices = [self._form.whole(index, choice) for index, choice in sorted(self._choices.items())]
                return b"".join(
                    (self._head[:-1], orjson.dumps(choices), b',"usage":', orjson.dumps(usage(event)), b"}")
                )
            elif type(event) is Failed:
                raise event.error
        return None


def chunks_for(request: OpenAIRequest, request_id: str, created: int) -> Chunks:
    """What renders the streamed answer to a request. `created` in seconds since 1970."""
    form = _FORMS[request.dialect]
    return Chunks(
        form,
        id=form.id_prefix + request_id,
        created=created,
        model=request.model,
        include_usage=request.include_usage,
    )


def answer_for(request: OpenAIRequest, request_id: str, created: int) -> Answer | Vectors:
    """What renders the answer in one piece to a request. `created` in seconds since 1970."""
    if request.dialect is Dialect.EMBEDDING:
        return Vectors(model=request.model, input_count=request.choice_count, is_base64=request.is_base64)
    form = _FORMS[request.dialect]
    return Answer(
        form,
        id=form.id_prefix + request_id,
        created=created,
        model=request.model,
        choice_count=request.choice_count,
    )


def model_object(name: str, created: int) -> bytes:
    """The body of GET /v1/models/{name}. `created` in seconds since 1970."""
    return orjson.dumps(_model(name, created))


def model_list(created_by_name: Mapping[str, int]) -> bytes:
    """The body of GET /v1/models, by name."""
    models = [_model(name, created) for name, created in sorted(created_by_name.items())]
    return orjson.dumps({"object": "list", "data": models})


def _model(name: str, created: int) -> Json:
    return {"id": name, "object": "model", "created": created, "owned_by": "lbcore"}


def _head(object: str, id: str, created: int, model: str) -> bytes:
    """An answer up to its first choice."""
    fields = orjson.dumps({"id": id, "object": object, "created": created, "model": model})
    return fields[:-1] + b',"choices":['
