"""The rules that a field of a JSON body can follow. A broken rule is an `InvalidRequest` in OpenAI's words.

Messages tell types, bounds and numbers, never the client's text.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson

from lbcore.errors import InvalidRequest

Rule = Callable[[str, object], object]
"""Takes a field's name in OpenAI's notation (`messages[0].role`) and its value, which is not null; what it returns is
of no account."""

_TYPE_NAMES = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal number",
    str: "a string",
    list: "an array",
    dict: "an object",
}


def missing(param: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def wrong_type(param: str, expected: str, value: object) -> InvalidRequest:
    """`expected` with its article: "a string"."""
    message = f"Invalid type for '{param}': expected {expected}, but got {_TYPE_NAMES[type(value)]} instead."
    return InvalidRequest(message, param=param, code="invalid_type")


def not_supported(param: str, supported: tuple[str, ...]) -> InvalidRequest:
    names = ", ".join(f"'{name}'" for name in supported)
    message = f"Invalid value for '{param}'. Supported values are: {names}."
    return InvalidRequest(message, param=param, code="invalid_value")


def empty_array(param: str) -> InvalidRequest:
    message = f"Invalid '{param}': empty array. Expected an array with minimum length 1."
    return InvalidRequest(message, param=param, code="empty_array")


def array_too_long(param: str, most: int, length: int) -> InvalidRequest:
    message = (
        f"Invalid '{param}': array too long. Expected an array with maximum length {most}, "
        f"but got an array with length {length} instead."
    )
    return InvalidRequest(message, param=param, code="array_above_max_length")


def flag(param: str, value: object) -> None:
    if type(value) is not bool:
        raise wrong_type(param, "a boolean", value)


def string(param: str, value: object) -> None:
    if type(value) is not str:
        raise wrong_type(param, "a string", value)


def nested(param: str, value: object) -> None:
    """Anything, as long as engines can walk through it: orjson writes no more than 254 levels."""
    if type(value) is dict or type(value) is list:
        packed(param, value)


def packed(param: str, value: object) -> bytes:
    """The value as compact JSON, which bounds its depth."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        # The name of an unknown field is the client's, and may be of any length.
        message = f"Invalid '{param[:64]}': nested too deeply."
        raise InvalidRequest(message, param=param[:64], code="invalid_value") from None


def as_object(param: str, value: object) -> dict[str, object]:
    if type(value) is not dict:
        raise wrong_type(param, "an object", value)
    return value


def as_array(param: str, value: object, of: str = "") -> list[object]:
    """`of` is the plural of what it holds, for the message."""
    if type(value) is not list:
        raise wrong_type(param, f"an array of {of}" if of else "an array", value)
    return value


def member(param: str, owner: dict[str, object], name: str, rule: Rule) -> None:
    """A field that an object must have."""
    value = owner.get(name)
    if value is None:
        raise missing(f"{param}.{name}")
    rule(f"{param}.{name}", value)


def short_string(most: int) -> Rule:
    """A string of at most `most` characters."""

    def rule(param: str, value: object) -> None:
        if type(value) is not str:
            raise wrong_type(param, "a string", value)
        if len(value) > most:
            message = (
                f"Invalid '{param}': string too long. Expected a string with maximum length {most}, "
                f"but got a string with length {len(value)} instead."
            )
            raise InvalidRequest(message, param=param, code="string_above_max_length")

    return rule


def integer(low: int, high: int) -> Rule:
    """A whole number with `low` and `high` included; 1.0 is none, and neither is true."""

    def rule(param: str, value: object) -> None:
        if type(value) is not int:
            raise wrong_type(param, "an integer", value)
        if not low <= value <= high:
            raise _out_of_range(param, "integer", low, high, value)

    return rule


def number(low: float, high: float) -> Rule:
    """A number, whole or not, with `low` and `high` included."""

    def rule(param: str, value: object) -> None:
        if type(value) is not float and type(value) is not int:
            raise wrong_type(param, "a number", value)
        if not low <= value <= high:
            raise _out_of_range(param, "decimal" if type(value) is float else "integer", low, high, value)

    return rule


def one_of(*supported: str) -> Rule:
    """One of these strings."""
    names = frozenset(supported)

    def rule(param: str, value: object) -> None:
        if type(value) is not str:
            raise wrong_type(param, "a string", value)
        if value not in names:
            raise not_supported(param, supported)

    return rule


def _out_of_range(param: str, kind: str, low: float, high: float, value: float) -> InvalidRequest:
    side, sign, bound = ("below minimum", ">=", low) if value < low else ("above maximum", "<=", high)
    message = f"Invalid '{param}': {kind} {side} value. Expected a value {sign} {bound}, but got {value} instead."
    code = f"{kind}_below_min_value" if value < low else f"{kind}_above_max_value"
    return InvalidRequest(message, param=param, code=code)
