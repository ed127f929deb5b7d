"""Reads an HTTP answer of a known number of tokens, at little cost, and says what is wrong with it. Pure.

While a stream runs its bytes are searched, not parsed. At its end its tokens are counted by one search; only when that
does not give the number asked for, because a proxy cut a token in two or put two into one event, it is read word for
word.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

_TOKEN = re.compile(rb'"content": ?"[^"]')
_STAMP = re.compile(rb"(\d{10,}) ")
_LONGEST_STAMP = 24
_COMPLETION_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_DONE = b"data: [DONE]"


@dataclass(frozen=True, slots=True)
class Head:
    """What the head of an answer says."""

    status: int
    length: int | None
    """Bytes that follow; None when chunks follow, or everything up to the end of the connection."""
    is_chunked: bool
    is_last: bool
    """Whether the connection ends with this answer."""


def read_head(head: bytes) -> Head:
    """Reads the lines before the empty one."""
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.strip().lower(): value.strip().lower() for name, _, value in (line.partition(":") for line in lines)}
    chunked = fields.get("transfer-encoding", "").endswith("chunked")
    length = int(fields["content-length"]) if "content-length" in fields and not chunked else None
    is_last = fields.get("connection") == "close" or (length is None and not chunked)
    return Head(int(first.split()[1]), length, chunked, is_last)


def join_chunks(data: bytes) -> bytes | None:
    """What the chunks of a body hold; None when the last one is not there yet."""
    parts: list[bytes] = []
    position = 0
    while (end := data.find(b"\r\n", position)) >= 0:
        size = int(data[position:end].partition(b";")[0], 16)
        if not size:
            return b"".join(parts)
        parts.append(data[end + 2 : end + 2 + size])
        position = end + 2 + size + 2
    return None


def count_words(body: bytes) -> int:
    """Tokens of a stream of events, read one by one: each is a word that ends in a blank."""
    text = ""
    for line in body.splitlines():
        if line.startswith(b"data:") and (event := line[5:].strip()) != b"[DONE]":
            for choice in json.loads(event).get("choices", ()):
                text += choice.get("delta", {}).get("content") or ""
    return len(text.split())


class Answer:
    """One answer while it comes. Once `feed` has said that it is complete, `error` says whether it is good."""

    def __init__(self, tokens: int, *, stream: bool, stamp: bool = False) -> None:
        self._tokens = tokens
        self._stream = stream
        self._stamp = stamp
        self._parts: list[bytes] = []
        self._head: Head | None = None
        self._missing = 0
        self._tail = b"\r\n"
        self._rest = b""
        self.has_token = False
        self.was_read_slowly = False
        self.error: str | None = None

    @property
    def keeps_connection(self) -> bool:
        """Whether the connection can be used again."""
        return self._head is not None and not self._head.is_last

    def feed(self, data: bytes) -> bool:
        """Takes bytes as they come; whether the answer is complete with them."""
        self._parts.append(data)
        if self._head is None:
            joined = b"".join(self._parts)
            end = joined.find(b"\r\n\r\n")
            if end < 0:
                return False
            self._head = read_head(joined[:end])
            data = joined[end + 4 :]
            self._parts = [data]
            self._missing = self._head.length or 0
        if not self.has_token:
            self.has_token = _TOKEN.search(b"".join(self._parts)) is not None
        if self._head.is_chunked:
            self._tail = (self._tail + data)[-len(_LAST_CHUNK) :]
            return self._tail == _LAST_CHUNK and self._check_chunks()
        if self._head.length is not None:
            self._missing -= len(data)
            if self._missing <= 0:
                self._check(b"".join(self._parts))
            return self._missing <= 0
        return False

    def stamps(self, data: bytes) -> list[int]:
        """The stamps in bytes just come, with the end of those before: a number may be cut in two."""
        data = self._rest + data
        found, end = [], 0
        for match in _STAMP.finditer(data):
            found.append(int(match[1]))
            end = match.end()
        self._rest = data[max(end, len(data) - _LONGEST_STAMP) :]
        return found

    def close(self) -> None:
        """The connection has ended, and the answer with it."""
        if self._head is not None and self._head.length is None and not self._head.is_chunked:
            self._check(b"".join(self._parts))
        else:
            self.error = "connection lost"

    def _check_chunks(self) -> bool:
        """Checks what came, unless it only looks as if it were the end."""
        raw = b"".join(self._parts)
        if self._stream and _DONE in raw and self._is_good(raw):
            return True
        self.was_read_slowly = self._stream
        body = join_chunks(raw)
        if body is None:
            return False
        self._check(body)
        return True

    def _check(self, body: bytes) -> None:
        if not self._is_good(body):
            self.error = self._complaint(body)

    def _is_good(self, body: bytes) -> bool:
        if self._head is None or self._head.status != 200:
            return False
        if not self._stream:
            found = _COMPLETION_TOKENS.search(body)
            return found is not None and int(found[1]) == self._tokens
        return _DONE in body and len(_TOKEN.findall(body)) == self._tokens and b'"error"' not in body

    def _complaint(self, body: bytes) -> str | None:
        if self._head is None or self._head.status != 200:
            return f"status {self._head.status if self._head else 0}"
        if not self._stream:
            return "wrong number of tokens"
        if b'"error"' in body:
            return "error event"
        if _DONE not in body:
            return "no [DONE]"
        try:
            words = count_words(body)
        except (ValueError, AttributeError):
            return "broken event"
        return None if words == self._tokens else "wrong number of tokens"
