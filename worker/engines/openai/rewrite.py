"""Changes members of a JSON object and leaves every other byte as it came. Pure.

A body is not parsed and written again: numbers would lose digits, and a prompt of megabytes would be paid for twice.
Nor is a member simply written behind the last: readers disagree about which of two with one name counts, and strict
ones refuse both.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

import orjson

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_AT_TOP = re.compile(_STRING + rb"|[{\[}:,]", re.DOTALL)
_INSIDE = re.compile(_STRING + rb"|[{}\[\]]", re.DOTALL)
"""Inside a value only brackets count, so that a list of numbers is passed over in one go."""


def rewrite(body: bytes, changes: Mapping[str, object], gone: Collection[str] = ()) -> bytes:
    """The object with these members at its end instead of any of the same name, and without those that are gone.

    `body` must be a JSON object that a JSON reader has accepted. Raises orjson.JSONEncodeError for a change that is
    too deeply nested to be written.
    """
    kept = [member for name, member in members(body) if name not in changes and name not in gone]
    return b"{" + b",".join([*kept, orjson.dumps(changes)[1:-1]] if changes else kept) + b"}"


def append(body: bytes, changes: Mapping[str, object]) -> bytes:
    """The same for an object that has none of these members; does not look at what it has."""
    inside = body[body.index(b"{") + 1 : body.rindex(b"}")]
    comma = b"," if inside and not inside.isspace() else b""
    return b"".join((b"{", inside, comma, orjson.dumps(changes)[1:]))


def members(body: bytes) -> Iterator[tuple[str, bytes]]:
    """The names of an object's own members and their bytes, from comma to comma, in the order they came."""
    start = at = body.index(b"{") + 1
    name: str | None = None
    while True:
        token = _AT_TOP.search(body, at)
        if token is None:
            return
        at = token.end()
        match token[0]:
            case b"{" | b"[":
                at = _end_of_value(body, at)
            case b"," | b"}":
                if name is not None:
                    yield name, body[start : at - 1]
                    name = None
                if token[0] == b"}":
                    return
                start = at
            case b":":
                pass
            case string:
                if name is None:
                    name = orjson.loads(string)


def _end_of_value(body: bytes, at: int) -> int:
    """Where the object or list ends whose bracket was opened just before `at`."""
    depth = 1
    while depth:
        token = _INSIDE.search(body, at)
        assert token is not None, "a JSON reader has accepted it"
        at = token.end()
        if token[0] in (b"{", b"["):
            depth += 1
        elif token[0] in (b"}", b"]"):
            depth -= 1
    return at
