"""What the clients send: chat requests no two of which share a beginning, so that no prefix cache can help. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.dataplane.system import MODEL

SHORT_CHARACTERS = 300
LONG_CHARACTERS = 200_000
PATH = "/v1/chat/completions"

_SENTENCE = "A load balancer asks who has time, and sends the question there. "
_COUNTER_DIGITS = 10
_MARK = "@NUMBER@"


@dataclass(frozen=True, slots=True)
class Template:
    """A whole HTTP request but for its number, which begins the prompt."""

    head: bytes
    tail: bytes

    def request(self, number: int) -> bytes:
        """The bytes to send. Numbers have to be below 10**10."""
        return b"%b%010d%b" % (self.head, number, self.tail)


def template(url: str, run: str, max_tokens: int, *, stream: bool, characters: int = SHORT_CHARACTERS) -> Template:
    """A request to a base URL, with a prompt of so many characters that begins with its number and then names the run.

    The number stands first, for a prefix cache compares from the beginning; two runs differ within the first 32
    characters when `run` has at most 20.
    """
    filler = _SENTENCE * (characters // len(_SENTENCE) + 1)
    prompt = f"{_MARK} {run} {filler}"[: characters - _COUNTER_DIGITS + len(_MARK)]
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": stream,
    }
    before, _, after = json.dumps(body).partition(_MARK)
    length = len(before) + _COUNTER_DIGITS + len(after)
    # No Accept-Encoding: what comes back is text. The order of the fields is that of common clients.
    head = (
        f"POST {urlsplit(url).path.rstrip('/')}{PATH} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nAccept: */*\r\n"
        f"Authorization: Bearer none\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )
    return Template((head + before).encode(), after.encode())
