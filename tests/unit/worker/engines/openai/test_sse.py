"""Events come out whole, wherever the network tore the stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engines.openai import sse
from worker.engines.openai.sse import EventTooLong, SseParser

LINE_ENDS = st.sampled_from(["\n", "\r\n", "\r"])
TEXTS = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A stream as some server may write it, and the data in it."""
    text, datas = draw(st.sampled_from(["", "\ufeff"])), []
    for _ in range(draw(st.integers(0, 5))):
        end = draw(LINE_ENDS)
        lines = draw(st.lists(TEXTS, max_size=3))
        for line in lines:
            text += draw(st.sampled_from(["", f": {draw(TEXTS)}{end}", f"event: x{end}", f"id: 7{end}", f"retry{end}"]))
            # A space behind the colon is not part of the data.
            text += (
                f"data: {line}{end}" if line.startswith(" ") else f"data:{draw(st.sampled_from(['', ' ']))}{line}{end}"
            )
        text += end
        data = "\n".join(lines).encode()
        datas += [data] if data else []
    return text.encode(), datas


@given(streams(), st.data())
def test_the_data_is_the_same_wherever_the_stream_is_torn(
    given: tuple[bytes, list[bytes]], data: st.DataObject
) -> None:
    stream, expected = given
    places = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    parser = SseParser()
    found = [
        one
        for start, end in zip([0, *places], [*places, len(stream)], strict=True)
        for one in parser.feed(stream[start:end])
    ]
    assert found == expected
    assert parser.flush() == b""


@given(streams())
def test_the_data_is_the_same_byte_by_byte(given: tuple[bytes, list[bytes]]) -> None:
    stream, expected = given
    parser = SseParser()
    assert [one for place in range(len(stream)) for one in parser.feed(stream[place : place + 1])] == expected


def test_an_event_without_its_empty_line_is_held_until_the_end() -> None:
    parser = SseParser()
    assert parser.feed(b"data: one\n\ndata: two\n") == [b"one"]
    assert parser.flush() == b"two"
    assert parser.flush() == b""


def test_a_carriage_return_at_the_end_of_a_piece_is_one_line_end() -> None:
    parser = SseParser()
    assert parser.feed(b"data: a\r") == []
    assert parser.feed(b"\ndata: b\r") == []
    assert parser.feed(b"\n\r") == [b"a\nb"]
    assert parser.feed(b"\n") == []


def test_an_old_server_s_errors_are_data() -> None:
    assert SseParser().feed(b'error: {"code":500}\n\n') == [b'{"code":500}']


def test_an_event_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    parser = SseParser()
    for _ in range(10):
        assert parser.feed(b"data: " + b"x" * 80 + b"\n\n")
    parser.feed(b"data: " + b"x" * 80)
    with pytest.raises(EventTooLong):
        parser.feed(b"x" * 80)
