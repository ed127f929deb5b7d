"""What llama.cpp's errors mean for a request. Pure."""

from __future__ import annotations

import re

import orjson

from lbcore.errors import ContextLengthExceeded, EngineFailed, InvalidRequest, LoadBalancerError
from worker.engines.llamacpp.body import Ask

_FIELD = re.compile(r"^Field '([^']+)': (?:\[json\.[^\]]*\] )?(.*)$", re.DOTALL)
_CLIENTS_FAULT = re.compile(
    r"^(?:Failed to parse|Cannot |Unknown reasoning format|Unsupported|Invalid|Missing|All non-assistant|Expected)"
    r"|jinja|template|not supported|unsupported|must be|is required"
)
"""What llama.cpp says with status 500 when a body does not go together with itself, the model or its chat template."""
_QUOTE = re.compile(r"(?:[\s:;,]*[\n{\[]|(?<=^Unknown reasoning format):).*", re.DOTALL)
"""Where llama.cpp begins to quote the request or the template: our messages hold neither."""


def too_long(prompt: int, asked: int, context_length: int, ask: Ask) -> ContextLengthExceeded:
    """The refusal of a prompt that leaves less room than was asked for."""
    return ContextLengthExceeded(
        f"The context is {context_length} tokens; the prompt has {prompt} and {asked} more were asked for.",
        param=ask.prompt_field,
    )


def error_from_body(body: bytes, status: int, ask: Ask) -> LoadBalancerError:
    """The error that an answer with an HTTP status other than 200 stands for."""
    try:
        return error_from_json(orjson.loads(body), status, ask)
    except orjson.JSONDecodeError:
        return EngineFailed(f"llama.cpp answered with status {status}.")


def error_from_json(answer: object, status: int, ask: Ask) -> LoadBalancerError:
    """The error that llama.cpp's error object stands for."""
    error = answer.get("error", answer) if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        return EngineFailed(f"llama.cpp answered with status {status}.")
    if error.get("type") == "exceed_context_size_error":
        prompt, limit = error.get("n_prompt_tokens"), error.get("n_ctx")
        return ContextLengthExceeded(
            f"The context is {limit} tokens; the prompt has {prompt} and leaves no room for an answer.",
            param=ask.prompt_field,
        )
    message = str(error.get("message", ""))
    field = _FIELD.match(message)
    if field is not None:
        return InvalidRequest(f"{field[1]}: {_QUOTE.sub('', field[2])}.", param=field[1])
    said = _QUOTE.sub("", message).rstrip(".")
    if error.get("code", status) == 400 or _CLIENTS_FAULT.search(message):
        return InvalidRequest(f"llama.cpp refused the request: {said}.", param=_param(message, ask))
    return EngineFailed(f"llama.cpp failed: {said}.")


def _param(message: str, ask: Ask) -> str | None:
    """The field that a message is about, where llama.cpp does not name it as such."""
    about = (
        ("Unknown reasoning format", "reasoning_format"),
        ("tool_choice", "tool_choice"),
        ("tool", "tools"),
        ("schema", "response_format"),
        ("response_format", "response_format"),
        ("grammar", "grammar"),
        ("stop", "stop"),
        ("rompt", ask.prompt_field),
        ("essage", ask.prompt_field),
        ("content", ask.prompt_field),
        ("input is not supported", ask.prompt_field),
    )
    return next((param for word, param in about if word in message), None)
