from __future__ import annotations

import json

import pytest

from bench.dataplane.answers import Answer, count_words, join_chunks, read_head

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(content: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": content}}]}).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def stream(*contents: str, done: bytes = b"data: [DONE]\n\n") -> list[bytes]:
    """Pieces as they may come: the head with the empty event of the role, then each event, then the end."""
    return [HEAD + chunk(event("")), *(chunk(event(one)) for one in contents), chunk(done) + b"0\r\n\r\n"]


def feed(answer: Answer, pieces: list[bytes]) -> list[bool]:
    return [answer.feed(piece) for piece in pieces]


def test_a_stream_is_complete_at_its_end_and_its_first_token_is_seen() -> None:
    answer = Answer(2, stream=True)
    pieces = stream("one ", "two ")
    assert not answer.feed(pieces[0])
    assert not answer.has_token
    assert not answer.feed(pieces[1])
    assert answer.has_token
    assert feed(answer, pieces[2:]) == [False, True]
    assert answer.error is None
    assert answer.keeps_connection
    assert not answer.was_read_slowly


def test_bytes_may_come_one_by_one() -> None:
    answer = Answer(2, stream=True, stamp=True)
    whole = b"".join(stream("1234567890123 ", "1234567890124 "))
    seen, complete = [], []
    for byte in whole:
        complete.append(answer.feed(bytes([byte])))
        seen += answer.stamps(bytes([byte]))
    assert complete == [False] * (len(whole) - 1) + [True]
    assert answer.error is None
    assert seen == [1234567890123, 1234567890124]


@pytest.mark.parametrize("cut", [1, 3, 7, 50])
def test_a_proxy_may_cut_chunks_anywhere_and_join_tokens(cut: int) -> None:
    body = event("") + event("one two ") + event("three ") + b"data: [DONE]\n\n"
    pieces = [HEAD, *(chunk(body[start : start + cut]) for start in range(0, len(body), cut)), b"0\r\n\r\n"]
    answer = Answer(3, stream=True)
    assert feed(answer, pieces)[-1]
    assert answer.error is None
    assert answer.was_read_slowly


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        (stream("one "), "wrong number of tokens"),
        (stream("one ", "two ", "three "), "wrong number of tokens"),
        (stream("one ", "two ", done=b""), "no [DONE]"),
        (
            [*stream("one ")[:-1], chunk(b'data: {"error": {}}\n\n') + chunk(b"data: [DONE]\n\n0") + b"0\r\n\r\n"],
            "error event",
        ),
        ([b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\n", b"full"], "status 503"),
    ],
)
def test_what_is_wrong_is_named(pieces: list[bytes], error: str) -> None:
    answer = Answer(2, stream=True)
    assert feed(answer, pieces)[-1]
    assert answer.error == error


def test_a_whole_answer_tells_its_tokens() -> None:
    body = b'{"choices": [{"message": {"content": "one two "}}], "usage": {"completion_tokens": 2}}'
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nConnection: close\r\n\r\n" % len(body)
    for tokens, error in ((2, None), (3, "wrong number of tokens")):
        answer = Answer(tokens, stream=False)
        assert feed(answer, [head, body]) == [False, True]
        assert answer.error == error
        assert not answer.keeps_connection


def test_the_end_of_the_connection_ends_what_has_no_length_and_breaks_what_has() -> None:
    unbounded = Answer(1, stream=True)
    feed(unbounded, [b"HTTP/1.1 200 OK\r\n\r\n", event("one ") + b"data: [DONE]\n\n"])
    unbounded.close()
    broken = Answer(2, stream=True)
    feed(broken, stream("one ")[:-1])
    broken.close()
    assert (unbounded.error, broken.error) == (None, "connection lost")


def test_chunks_are_joined_when_the_last_is_there() -> None:
    assert join_chunks(b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\n\r\n") == b"abcde"
    assert join_chunks(b"3\r\nabc\r\n2\r\n") is None


def test_words_of_events_are_counted() -> None:
    assert count_words(event("") + event("one ") + b'data: {"choices": []}\n\n' + event("two three ")) == 3


def test_a_head_is_read() -> None:
    head = read_head(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: Close")
    assert (head.status, head.length, head.is_chunked, head.is_last) == (200, 12, False, True)
