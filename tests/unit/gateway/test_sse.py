from __future__ import annotations

import json

import pytest

from gateway import sse
from gateway.errors import error_body
from lbcore.errors import StreamInterrupted


def test_an_event_is_one_line_and_an_empty_one() -> None:
    assert sse.event(b'{"a":1}') == b'data: {"a":1}\n\n'


def test_done_is_as_openai_sends_it() -> None:
    assert sse.DONE == b"data: [DONE]\n\n"


def test_an_error_event_is_the_error_object_and_no_done() -> None:
    frame = sse.error(StreamInterrupted("Lost."))
    assert frame == b"data: " + error_body(StreamInterrupted("Lost.")) + b"\n\n"
    assert json.loads(frame.removeprefix(b"data: "))["error"]["code"] == "stream_interrupted"


@pytest.mark.parametrize("end_of_line", ["\x85", "\u2028", "\u2029"])
def test_ends_of_line_that_are_none_in_json_are_escaped(end_of_line: str) -> None:
    data = json.dumps({"a": f"x{end_of_line}ü"}, ensure_ascii=False).encode()
    safe = sse.one_line(data)
    assert len(safe.decode().splitlines()) == 1
    assert json.loads(safe) == json.loads(data)


@pytest.mark.parametrize("text", ["plain", "“quotes” … – ‰", "naïve Å", "日本語 😀"])
def test_other_text_is_left_alone(text: str) -> None:
    assert sse.one_line(text.encode()) == text.encode()
