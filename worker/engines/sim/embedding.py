"""Embeddings of the simulated engine: what is asked for, and unit vectors drawn from a hash. Pure."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

from lbcore.generation import Embedding, GenerationRequest
from worker.engines import fields
from worker.engines.sim.body import ENGINE, Prompt, prompt_of

_UNSUPPORTED = ("messages", "truncate_prompt_tokens")
"""Refused by name unless null, false or empty: vectors that ignored them would be wrong."""


@dataclass(frozen=True, slots=True)
class EmbeddingAsk:
    """What a body asks for, checked but for the context length."""

    inputs: tuple[Prompt, ...]
    size: int
    """Numbers in each vector."""


def read_embedding_body(request: GenerationRequest, size: int) -> EmbeddingAsk:
    """`size` is that of whole vectors. Raises InvalidRequest as `read_body` does."""
    body = fields.json_object(request.body)
    fields.refuse(body, _UNSUPPORTED, ENGINE)
    fields.encoding_format(body)
    inputs = tuple(prompt_of(one, "input") for one in fields.inputs(body))
    return EmbeddingAsk(inputs, fields.integer(body, "dimensions", 1, size) or size)


def draw_embedding(index: int, key: bytes, size: int) -> Iterator[Embedding]:
    """One event: a vector of length 1, the same for the same key. A shorter one is the beginning of a longer one,
    brought to length 1 again."""
    # Odd numbers: not even a vector of one may be zero.
    numbers = [2 * one + 1 for one in struct.unpack(f"<{size}i", hashlib.shake_128(key).digest(4 * size))]
    length = sqrt(sum(one * one for one in numbers))
    yield Embedding(index, struct.pack(f"<{size}f", *(one / length for one in numbers)))
