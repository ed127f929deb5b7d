"""What the simulated engine answers: words drawn from a hash, the same on every worker. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import NamedTuple

from lbcore.errors import CannotContinue
from lbcore.generation import Delta, FinishReason, TokenLogprob, TopLogprob

_WORD_LIST = """
a about after all and as at balance because before between block but café cache can chance choice clear cost day déjà
each engine even every far first for free from good große have here 日本 keep last late light load long many more naïve
near new next niño no of one only queue quick rest steady the token Привет wait 🙂 work Ω
"""

WORDS = tuple(_WORD_LIST.split())
"""The vocabulary, 64 words; a token's id is its index here, and its text the word and a space."""

_TEXTS = tuple(f"{word} " for word in WORDS)
_BYTE_TO_TOKEN = bytes(byte % len(WORDS) for byte in range(256))

MIN_ANSWER_TOKENS = 16
MAX_ANSWER_TOKENS = 128
"""Bounds of the length of an answer whose request names none."""


class Answer(NamedTuple):
    """One choice's answer, known as soon as the request is."""

    tokens: bytes
    """One token id per byte."""
    text_length: int | None
    """Characters of the text before the stop string that ended it; None when none did."""
    finish_reason: FinishReason


def draw_length(key: bytes) -> int:
    """The length in tokens of an answer that nobody limited: even over its bounds, always the same for one key."""
    number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
    return MIN_ANSWER_TOKENS + number % (MAX_ANSWER_TOKENS - MIN_ANSWER_TOKENS + 1)


def draw_answer(key: bytes, choice: int, length: int, limited: bool, stop: Sequence[str]) -> Answer:
    """The answer of one choice: `length` tokens, or fewer when they contain a stop string.

    `limited` says that the length is the client's limit, not the answer's natural end.
    """
    tokens = hashlib.shake_128(key + choice.to_bytes(4, "little")).digest(length).translate(_BYTE_TO_TOKEN)
    if stop:
        text = "".join(map(_TEXTS.__getitem__, tokens))
        cut, end = _first_stop(text, stop)
        if end:
            return Answer(tokens[: _tokens_covering(tokens, end)], cut, FinishReason.STOP)
    return Answer(tokens, None, FinishReason.LENGTH if limited else FinishReason.STOP)


def _first_stop(text: str, stop: Sequence[str]) -> tuple[int, int]:
    """Where the stop string that is complete first begins and ends, the longest of several; (0, 0) for none."""
    found = [(start + len(one), start) for one in stop if (start := text.find(one)) >= 0]
    end, start = min(found, default=(0, 0))
    return start, end


def _tokens_covering(tokens: bytes, length: int) -> int:
    """How many tokens it takes until the text has `length` characters."""
    for count, token in enumerate(tokens, 1):
        length -= len(_TEXTS[token])
        if length <= 0:
            return count
    return len(tokens)


def deltas(answer: Answer, choice: int, top_logprobs: int | None) -> Iterator[Delta]:
    """One delta per token of the answer, the last with its finish reason; with log probabilities unless None."""
    if answer.text_length is None and top_logprobs is None:
        last = (_shared_deltas(choice, answer.finish_reason)[answer.tokens[-1]],)
        if len(answer.tokens) == 1:
            return iter(last)
        plain = _shared_deltas(choice, None).__getitem__
        return chain(map(plain, answer.tokens[:-1]), last)
    return _rendered(answer, choice, top_logprobs)


@cache
def _shared_deltas(choice: int, finish_reason: FinishReason | None) -> tuple[Delta, ...]:
    """The delta of every token of the vocabulary: most tokens are nothing but a look-up here."""
    return tuple(Delta(choice, text, (token,), finish_reason=finish_reason) for token, text in enumerate(_TEXTS))


def _rendered(answer: Answer, choice: int, top_logprobs: int | None) -> Iterator[Delta]:
    last = len(answer.tokens) - 1
    left = answer.text_length
    for position, token in enumerate(answer.tokens):
        delta = _shared_deltas(choice, answer.finish_reason if position == last else None)[token]
        if left is not None:
            delta = delta._replace(text=delta.text[:left])
            left -= len(delta.text)
        if top_logprobs is not None:
            delta = delta._replace(logprobs=(_logprob(token, position, top_logprobs),))
        yield delta


def _logprob(token: int, position: int, top: int) -> TokenLogprob:
    """A shape, not a distribution: the sampled token is the likeliest, each next word of the list half as likely."""
    best = -0.125 * (1 + position % 4)
    ranked = [(token + rank) % len(WORDS) for rank in range(top)]
    return TokenLogprob(
        _TEXTS[token],
        best,
        _TEXTS[token].encode(),
        tuple(
            TopLogprob(_TEXTS[other], best - 0.6931471805599453 * rank, _TEXTS[other].encode())
            for rank, other in enumerate(ranked)
        ),
    )


def behind(output: Iterator[Delta], text: str) -> tuple[int, Iterator[Delta]]:
    """What comes behind a text with which an answer began: how many of its deltas are in there, and the others.

    Raises:
        CannotContinue: the answer does not begin so.
    """
    at = 0
    for count, delta in enumerate(output):
        here = text[at : at + len(delta.text)]
        if not delta.text.startswith(here):
            break
        if len(here) < len(delta.text) or at == len(text) or delta.finish_reason is not None:
            return count, chain((delta._replace(text=delta.text[len(here) :]),), output)
        at += len(here)
    raise CannotContinue("The simulated engine would have answered otherwise.")


def stamped_deltas(
    length: int, choice: int, finish_reason: FinishReason, monotonic_ns: Callable[[], int]
) -> Iterator[Delta]:
    """Deltas whose text is the time at which each was taken from here, in nanoseconds, and a space. Token ids are 0."""
    for _ in range(length - 1):
        yield Delta(choice, f"{monotonic_ns()} ", (0,))
    yield Delta(choice, f"{monotonic_ns()} ", (0,), finish_reason=finish_reason)
