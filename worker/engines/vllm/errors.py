"""What vLLM's errors mean for a request. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lbcore.errors import (
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    LoadBalancerError,
    ModelNotFound,
    Saturated,
)

MAX_MESSAGE = 600

_TOO_LONG = re.compile(r"maximum\s+context\s+length|max_model_len")
_DETAILS = re.compile(r" \((?:parameter|value)=.*\)$", re.DOTALL)
"""What vLLM adds of its own internals, the offending value among them, which may be the client's text."""
_FIELD_FIRST = re.compile(r"^`?([a-z_]+)`? (?:must|cannot|is|should|has)\b")
_NAMED = re.compile(r"\b(dimensions) must\b")
"""A field that a sentence names in its middle."""
_TOOL_CHOICE = re.compile(r"tool[ _]choice")
_INTERNAL = ("input_tokens", "input_text")
"""Names that vLLM gives for a prompt that no client knows by them."""


def too_long(prompt: int, asked: int, context_length: int, prompt_field: str) -> ContextLengthExceeded:
    """The refusal of a prompt that leaves less room than was asked for."""
    return ContextLengthExceeded(
        f"The context is {context_length} tokens; the prompt has {prompt} and {asked} more were asked for.",
        param=prompt_field,
    )


def error_from_response(error: Any, prompt_field: str) -> LoadBalancerError:
    """The error that vLLM's error object (`message`, `code` as HTTP status, `param`) stands for."""
    message = _sentence(_DETAILS.sub("", error.message))
    if _TOO_LONG.search(message):
        return ContextLengthExceeded(message, param=prompt_field)
    status = int(error.code)
    if status == 404:
        return ModelNotFound(message)
    if status in (429, 503):
        return Saturated(message)
    if 400 <= status < 500:
        return InvalidRequest(message, param=_param(error.param, message, prompt_field))
    return EngineFailed("vLLM failed on the request.")


def error_from_validation(errors: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """The error that a body's first broken rule stands for; `errors` are pydantic's."""
    first = errors[0]
    where = _path(first.get("loc", ()))
    # Pydantic's messages tell types and bounds, and what a validator of vLLM's said.
    said = str(first.get("msg", "is not valid")).removeprefix("Value error, ")
    said = _DETAILS.sub("", said)
    field = _FIELD_FIRST.match(said)
    param = where or (field[1] if field else None)
    return InvalidRequest(_sentence(f"{where}: {said}" if where else said), param=param)


def _param(param: str | None, message: str, prompt_field: str) -> str | None:
    if param in _INTERNAL:
        return prompt_field
    if _TOOL_CHOICE.search(message):
        return "tool_choice"
    field = _FIELD_FIRST.match(message) or _NAMED.search(message)
    return param or (field[1] if field else None)


def _path(loc: Any) -> str:
    """A place in a body in OpenAI's notation; names of types that pydantic tried on the way are left out."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif re.fullmatch(r"[a-z_][a-z0-9_]*", part) and part not in _TYPES:
            path += f".{part}" if path else part
        else:
            break
    return path


_TYPES = frozenset(("str", "int", "float", "bool", "list", "dict", "none", "literal", "tagged-union"))


def _sentence(text: str) -> str:
    """One line that ends as a sentence does, and not longer than an error should be."""
    line = " ".join(text.split())[:MAX_MESSAGE].rstrip(".")
    return f"{line}."
