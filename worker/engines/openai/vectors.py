"""Turns what a server answers to a request for embeddings into the events of that request. Pure."""

from __future__ import annotations

import binascii
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from lbcore.errors import InvalidRequest
from lbcore.generation import Embedding, Event, Finished, Started
from worker.engines.openai.body import Ask
from worker.engines.openai.chunks import count_of
from worker.engines.openai.errors import BadAnswer, BadEnd, from_json, unreadable


@dataclass(frozen=True, slots=True)
class Found:
    """What an answer holds."""

    vectors: list[bytes]
    """Little-endian 32-bit floats, in the order of the inputs."""
    prompt_tokens: int
    cached_tokens: int


class Vectors:
    """One request's vectors, which come all at once; seen from outside it is an `Answer`."""

    def __init__(self, ask: Ask) -> None:
        self.choices = ask.choices
        self.started = False
        self.finished = False
        self.tokens = 0
        """No tokens of output: one for each vector, so that whoever measures sees when the prompts were computed."""
        self.prompt_tokens = 0
        self.cached_tokens = 0

    def take(self, found: Found) -> Iterator[Event]:
        self.tokens = len(found.vectors)
        self.prompt_tokens, self.cached_tokens = found.prompt_tokens, found.cached_tokens
        self.started = True
        yield Started(self.prompt_tokens, self.cached_tokens)
        for index, values in enumerate(found.vectors):
            yield Embedding(index, values)
        self.finished = True
        yield Finished(self.prompt_tokens, self.cached_tokens, 0)


def read_vectors(body: bytes, ask: Ask) -> Found:
    """Reads a whole answer. Raises BadAnswer."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise unreadable("what is no JSON") from None
    bad = from_json(answer, ask.prompt_field)
    if bad is not None:
        raise bad
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list):
        raise unreadable("JSON that is no answer")
    if len(data) != ask.prompts:
        raise unreadable(f"{len(data)} vectors for {ask.prompts} inputs")
    try:
        vectors = _in_order(data)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
        raise unreadable(f"a vector that cannot be read ({type(error).__name__})") from None
    sizes = {len(values) // 4 for values in vectors}
    if len(sizes) > 1:
        raise unreadable("vectors of several sizes")
    size = sizes.pop()
    if ask.dimensions not in (None, size):
        message = f"dimensions is not supported by the upstream server: its vectors have {size} numbers."
        raise BadAnswer(BadEnd.REFUSED, InvalidRequest(message, param="dimensions"))
    return Found(vectors, *_usage(answer.get("usage")))


def _in_order(data: list[Mapping[str, Any]]) -> list[bytes]:
    vectors: dict[int, bytes] = {}
    for place, one in enumerate(data):
        index = one.get("index", place)
        if type(index) is not int or not 0 <= index < len(data):
            raise ValueError
        if index in vectors:
            raise unreadable("two vectors for one input")
        vectors[index] = _values(one["embedding"])
    return [vectors[index] for index in range(len(data))]


def _values(said: object) -> bytes:
    """A list of numbers, or the bytes of 32-bit floats in base64: some servers give only the one or the other."""
    if isinstance(said, list):
        values = struct.pack(f"<{len(said)}f", *said)
    elif isinstance(said, str):
        values = binascii.a2b_base64(said, strict_mode=True)
    else:
        raise TypeError
    if not values or len(values) % 4:
        raise ValueError
    return values


def _usage(said: object) -> tuple[int, int]:
    """Tokens of all inputs, and how many of them were cached; 0 where the server does not say."""
    if not isinstance(said, dict):
        return 0, 0
    details = said.get("prompt_tokens_details")
    cached = count_of(details.get("cached_tokens")) if isinstance(details, dict) else 0
    total = count_of(said.get("prompt_tokens")) or count_of(said.get("total_tokens"))
    # The last token of a prompt is always computed.
    return total, min(cached, max(0, total - 1))
