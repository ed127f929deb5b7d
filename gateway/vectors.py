"""Embeddings in, OpenAI's list of them out. Pure; a vector is rendered as it comes, and never streamed."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable

import orjson

from lbcore.errors import EngineFailed
from lbcore.generation import Embedding, Event, Failed, Finished

_HEAD = b'{"object":"list","data":['


class Vectors:
    """The answer to a request for embeddings: gathers events until it is complete."""

    def __init__(self, *, model: str, input_count: int, is_base64: bool) -> None:
        self._model = model
        self._input_count = input_count
        self._is_base64 = is_base64
        self._vector_count = 0
        self._pieces = [_HEAD]

    def add(self, events: Iterable[Event]) -> list[bytes] | None:
        """The body once the events are complete, else None. It is in pieces, one for each call, since it may be large.

        Raises:
            EngineFailed: a vector is missing, is not in its place, or is none.
            LoadBalancerError: of a failure, its error.
        """
        rendered: list[bytes] = []
        for event in events:
            if type(event) is Embedding:
                rendered.append(self._render(event))
            elif type(event) is Finished:
                if self._vector_count != self._input_count:
                    raise _misplaced()
                rendered.append(self._end(event))
                return [*self._pieces, b"".join(rendered)]
            elif type(event) is Failed:
                raise event.error
        self._pieces.append(b"".join(rendered))
        return None

    def _render(self, event: Embedding) -> bytes:
        if event.index != self._vector_count:
            raise _misplaced()
        self._vector_count += 1
        values = b'"%b"' % b64encode(event.values) if self._is_base64 else _numbers(event)
        comma = b"," if event.index else b""
        return b'%b{"object":"embedding","index":%d,"embedding":%b}' % (comma, event.index, values)

    def _end(self, finished: Finished) -> bytes:
        usage = {"prompt_tokens": finished.prompt_tokens, "total_tokens": finished.prompt_tokens}
        return b'],"model":%b,"usage":%b}' % (orjson.dumps(self._model), orjson.dumps(usage))


def _numbers(embedding: Embedding) -> bytes:
    """The vector as a JSON array; each number is the shortest text of the double that equals the 32-bit float."""
    numbers = orjson.dumps(embedding.vector)
    if b"null" in numbers:
        raise EngineFailed("The engine answered with a vector of which a part is not a number.")
    return numbers


def _misplaced() -> EngineFailed:
    """Clients match vectors and inputs by their places: a gap would give them the wrong ones."""
    return EngineFailed("The engine did not answer with one vector for each input, in their order.")
