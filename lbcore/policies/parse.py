"""How a policy is written: `name`, or `name(parameter=value, parameter=value)`. Form only, no knowledge of names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite

_POLICY = re.compile(r"\s*([^\s(),=]+)\s*(?:\((.*)\)\s*)?", re.DOTALL)
_PAIR = re.compile(r"\s*([^\s(),=]+)\s*=\s*([^\s(),=]+)\s*")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def parse_policy(text: str) -> tuple[str, dict[str, float]]:
    """The name and the values given; ValueError with the end of a sentence when the text is not of this form."""
    written = _POLICY.fullmatch(text)
    if written is None:
        raise ValueError("is not written as name or as name(parameter=value, parameter=value)")
    name, inside = written.groups()
    values: dict[str, float] = {}
    for part in [] if inside is None else inside.split(","):
        pair = _PAIR.fullmatch(part)
        if pair is None:
            raise ValueError(f"has {part.strip()!r} between its brackets, which is not written as parameter=value")
        parameter, value = pair.groups()
        if parameter in values:
            raise ValueError(f"gives {parameter} twice")
        if not _NUMBER.fullmatch(value) or not isfinite(float(value)):
            raise ValueError(f"has {value!r} for {parameter}, which is no finite number")
        # Adding zero makes zero of minus zero.
        values[parameter] = float(value) + 0.0
    return name, values


def written_policy(name: str, values: Mapping[str, float]) -> str:
    """The text that `parse_policy` reads as these."""
    pairs = [f"{parameter}={repr(value).removesuffix('.0')}" for parameter, value in values.items()]
    return f"{name}({','.join(pairs)})" if pairs else name
