"""The reader of llama.cpp's answers: however the bytes are cut, the same events come out."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engines.llamacpp.sse import MAX_HEAD_BYTES, AnswerReader, BadAnswer, http_post

EVENTS = [b'{"a":1}', '{"text":"日本 🙂"}'.encode(), b'{"nested":"data: x"}', b"[DONE]"]
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nContent-Type: text/event-stream\r\n"


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


def stream(*contents: bytes) -> bytes:
    return STREAM_HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(map(chunk, contents)) + b"0\r\n\r\n"


ONE_EACH = stream(*(b"data: %s\n\n" % event for event in EVENTS))


def read(pieces: list[bytes]) -> tuple[AnswerReader, list[bytes]]:
    reader = AnswerReader()
    return reader, [event for piece in pieces for event in reader.feed(piece)]


def test_the_events_of_a_stream_come_out_in_order() -> None:
    reader, events = read([ONE_EACH])
    assert events == EVENTS
    assert (reader.status, reader.is_stream, reader.complete) == (200, True, True)


def test_bytes_may_come_one_by_one() -> None:
    reader, events = read([ONE_EACH[at : at + 1] for at in range(len(ONE_EACH))])
    assert events == EVENTS
    assert reader.complete


@given(st.lists(st.integers(0, len(ONE_EACH)), max_size=20))
def test_bytes_may_come_in_pieces_of_any_size(cuts: list[int]) -> None:
    borders = [0, *sorted(cuts), len(ONE_EACH)]
    pieces = [ONE_EACH[start:end] for start, end in pairwise(borders)]
    assert read(pieces)[1] == EVENTS


@given(st.lists(st.integers(1, 60), max_size=20))
def test_chunks_need_not_end_where_events_do(sizes: list[int]) -> None:
    body = b"".join(b"data: %s\n\n" % event for event in EVENTS)
    contents: list[bytes] = []
    for size in sizes:
        contents, body = [*contents, body[:size]], body[size:]
    assert read([stream(*filter(None, [*contents, body]))])[1] == EVENTS


def test_comments_are_no_events_and_errors_are() -> None:
    assert read([stream(b': ping\n\ndata: 1\n\nerror: {"code":500}\n\n')])[1] == [b"1", b'{"code":500}']


def test_an_answer_that_is_no_stream_has_a_body() -> None:
    reader, events = read([b"HTTP/1.1 400 Bad Request\r\nContent-Length: 7\r\n\r\n", b'{"a":', b"1}"])
    assert events == []
    assert (reader.status, reader.body, reader.complete, reader.is_stream) == (400, b'{"a":1}', True, False)


def test_an_empty_answer_is_complete_with_its_head() -> None:
    assert read([b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"])[0].complete


@pytest.mark.parametrize("cut", range(1, len(ONE_EACH) - 4))
def test_what_is_cut_short_is_not_complete(cut: int) -> None:
    assert not read([ONE_EACH[:cut]])[0].complete


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 what\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-4\r\n",
        b"x" * (MAX_HEAD_BYTES + 1),
    ],
)
def test_what_is_not_http_is_said_to_be_so(data: bytes) -> None:
    with pytest.raises(BadAnswer):
        read([data])


def test_a_request_carries_its_key_and_its_length() -> None:
    head, _, body = http_post("/v1/x", "secret", b'{"a":1}').partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /v1/x HTTP/1.1"
    assert {b"Authorization: Bearer secret", b"Content-Length: 7", b"Connection: close"} < set(lines)
    assert body == b'{"a":1}'
