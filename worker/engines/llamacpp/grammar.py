"""What must not reach llama.cpp's grammar parser: repetitions whose least is greater than their most.

It takes the difference of the two without a sign and allocates until the machine has nothing left, and no cancellation
reaches it there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from lbcore.errors import InvalidRequest

_BOUNDS = re.compile(r"(?<!\\)\{\s*(\d+)\s*,\s*(\d+)\s*\}")
_GUIDES = ("response_format", "json_schema", "tools")


def refuse_reversed_bounds(body: Mapping[str, object]) -> None:
    """Raises InvalidRequest that names the field of the body with such a repetition."""
    grammar = body.get("grammar")
    if isinstance(grammar, str) and _has_reversed_bounds(grammar):
        raise _refusal("grammar")
    for name in _GUIDES:
        if _is_reversed_somewhere(body.get(name)):
            raise _refusal(name)


def _is_reversed_somewhere(schema: object) -> bool:
    # A schema may be nested more deeply than Python recurses.
    pending = [schema]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            least, most, pattern = item.get("minLength"), item.get("maxLength"), item.get("pattern")
            if isinstance(least, int | float) and isinstance(most, int | float) and least > most:
                return True
            if isinstance(pattern, str) and _has_reversed_bounds(pattern):
                return True
            pending += item.values()
        elif isinstance(item, list):
            pending += item
    return False


def _has_reversed_bounds(text: str) -> bool:
    # Compared as texts of one length: thousands of digits are more than Python makes a number of.
    for least, most in _BOUNDS.findall(text):
        width = max(len(least), len(most))
        if least.zfill(width) > most.zfill(width):
            return True
    return False


def _refusal(field: str) -> InvalidRequest:
    return InvalidRequest(f"{field} asks for a repetition whose least is greater than its most.", param=field)
