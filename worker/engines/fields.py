"""Reads fields of an OpenAI body and refuses, by name, what they cannot be. Pure.

For engines that take bodies apart themselves. Gateways check bodies too, but a worker also serves those who come by
gRPC. Null is the same as absent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from lbcore.errors import InvalidRequest

Body = Mapping[str, Any]

MAX_INPUTS = 2048
"""Inputs of one request for embeddings; OpenAI's limit."""
MAX_STOP_STRINGS = 16
MAX_TOP_LOGPROBS = 20


def json_object(raw: bytes) -> dict[str, Any]:
    """The body as a dictionary. Raises InvalidRequest for what is no JSON object."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not JSON: {error}.") from None
    if not isinstance(body, dict):
        raise InvalidRequest("The body is not a JSON object.")
    return body


def refuse(body: Body, names: Iterable[str], engine: str) -> None:
    """Raises InvalidRequest for the first of these fields that is neither null, false nor empty."""
    for name in names:
        if body.get(name):
            raise unsupported(name, engine)


def unsupported(name: str, engine: str) -> InvalidRequest:
    return InvalidRequest(f"{name} is not supported by the {engine} engine.", param=name)


def no_embeddings() -> InvalidRequest:
    """What an engine says to a request for embeddings when its model makes none."""
    return InvalidRequest("This model makes no embeddings.", param="model")


def integer(body: Body, name: str, low: int | None = None, high: int | None = None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    # Exactly: a bool is an int too.
    if type(value) is not int:
        raise InvalidRequest(f"{name} must be an integer.", param=name)
    _in_range(name, value, low, high)
    return value


def number(body: Body, name: str, low: float | None = None, high: float | None = None) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{name} must be a number.", param=name)
    _in_range(name, value, low, high)
    return float(value)


def boolean(body: Body, name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false.", param=name)
    return bool(value)


def stop_strings(body: Body) -> tuple[str, ...]:
    stop = body.get("stop")
    if stop is None:
        return ()
    strings = [stop] if isinstance(stop, str) else stop
    if not isinstance(strings, list) or not all(isinstance(one, str) and one for one in strings):
        raise InvalidRequest("stop must be a non-empty string or a list of such.", param="stop")
    if len(strings) > MAX_STOP_STRINGS:
        raise InvalidRequest(f"stop has more than {MAX_STOP_STRINGS} strings.", param="stop")
    return tuple(strings)


def output_limit(body: Body, names: Iterable[str]) -> int | None:
    """The client's limit on the tokens of each choice: the first of these names that has a value. All are checked."""
    first = None
    for name in names:
        limit = integer(body, name, 1) if name in body else None
        if first is None:
            first = limit
    return first


def chat_logprobs(body: Body) -> int | None:
    """How many likely tokens to name beside each of a chat; None when no log probabilities are wanted."""
    wanted = boolean(body, "logprobs")
    top = integer(body, "top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top and not wanted:
        raise InvalidRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
    return (top or 0) if wanted else None


def messages(body: Body) -> list[dict[str, Any]]:
    """The messages of a chat, each with a role; what else they hold is not looked at."""
    found = body.get("messages")
    if not isinstance(found, list) or not found:
        raise InvalidRequest("messages must be a non-empty list.", param="messages")
    for index, message in enumerate(found):
        if not isinstance(message, dict):
            where = f"messages[{index}]"
            raise InvalidRequest(f"{where} must be an object.", param=where)
        role = message.get("role")
        if not role or not isinstance(role, str):
            where = f"messages[{index}].role"
            raise InvalidRequest(f"{where} must be a string.", param=where)
    return found


def prompts(body: Body) -> tuple[str | list[int], ...]:
    """The prompts of a completion: a string or a list of token ids is one, a list of such is several."""
    prompt = body.get("prompt")
    if isinstance(prompt, str) or _is_token_ids(prompt):
        prompt = [prompt]
    if isinstance(prompt, list) and prompt and all(isinstance(one, str) or _is_token_ids(one) for one in prompt):
        return tuple(prompt)
    raise InvalidRequest("prompt must be a string, a list of token ids, or a list of such.", param="prompt")


def inputs(body: Body) -> tuple[str | list[int], ...]:
    """The inputs of embeddings: a string or a list of token ids is one, a list of such is several. None is empty."""
    given = body.get("input")
    if isinstance(given, str) or _is_token_ids(given):
        given = [given]
    if not isinstance(given, list) or not given or not all(_is_input(one) for one in given):
        message = "input must be a non-empty string, a list of token ids, or a list of such."
        raise InvalidRequest(message, param="input")
    if len(given) > MAX_INPUTS:
        raise InvalidRequest(f"input has more than {MAX_INPUTS} members.", param="input")
    return tuple(given)


def encoding_format(body: Body) -> None:
    """Checks the form in which a client wants its vectors; engines always answer in the same one."""
    if body.get("encoding_format") not in (None, "float", "base64"):
        raise InvalidRequest("encoding_format must be 'float' or 'base64'.", param="encoding_format")


def _is_input(one: object) -> bool:
    return bool(one) if isinstance(one, str) else _is_token_ids(one)


def _is_token_ids(prompt: object) -> bool:
    return isinstance(prompt, list) and bool(prompt) and set(map(type, prompt)) == {int} and min(prompt) >= 0


def _in_range(name: str, value: float, low: float | None, high: float | None) -> None:
    if low is not None and value < low:
        raise InvalidRequest(f"{name} must be at least {low}.", param=name)
    if high is not None and value > high:
        raise InvalidRequest(f"{name} must be at most {high} on this worker.", param=name)
