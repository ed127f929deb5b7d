"""The two shapes an answer can have: chat and completion, as OpenAI's API reference gives them, key for key.

`system_fingerprint` and `service_tier` are left out: both are optional, the first would have to name one configuration
for workers that may differ, and each would be paid for with every token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Protocol

from lbcore.generation import Delta, Finished, FinishReason, TokenLogprob, ToolCallDelta

Json = dict[str, object]

_UNLIKELY = -9999.0
"""OpenAI's number for a logarithm that JSON cannot carry."""


@dataclass(slots=True)
class ChoiceSoFar:
    """What one choice has gained: its deltas, joined."""

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tool_calls: dict[int, list[ToolCallDelta]] = field(default_factory=dict)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason = FinishReason.STOP

    def add(self, delta: Delta) -> None:
        self.texts.append(delta.text)
        self.reasoning.append(delta.reasoning)
        for part in delta.tool_calls:
            self.tool_calls.setdefault(part.index, []).append(part)
        self.logprobs.extend(delta.logprobs)
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason


class Form(Protocol):
    """How one dialect says it. A choice is the object inside `choices`."""

    @property
    def id_prefix(self) -> str: ...

    @property
    def shows_reasoning(self) -> bool: ...

    @property
    def chunk_object(self) -> str: ...

    @property
    def whole_object(self) -> str: ...

    def opening(self, index: int) -> Json | None:
        """The choice of a stream's first chunk; None where there is none."""

    def text(self, index: int, text: str) -> Json:
        """The choice of a chunk that holds text only."""

    def reasoning(self, index: int, text: str) -> Json:
        """The same for reasoning, where it is shown; after the text both are alike."""

    def rich(self, delta: Delta, text_offset: int) -> list[Json]:
        """The choices of the chunks for any other delta. `text_offset` counts the characters before it."""

    def whole(self, index: int, choice: ChoiceSoFar) -> Json:
        """The choice of an answer in one piece."""


class ChatForm:
    """POST /v1/chat/completions."""

    id_prefix = "chatcmpl-"
    shows_reasoning = True
    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def opening(self, index: int) -> Json:
        return _chat_choice(index, {"role": "assistant", "content": ""})

    def text(self, index: int, text: str) -> Json:
        return _chat_choice(index, {"content": text})

    def reasoning(self, index: int, text: str) -> Json:
        return _chat_choice(index, {"reasoning_content": text})

    def rich(self, delta: Delta, text_offset: int) -> list[Json]:
        gained: Json = {}
        if delta.reasoning:
            gained["reasoning_content"] = delta.reasoning
        if delta.text or (delta.logprobs and not delta.reasoning):
            gained["content"] = delta.text
        if delta.tool_calls:
            gained["tool_calls"] = [_tool_call_part(part) for part in delta.tool_calls]
        choices = [_chat_choice(delta.choice, gained, _chat_logprobs(delta.logprobs))] if gained else []
        if delta.finish_reason is not None:
            choices.append(_chat_choice(delta.choice, {}, None, delta.finish_reason))
        return choices

    def whole(self, index: int, choice: ChoiceSoFar) -> Json:
        text = "".join(choice.texts)
        reasoning = "".join(choice.reasoning)
        message: Json = {"role": "assistant", "content": None if choice.tool_calls and not text else text}
        if reasoning:
            message["reasoning_content"] = reasoning
        if choice.tool_calls:
            message["tool_calls"] = [_tool_call(parts) for _, parts in sorted(choice.tool_calls.items())]
        message["refusal"] = None
        return {
            "index": index,
            "message": message,
            "logprobs": _chat_logprobs(choice.logprobs),
            "finish_reason": choice.finish_reason,
        }


class CompletionForm:
    """POST /v1/completions."""

    id_prefix = "cmpl-"
    shows_reasoning = False
    chunk_object = "text_completion"
    whole_object = "text_completion"

    def opening(self, index: int) -> None:
        return None

    def text(self, index: int, text: str) -> Json:
        return _completion_choice(index, text)

    def reasoning(self, index: int, text: str) -> Json:
        return _completion_choice(index, text)

    def rich(self, delta: Delta, text_offset: int) -> list[Json]:
        if not (delta.text or delta.logprobs or delta.finish_reason):
            return []
        logprobs = _completion_logprobs(delta.logprobs, text_offset)
        return [_completion_choice(delta.choice, delta.text, logprobs, delta.finish_reason)]

    def whole(self, index: int, choice: ChoiceSoFar) -> Json:
        logprobs = _completion_logprobs(choice.logprobs, 0)
        return _completion_choice(index, "".join(choice.texts), logprobs, choice.finish_reason)


def usage(finished: Finished) -> Json:
    """The usage object of both forms."""
    return {
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.output_tokens,
        "total_tokens": finished.prompt_tokens + finished.output_tokens,
        "prompt_tokens_details": {"cached_tokens": finished.cached_tokens},
    }


def _chat_choice(
    index: int, delta: Json, logprobs: Json | None = None, finish_reason: FinishReason | None = None
) -> Json:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _completion_choice(
    index: int, text: str, logprobs: Json | None = None, finish_reason: FinishReason | None = None
) -> Json:
    return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish_reason}


def _tool_call_part(part: ToolCallDelta) -> Json:
    """The first part of a call tells its id and name, the others only add arguments."""
    call: Json = {"index": part.index}
    function: Json = {}
    if part.id:
        call["id"] = part.id
    if part.id or part.name:
        call["type"] = "function"
    if part.name:
        function["name"] = part.name
    function["arguments"] = part.arguments
    call["function"] = function
    return call


def _tool_call(parts: Sequence[ToolCallDelta]) -> Json:
    function = {"name": "".join(part.name for part in parts), "arguments": "".join(part.arguments for part in parts)}
    return {"id": "".join(part.id for part in parts), "type": "function", "function": function}


def _chat_logprobs(tokens: Sequence[TokenLogprob]) -> Json | None:
    if not tokens:
        return None
    content = [
        _chat_token(token.token, token.logprob, token.token_bytes)
        | {"top_logprobs": [_chat_token(top.token, top.logprob, top.token_bytes) for top in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _chat_token(token: str, logprob: float, token_bytes: bytes) -> Json:
    return {"token": token, "logprob": _finite(logprob), "bytes": list(token_bytes) or None}


def _completion_logprobs(tokens: Sequence[TokenLogprob], text_offset: int) -> Json | None:
    """Parallel lists; offsets count characters of the choice's text."""
    if not tokens:
        return None
    offsets = []
    for token in tokens:
        offsets.append(text_offset)
        text_offset += len(token.token)
    tops = [_top_by_text(token) for token in tokens]
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": tops if any(tops) else None,
        "text_offset": offsets,
    }


def _top_by_text(token: TokenLogprob) -> dict[str, float]:
    """Different tokens may read the same; the likeliest, which comes first, keeps the name."""
    by_text: dict[str, float] = {}
    for top in token.top:
        by_text.setdefault(top.token, _finite(top.logprob))
    return by_text


def _finite(logprob: float) -> float:
    return logprob if isfinite(logprob) else _UNLIKELY
