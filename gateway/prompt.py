"""What a request asks the model to read, checked, and as bytes for prefix hashing: equal beginnings, equal bytes.

The bytes decide only where a request goes, so they need not be what a chat template makes of it. They follow its
order: tools first, then the messages, oldest first. Pictures and sound count as a digest, since their size in JSON says
nothing about their size in tokens.
"""

from __future__ import annotations

import struct

import xxhash

from gateway.fields import (
    Rule,
    array_too_long,
    as_array,
    as_object,
    empty_array,
    member,
    missing,
    not_supported,
    packed,
    string,
    wrong_type,
)
from lbcore.errors import InvalidRequest

MAX_INPUTS = 2048
"""Inputs of one request for embeddings; OpenAI's limit."""

_ROLES = {role: f"\0{role}\0".encode() for role in ("system", "developer", "user", "assistant", "tool", "function")}

_MEDIA_FIELDS = {"image_url": "url", "input_audio": "data"}
"""Content parts with the one member their object cannot do without."""

_SPEECHLESS = ("tool_calls", "function_call", "refusal", "audio", "reasoning_content", "reasoning")
"""An assistant's message without content has said something in one of these."""


def chat_prompt(messages: object, tools: object) -> bytes:
    """The conversation as bytes. `tools` is checked elsewhere."""
    if messages is None:
        raise missing("messages")
    if type(messages) is not list:
        raise wrong_type("messages", "an array of objects", messages)
    if not messages:
        raise empty_array("messages")
    prompt = [packed("tools", tools)] if tools else []
    for index, message in enumerate(messages):
        if type(message) is not dict:
            raise wrong_type(f"messages[{index}]", "an object", message)
        role = message.get("role")
        mark = _ROLES.get(role) if type(role) is str else None
        if mark is None:
            raise _bad_role(f"messages[{index}].role", role)
        prompt.append(mark)
        content = message.get("content")
        if type(content) is str:
            prompt.append(content.encode())
        else:
            _append_parts(prompt, f"messages[{index}]", message, content)
        if len(message) > 2 or content is None:
            _append_rest(prompt, f"messages[{index}]", message)
    return b"".join(prompt)


def completion_prompt(prompt: object) -> tuple[bytes, int]:
    """The prompts as bytes, and how many they are. Tokens are packed as 32-bit little-endian numbers."""
    several = _texts_or_tokens("prompt", prompt)
    return b"\0".join(several), len(several)


def embedding_inputs(inputs: object) -> tuple[bytes, int]:
    """The same for what is to be embedded; none of it may be empty."""
    several = _texts_or_tokens("input", inputs)
    if len(several) > MAX_INPUTS:
        raise array_too_long("input", MAX_INPUTS, len(several))
    if not all(several):
        param = "input" if type(inputs) is str else f"input[{several.index(b'')}]"
        raise InvalidRequest(f"Invalid '{param}': empty string.", param=param, code="empty_string")
    return b"\0".join(several), len(several)


def _texts_or_tokens(param: str, value: object) -> list[bytes]:
    """A string or a list of tokens, or a list of either, as bytes."""
    if value is None:
        raise missing(param)
    if type(value) is str:
        return [value.encode()]
    if type(value) is not list:
        raise wrong_type(param, "a string, or an array of strings, tokens or arrays of tokens", value)
    if not value:
        raise empty_array(param)
    if type(value[0]) is int:
        return [_pack_tokens(param, value)]
    return [_one_prompt(f"{param}[{index}]", item, type(value[0])) for index, item in enumerate(value)]


def _one_prompt(param: str, item: object, kind: type) -> bytes:
    if kind is str:
        if type(item) is not str:
            raise wrong_type(param, "a string", item)
        return item.encode()
    if type(item) is not list:
        raise wrong_type(param, "an array of tokens" if kind is list else "a string or an array of tokens", item)
    if not item:
        raise empty_array(param)
    return _pack_tokens(param, item)


def _pack_tokens(param: str, tokens: list[object]) -> bytes:
    if set(map(type, tokens)) == {int}:
        try:
            return struct.pack(f"<{len(tokens)}I", *tokens)
        except struct.error:
            message = f"Invalid '{param}': tokens are integers from 0 to {2**32 - 1}."
            raise InvalidRequest(message, param=param, code="invalid_value") from None
    at, token = next((index, token) for index, token in enumerate(tokens) if type(token) is not int)
    raise wrong_type(f"{param}[{at}]", "an integer", token)


def _bad_role(param: str, role: object) -> InvalidRequest:
    if role is None:
        return missing(param)
    if type(role) is not str:
        return wrong_type(param, "a string", role)
    return not_supported(param, tuple(_ROLES))


def _append_parts(prompt: list[bytes], at: str, message: dict[str, object], content: object) -> None:
    """Content that is no string: parts, or nothing."""
    param = f"{at}.content"
    if content is None:
        role = message["role"]
        if role == "function" or (role == "assistant" and any(message.get(name) is not None for name in _SPEECHLESS)):
            return
        if "content" not in message:
            raise missing(param)
    if type(content) is not list:
        raise wrong_type(param, "a string or an array of objects", content)
    if not content and message["role"] != "assistant":
        raise empty_array(param)
    for index, part in enumerate(content):
        where = f"{param}[{index}]"
        if type(part) is not dict:
            raise wrong_type(where, "an object", part)
        kind = part.get("type")
        if type(kind) is not str:
            raise missing(f"{where}.type") if kind is None else wrong_type(f"{where}.type", "a string", kind)
        if kind == "text" or kind == "refusal":
            member(where, part, kind, string)
            prompt.append(part[kind].encode())
            continue
        if kind in _MEDIA_FIELDS:
            media = part.get(kind)
            if media is None:
                raise missing(f"{where}.{kind}")
            member(f"{where}.{kind}", as_object(f"{where}.{kind}", media), _MEDIA_FIELDS[kind], string)
        prompt.append(xxhash.xxh3_128_digest(packed(where, part)))


def _append_rest(prompt: list[bytes], at: str, message: dict[str, object]) -> None:
    """What a message holds beside role and content."""
    rest = {name: value for name, value in message.items() if value is not None and name not in ("role", "content")}
    for name, value in rest.items():
        rule = _MESSAGE_RULES.get(name)
        if rule is not None:
            rule(f"{at}.{name}", value)
    if rest:
        prompt.append(packed(at, rest))


def _tool_calls(param: str, value: object) -> None:
    for index, item in enumerate(as_array(param, value, "objects")):
        where = f"{param}[{index}]"
        call = as_object(where, item)
        if call.get("type", "function") != "function":
            continue
        member(where, call, "function", as_object)
        function = as_object(f"{where}.function", call["function"])
        member(f"{where}.function", function, "name", string)
        member(f"{where}.function", function, "arguments", string)


_MESSAGE_RULES: dict[str, Rule] = {
    "name": string,
    "tool_call_id": string,
    "tool_calls": _tool_calls,
    "refusal": string,
    "reasoning_content": string,
}
