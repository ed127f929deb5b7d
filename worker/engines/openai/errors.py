"""What can go wrong with a server, and what that means for a request. Pure.

A server's own words are passed on, on one line and cut short, since they are often all there is to go by. Its address
and the key are not: clients read these messages.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any

import orjson

from lbcore.errors import (
    BodyTooLarge,
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    LoadBalancerError,
    Saturated,
    StreamInterrupted,
    WorkerUnreachable,
)
from worker.engines.fields import no_embeddings

MAX_MESSAGE_CHARACTERS = 500
MAX_RETRY_AFTER_S = 3600.0

_TOO_LONG = re.compile(
    r"context (?:length|size|window)|maximum (?:model|sequence|input) length|max_model_len|longer than the model"
    r"|`inputs` tokens \+ `max_new_tokens`|physical batch size|must have less than \d+ tokens",
    re.IGNORECASE,
)
"""Each server says it in its own words, and most give it no code."""
_BATCH = "increase the physical batch size"
"""llama.cpp's way to say, with status 500, that an input of embeddings is too long."""
_NO_EMBEDDINGS = re.compile(
    r"not support (?:the )?embedding|embeddings? (?:api )?(?:is |are )?not supported|generate embeddings from"
    r"|not (?:appear to be )?an embedding model|pooling type|unsupported by \w+",
    re.IGNORECASE,
)
_NO_ROUTE = (404, 405, 501)
_DIMENSIONS = re.compile(r"\bdimensions\b")
"""vLLM refuses them without saying where they stood."""
_CLIENTS_FAULT = (400, 413, 422)
_VALIDATION = re.compile(r"'msg': '((?:[^'\\]|\\.)*)'")
"""vLLM's list of what is wrong, as Python writes it; the rest of it quotes the request."""


class BadEnd(StrEnum):
    """The ways in which a server lets a request down, as they are counted."""

    REFUSED = "refused"
    """It found fault with the request."""
    KEY_REFUSED = "key_refused"
    MISSING = "missing"
    """It knows no such model or route."""
    SATURATED = "saturated"
    FAILED = "failed"
    """It said that it failed."""
    UNREACHABLE = "unreachable"
    """No connection, or one that broke before anything came."""
    TIMED_OUT = "timed_out"
    """Nothing came in time."""
    STALLED = "stalled"
    """It fell silent inside an answer."""
    INTERRUPTED = "interrupted"
    """The connection broke inside an answer."""
    UNREADABLE = "unreadable"
    """What came is no answer."""


class BadAnswer(Exception):
    """A request's end in what the server did."""

    def __init__(self, how: BadEnd, error: LoadBalancerError, *, try_again: bool = False) -> None:
        super().__init__(how)
        self.how = how
        self.error = error
        self.try_again = try_again
        """Whether it says nothing of the server, which may be asked once more."""

    @property
    def another_may_help(self) -> bool:
        """Whether to ask the next server at once. One that failed may have failed on the request."""
        return self.how in (BadEnd.UNREACHABLE, BadEnd.SATURATED)


def unreachable(*, try_again: bool = False) -> BadAnswer:
    """Nothing came."""
    error = WorkerUnreachable("The upstream server cannot be reached.")
    return BadAnswer(BadEnd.UNREACHABLE, error, try_again=try_again)


def timed_out(seconds: float) -> BadAnswer:
    """Nothing came for so long."""
    message = f"The upstream server did not begin to answer within {seconds:g} s."
    return BadAnswer(BadEnd.TIMED_OUT, WorkerUnreachable(message))


def stalled(seconds: float) -> BadAnswer:
    """Nothing more came for so long."""
    return BadAnswer(BadEnd.STALLED, StreamInterrupted(f"The upstream server fell silent for {seconds:g} s."))


def cut_off(begun: bool) -> BadAnswer:
    """The answer ended before its end; `begun` says whether anything of it was passed on."""
    message = "The upstream server broke off the answer."
    return BadAnswer(BadEnd.INTERRUPTED, StreamInterrupted(message) if begun else WorkerUnreachable(message))


def unreadable(what: str) -> BadAnswer:
    """`what` came instead of an answer; it holds nothing of what was sent."""
    return BadAnswer(BadEnd.UNREADABLE, EngineFailed(f"The upstream server answered with {what}."))


