"""Members are cut out and added, and every other byte stays."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engines.openai.rewrite import append, members, rewrite

NAMES = st.sampled_from(["stream", "model", "a", 'quo"te', "back\\slash", "{", "é\N{SNOWMAN}", ""])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=6)
SPACES = st.text(" \t\n\r", max_size=3)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, dict[str, object]]:
    """An object as some client may write it: with spaces anywhere, escapes or none, and names twice."""
    pairs = draw(st.lists(st.tuples(NAMES, VALUES), max_size=6))
    dump = draw(st.sampled_from([lambda value: json.dumps(value), lambda value: orjson.dumps(value).decode()]))
    written = [
        f"{draw(SPACES)}{dump(name)}{draw(SPACES)}:{draw(SPACES)}{dump(value)}{draw(SPACES)}" for name, value in pairs
    ]
    text = f"{draw(SPACES)}{{{','.join(written) or draw(SPACES)}}}{draw(SPACES)}"
    return text.encode(), dict(pairs)


@given(bodies(), OBJECTS, st.sets(NAMES))
def test_it_is_what_a_reader_would_have_made_of_it(
    given: tuple[bytes, dict[str, object]], changes: dict[str, object], gone: set[str]
) -> None:
    body, read = given
    changed = rewrite(body, changes, gone)
    kept = {name: value for name, value in read.items() if name not in gone}
    assert orjson.loads(changed) == {**kept, **changes}
    # No name is there twice that was not there twice before, and none that was changed.
    assert [name for name, _ in members(changed) if name in changes] == list(changes)


@given(bodies())
def test_every_byte_of_a_member_stays(given: tuple[bytes, dict[str, object]]) -> None:
    body, _ = given
    inside = body.strip()[1:-1]
    assert b",".join(member for _, member in members(body)) == (inside if inside.strip() else b"")


@given(bodies(), OBJECTS)
def test_what_is_not_there_can_be_appended(given: tuple[bytes, dict[str, object]], changes: dict[str, object]) -> None:
    body, read = given
    fresh = {f"new {name}": value for name, value in changes.items()} or {"new": 1}
    assert orjson.loads(append(body, fresh)) == {**read, **fresh}


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        (b"{}", b'{"x":1}'),
        (b'{"x":0}', b'{"x":1}'),
        (b'{"x":0,"x":2}', b'{"x":1}'),
        (b'{ "a" : 1e5 , "x" : {"x":[1,{"x":2}]} , "b":0.10 }', b'{ "a" : 1e5 , "b":0.10 ,"x":1}'),
        (b'{"a":{"x":"\\"x\\":0,"}}', b'{"a":{"x":"\\"x\\":0,"},"x":1}'),
        (b'{"\\u0078":0,"a":"\\\\"}', b'{"a":"\\\\","x":1}'),
        (b'{"a":[[],[{}],"]}"],"x":[]}', b'{"a":[[],[{}],"]}"],"x":1}'),
        (b'{"a":12345678901234567890123456789}', b'{"a":12345678901234567890123456789,"x":1}'),
    ],
)
def test_some_bodies(body: bytes, changed: bytes) -> None:
    assert rewrite(body, {"x": 1}) == changed


def test_members_can_go_and_nothing_come() -> None:
    assert rewrite(b'{"a":1,"b":2,"c":3}', {}, ("b",)) == b'{"a":1,"c":3}'
    assert rewrite(b'{"b":2}', {}, ("b",)) == b"{}"
