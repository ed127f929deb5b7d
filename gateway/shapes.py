"""The rules of fields that are lists and objects: stops, biases, formats, tools."""

from __future__ import annotations

from gateway.fields import (
    array_too_long,
    as_array,
    as_object,
    flag,
    member,
    missing,
    nested,
    not_supported,
    number,
    one_of,
    string,
    wrong_type,
)
from lbcore.errors import InvalidRequest

MAX_STOPS = 16
"""OpenAI takes 4 stop strings, engines take more; each costs a comparison per token."""

_bias = number(-100, 100)
_choice_word = one_of("none", "auto", "required")
_format_type = one_of("text", "json_object", "json_schema", "structural_tag")
_TOOL_KINDS = ("function", "custom")


def stop(param: str, value: object) -> None:
    if type(value) is str:
        _stop_string(param, value)
    elif type(value) is list:
        if len(value) > MAX_STOPS:
            raise array_too_long(param, MAX_STOPS, len(value))
        for index, item in enumerate(value):
            _stop_string(f"{param}[{index}]", item)
    else:
        raise wrong_type(param, "a string or an array of strings", value)


def _stop_string(param: str, value: object) -> None:
    string(param, value)
    if not value:
        message = f"Invalid '{param}': empty string. It would end every answer before it begins."
        raise InvalidRequest(message, param=param, code="empty_string")


def logit_bias(param: str, value: object) -> None:
    for token, bias in as_object(param, value).items():
        if not (token.isascii() and token.isdigit()):
            message = f"Invalid key in '{param}': keys are token ids, written as non-negative integers."
            raise InvalidRequest(message, param=param, code="invalid_value")
        _bias(f"{param}.{token[:20]}", bias)


def stream_options(param: str, value: object) -> None:
    for name, option in as_object(param, value).items():
        if name in ("include_usage", "include_obfuscation") and option is not None:
            flag(f"{param}.{name}", option)
        else:
            nested(f"{param}.{name}", option)


def response_format(param: str, value: object) -> None:
    wanted = as_object(param, value)
    member(param, wanted, "type", _format_type)
    if wanted["type"] == "json_schema":
        member(param, wanted, "json_schema", as_object)
    nested(param, value)


def tools(param: str, value: object) -> None:
    """Their depth is bounded where the prompt is packed."""
    for index, tool in enumerate(as_array(param, value, "objects")):
        where = f"{param}[{index}]"
        _named(where, as_object(where, tool), _TOOL_KINDS)


def tool_choice(param: str, value: object) -> None:
    if type(value) is str:
        _choice_word(param, value)
    elif type(value) is dict:
        if value.get("type") == "allowed_tools":
            member(param, value, "allowed_tools", as_object)
        else:
            _named(param, value, (*_TOOL_KINDS, "allowed_tools"))
        nested(param, value)
    else:
        raise wrong_type(param, "a string or an object", value)


def _named(param: str, owner: dict[str, object], kinds: tuple[str, ...]) -> None:
    """`{"type": "function", "function": {"name": "..."}}` and its like."""
    kind = owner.get("type")
    if kind is None:
        raise missing(f"{param}.type")
    if type(kind) is not str:
        raise wrong_type(f"{param}.type", "a string", kind)
    if kind not in kinds:
        raise not_supported(f"{param}.type", kinds)
    member(param, owner, kind, as_object)
    member(f"{param}.{kind}", as_object(f"{param}.{kind}", owner[kind]), "name", string)
