"""The nouns of generation: a request for an engine, and the events it answers with. Values only.

What every request and every token makes anew is a named tuple: a frozen dataclass takes twice as long to make.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from lbcore.errors import EngineFailed, LoadBalancerError
from lbcore.types import NO_TICKET, Ticket


class Dialect(StrEnum):
    """Which OpenAI body a request carries."""

    CHAT = "chat"
    """POST /v1/chat/completions"""
    COMPLETION = "completion"
    """POST /v1/completions"""
    EMBEDDING = "embedding"
    """POST /v1/embeddings"""


class Continuation(NamedTuple):
    """An answer that another worker began, as far as its caller has it. What is generated comes behind it."""

    text: str = ""
    reasoning: str = ""
    token_ids: tuple[int, ...] = ()
    """Its tokens, which may say more than the text: an engine keeps back what could become a stop string. Empty when
    they were not told."""


class GenerationRequest(NamedTuple):
    """One request as it travels from gateway to engine."""

    request_id: str
    dialect: Dialect
    body: bytes
    """The OpenAI JSON body, byte for byte as the client sent it."""
    ticket: Ticket = NO_TICKET
    timeout_s: float | None = None
    """The request is stopped this long after it reached the worker; None means never."""
    priority: int = 0
    wants_token_ids: bool = True
    """Whether the caller reads token ids; a worker need not send them otherwise."""
    is_whole: bool = False
    """Whether the caller reads the answer when it is complete: a worker may join what comes after the first delta."""
    prefix_hashes: tuple[int, ...] = ()
    """Of the prompt, as `RouteFacts` has them, for a worker that wants them; so with the two below."""
    prefix_block_bytes: int = 0
    prompt_bytes: int = 0
    continuation: Continuation | None = None
    """What the answer has already; None for one that is yet to begin."""
    may_continue: bool = False
    """Whether another worker may go on with the answer when this one is lost. For who carries the request; no worker
    is told."""


class FinishReason(StrEnum):
    """Why a choice ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A part of a tool call; `id` and `name` come with the first part."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """A token that could have been, with the natural logarithm of its probability."""

    token: str
    logprob: float
    token_bytes: bytes


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated token, the natural logarithm of its probability, and the likeliest tokens in its place."""

    token: str
    logprob: float
    token_bytes: bytes
    top: tuple[TopLogprob, ...] = ()


class Started(NamedTuple):
    """The engine has taken up the prompt. Counts are what is known by now: `Finished` has the last word."""

    prompt_tokens: int
    """0 when the engine has not told."""
    cached_tokens: int = 0


class Delta(NamedTuple):
    """What one choice gained. Never splits a UTF-8 character; a choice's deltas joined are its answer."""

    choice: int = 0
    text: str = ""
    token_ids: tuple[int, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    """Set on the last delta of a choice."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """The vector of one input."""

    index: int
    """Which of the request's inputs, from 0."""
    values: bytes
    """Little-endian 32-bit floats, one after the other."""

    @property
    def vector(self) -> tuple[float, ...]:
        """The values as numbers.

        Raises:
            EngineFailed: they are not of 32 bits each.
        """
        if len(self.values) % 4:
            raise EngineFailed("The engine answered with a vector that is no list of 32-bit floats.")
        return struct.unpack(f"<{len(self.values) // 4}f", self.values)


class Finished(NamedTuple):
    """The end of a good answer, with its usage in tokens over all choices, or over all inputs of embeddings.

    Of an answer that another worker began it is the usage of the whole, as if it had come from one.
    """

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


class Failed(NamedTuple):
    """The end of a bad answer."""

    error: LoadBalancerError


Event = Started | Delta | Embedding | Finished | Failed
"""What a request answers with: at most one Started first, then deltas, or one Embedding for each input in the order of
inputs, then exactly one Finished or Failed."""
