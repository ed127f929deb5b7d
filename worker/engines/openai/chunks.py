"""Turns the parts of a server's JSON into our words. Pure.

Servers agree on OpenAI's shapes only by and large, so what is missing or of another type counts as absent here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import orjson

from lbcore.generation import FinishReason, TokenLogprob, ToolCallDelta, TopLogprob

IMPOSSIBLE = -9999.0
"""What OpenAI gives as the logarithm of probability zero."""

MAX_COUNT = 2**31 - 1
"""The largest number that is taken for one of tokens, or for a token's."""

_REASONS: Mapping[str, FinishReason] = {
    **{reason.value: reason for reason in FinishReason},
    "eos": FinishReason.STOP,
    "eos_token": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "end_turn": FinishReason.STOP,
    "function_call": FinishReason.TOOL_CALLS,
    "tool_use": FinishReason.TOOL_CALLS,
    "max_tokens": FinishReason.LENGTH,
    "max_length": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,
}
GAVE_UP = frozenset({"abort", "aborted", "cancelled", "error"})
"""Reasons that say that there is no good end."""


def finish_reason(said: object) -> FinishReason | None:
    """Why a choice ended; None while it has not. A reason that nobody here knows is an end like another."""
    if said is None or said == "":
        return None
    return _REASONS.get(said, FinishReason.STOP) if isinstance(said, str) else FinishReason.STOP


def text_of(said: object) -> str:
    return said if isinstance(said, str) else ""


def ids_of(said: object) -> tuple[int, ...]:
    """Token ids; none of them where one is no such number."""
    return tuple(said) if isinstance(said, list) and all(map(_is_count, said)) else ()


def count_of(said: object) -> int:
    """A number of tokens; 0 for what is none, whatever type or size a server gave it."""
    return said if _is_count(said) else 0


def _is_count(said: object) -> TypeGuard[int]:
    return type(said) is int and 0 <= said <= MAX_COUNT


def tool_calls(parts: object) -> tuple[ToolCallDelta, ...]:
    """The parts of tool calls in a delta, or the whole calls of a message."""
    if not isinstance(parts, list):
        return ()
    return tuple(_tool_call(part, place) for place, part in enumerate(parts) if isinstance(part, dict))


def _tool_call(part: Mapping[str, Any], place: int) -> ToolCallDelta:
    function = part.get("function")
    function = function if isinstance(function, dict) else {}
    arguments = function.get("arguments")
    if isinstance(arguments, dict):
        arguments = orjson.dumps(arguments).decode()
    index = part.get("index")
    return ToolCallDelta(
        index if isinstance(index, int) else place,
        text_of(part.get("id")),
        text_of(function.get("name")),
        text_of(arguments),
    )


def logprobs(said: object, top: int | None) -> tuple[TokenLogprob, ...]:
    """The log probabilities of a delta, in a chat's shape or a completion's, each with the `top` likeliest tokens.

    Some servers use a chat's shape for both. None stands for none wanted.
    """
    if top is None or not isinstance(said, dict):
        return ()
    content = said.get("content")
    if isinstance(content, list):
        return tuple(_from_chat(token, top) for token in content)
    tokens = said.get("tokens")
    return tuple(_from_completion(said, tokens, top)) if isinstance(tokens, list) else ()


def _from_chat(token: Mapping[str, Any], top: int) -> TokenLogprob:
    likely = token.get("top_logprobs") or ()
    return TokenLogprob(
        token["token"],
        _finite(token.get("logprob")),
        _bytes(token),
        tuple(TopLogprob(one["token"], _finite(one.get("logprob")), _bytes(one)) for one in likely[:top]),
    )


def _from_completion(said: Mapping[str, Any], tokens: Sequence[str], top: int) -> Iterable[TokenLogprob]:
    own = said.get("token_logprobs") or ()
    likely = said.get("top_logprobs") or ()
    for place, token in enumerate(tokens):
        others = likely[place] if place < len(likely) else None
        ranked = sorted((others or {}).items(), key=lambda pair: -_finite(pair[1]))[:top]
        yield TokenLogprob(
            token,
            _finite(own[place] if place < len(own) else None),
            _encoded(token),
            tuple(TopLogprob(text, _finite(logprob), _encoded(text)) for text, logprob in ranked),
        )


def _bytes(token: Mapping[str, Any]) -> bytes:
    told = token.get("bytes")
    return bytes(told) if isinstance(told, list) else _encoded(token["token"])


def _encoded(token: str) -> bytes:
    return token.encode("utf-8", "replace")


def _finite(logprob: float | None) -> float:
    return IMPOSSIBLE if logprob is None else max(IMPOSSIBLE, min(0.0, logprob))