def from_status(status: int, retry_after: str | None, body: bytes, param: str) -> BadAnswer:
    """What an answer with an HTTP status other than 200 stands for. `param` is the field that holds the prompt."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        # A page of HTML, perhaps of a proxy in between, tells a client nothing.
        answer = None
    if status in (429, 503):
        message = f"The upstream server is busy{_colon(_message(answer))}"
        return BadAnswer(BadEnd.SATURATED, Saturated(message, retry_after_s=_seconds(retry_after)))
    return _meaning(status, answer, param)


def from_json(answer: object, param: str) -> BadAnswer | None:
    """The error in an answer that began well; None when there is none in it."""
    if not isinstance(answer, dict):
        return None
    error = answer.get("error")
    if not error and answer.get("object") != "error" and ("choices" in answer or "message" not in answer):
        return None
    code = str(error.get("code") if isinstance(error, dict) else answer.get("code"))
    return _meaning(int(code) if code.isascii() and code.isdigit() else 500, answer, param)


def _meaning(status: int, answer: object, param: str) -> BadAnswer:
    message = _message(answer)
    if param == "input" and _has_no_embeddings(status, answer, message):
        return BadAnswer(BadEnd.REFUSED, no_embeddings())
    if status in _CLIENTS_FAULT or _code(answer) == "context_length_exceeded" or _BATCH in message:
        return BadAnswer(BadEnd.REFUSED, _refusal(status, answer, message, param))
    if status in (401, 403):
        # What it says may quote the key.
        return BadAnswer(BadEnd.KEY_REFUSED, EngineFailed("The upstream server refuses the worker's key."))
    if status == 404:
        message = f"The upstream server knows no such model or route{_colon(message)}"
        return BadAnswer(BadEnd.MISSING, EngineFailed(message))
    return BadAnswer(BadEnd.FAILED, EngineFailed(f"The upstream server failed with status {status}{_colon(message)}"))


def _has_no_embeddings(status: int, answer: object, message: str) -> bool:
    """Whether the server has no embeddings at all: it says so, or has no route for them and does not mean the model."""
    if _NO_EMBEDDINGS.search(message):
        return True
    names_model = "model" in message.lower() or _param(answer) == "model" or _code(answer) == "model_not_found"
    return status in _NO_ROUTE and not names_model


def _refusal(status: int, answer: object, message: str, param: str) -> LoadBalancerError:
    message = message or f"The upstream server refused the request with status {status}."
    code = _code(answer)
    about = _param(answer)
    if about is None and param == "input" and _DIMENSIONS.search(message):
        about = "dimensions"
    if code == "context_length_exceeded" or _TOO_LONG.search(message):
        return ContextLengthExceeded(message, param=about or param)
    if status == 413:
        return BodyTooLarge(message, param=about)
    return InvalidRequest(message, param=about, code=code if code and not code.isdigit() else None)


def _message(answer: object) -> str:
    """The server's own words on one line; empty when it has none."""
    found = answer
    if isinstance(found, dict):
        found = found.get("error") or found
    if isinstance(found, dict):
        found = found.get("message") or found.get("detail") or found.get("error")
    if isinstance(found, list):
        # FastAPI's list of what is wrong; only the words, for the rest quotes the request.
        found = "; ".join(str(one.get("msg", "")) for one in found if isinstance(one, dict))
    if not isinstance(found, str):
        return ""
    message = "; ".join(_VALIDATION.findall(found)) or " ".join(found.split())
    return message if len(message) <= MAX_MESSAGE_CHARACTERS else message[: MAX_MESSAGE_CHARACTERS - 1] + "…"


def _param(answer: object) -> str | None:
    details = _object(answer)
    param = details.get("param")
    if isinstance(param, str) and param:
        return param.removeprefix("body.")
    detail = details.get("detail")
    places = detail[0].get("loc") if isinstance(detail, list) and detail and isinstance(detail[0], dict) else None
    names = [str(name) for name in places[1:]] if isinstance(places, list) else []
    return names[0] if names else None


def _code(answer: object) -> str:
    details = _object(answer)
    if details.get("type") == "exceed_context_size_error":
        return "context_length_exceeded"
    code = details.get("code")
    return code if isinstance(code, str) else ""


def _object(answer: object) -> dict[str, Any]:
    """What holds the facts of an error."""
    if not isinstance(answer, dict):
        return {}
    error = answer.get("error")
    return error if isinstance(error, dict) else answer


def _colon(message: str) -> str:
    return f": {message}" if message else "."


def _seconds(retry_after: str | None) -> float:
    try:
        return min(MAX_RETRY_AFTER_S, max(0.0, float(retry_after or 1.0)))
    except ValueError:
        # It may be a date, which says nothing that a clock of our own could check.
        return 1.0
