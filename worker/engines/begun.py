"""Going on with an answer that another engine began: which tokens stand for it, and what of it was told. Pure.

An engine computes these tokens behind the prompt, makes the answer from its first token again as if they came just
now, and leaves out what was told. So whatever was held back (half a character, what may become a stop string or a tool
call) is where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from lbcore.errors import CannotContinue, InvalidRequest, LoadBalancerError
from lbcore.generation import Continuation, Delta, ToolCallDelta


class Reader(Protocol):
    """Makes text of the tokens of one answer."""

    def feed(self, token: int, /) -> str:
        """The text that is complete with this token."""


R = TypeVar("R", bound=Reader)
Encode = Callable[[str], Sequence[int]]
"""The tokens of a text, without those that begin or end one."""


@dataclass(frozen=True, slots=True)
class Begun(Generic[R]):
    """The tokens that stand for what there is of an answer."""

    token_ids: tuple[int, ...]
    texts: tuple[str, ...]
    """What the reader made of each."""
    reader: R
    """It has read all of them."""


def is_empty(continuation: Continuation) -> bool:
    """Whether nothing was told, so that the answer may as well begin anew."""
    return not (continuation.text or continuation.reasoning or continuation.token_ids)


def begin(
    continuation: Continuation,
    new_reader: Callable[[], R],
    encode: Encode,
    vocabulary_size: int,
    *,
    is_parsed: bool = False,
) -> Begun[R]:
    """What stands for an answer as far as it goes: its own tokens, or those of its text as far as they do not make it.

    Of an answer that is parsed before it is told, the text is not all that the tokens say: they are taken as they are.

    Raises:
        CannotContinue: no tokens can be found for it.
    """
    text, token_ids = continuation.text, continuation.token_ids
    if token_ids and max(token_ids) >= vocabulary_size:
        token_ids = ()
    begun = _read(token_ids, new_reader())
    if token_ids and (is_parsed or "".join(begun.texts).startswith(text)):
        return begun
    if continuation.reasoning:
        raise CannotContinue("The engine goes on with reasoning only when it knows its tokens.")
    kept = _fitting(begun.texts, text)
    rest = text[sum(map(len, begun.texts[:kept])) :]
    for encoded in _encodings(rest, encode):
        begun = _read((*token_ids[:kept], *encoded), new_reader())
        if "".join(begun.texts) == text:
            return begun
    raise CannotContinue("The engine has no tokens for the text of the answer.")


def _read(token_ids: Sequence[int], reader: R) -> Begun[R]:
    return Begun(tuple(token_ids), tuple([reader.feed(token) for token in token_ids]), reader)


def _fitting(texts: Sequence[str], text: str) -> int:
    """How many tokens of these texts make the beginning of another, the last of them with a text of its own."""
    fitting = at = 0
    for count, piece in enumerate(texts, 1):
        if not text.startswith(piece, at):
            break
        at += len(piece)
        if piece:
            fitting = count
    return fitting


def _encodings(text: str, encode: Encode) -> Iterator[Sequence[int]]:
    yield encode(text)
    # Some vocabularies put a space before whatever comes first; behind a line's end they do not.
    lead, behind = encode("\n"), encode(f"\n{text}")
    if [*behind[: len(lead)]] == [*lead]:
        yield behind[len(lead) :]


class Told:
    """What of an answer was told. `rest` leaves it out of the deltas of the whole answer, one after the other.

    What is new and has no token of its own, because it had been held back, waits for the next token.
    """

    def __init__(self, continuation: Continuation, tokens: int, most_held: int = 0) -> None:
        """`tokens` stand for it at the beginning of the deltas. An engine that is slower to tell text than the one that
        began lags behind by `most_held` characters at most."""
        self._text = continuation.text
        self._reasoning = continuation.reasoning
        self._tokens = tokens
        self._most_held = most_held
        self._new_text = ""
        self._new_reasoning = ""
        self._new_calls: tuple[ToolCallDelta, ...] = ()

    def rest(self, delta: Delta) -> Delta | None:
        """What is new in a delta; None for nothing yet. Raises CannotContinue when it is another answer."""
        text, self._text = _split(delta.text, self._text)
        reasoning, self._reasoning = _split(delta.reasoning, self._reasoning)
        told = min(self._tokens, len(delta.token_ids))
        self._tokens -= told
        token_ids = delta.token_ids[told:]
        self._new_text += text
        self._new_reasoning += reasoning
        self._new_calls += delta.tool_calls
        missing = len(self._text) + len(self._reasoning)
        may_miss = self._most_held if delta.finish_reason is None else 0
        if missing > may_miss and not self._tokens:
            raise _another_answer()
        if (self._reasoning and self._new_text) or (self._text and (self._new_reasoning or self._new_calls)):
            # What was told as one thing comes as the other.
            raise _another_answer()
        if not token_ids and delta.finish_reason is None:
            return None
        rest = delta._replace(
            text=self._new_text, token_ids=token_ids, reasoning=self._new_reasoning, tool_calls=self._new_calls
        )
        self._new_text = self._new_reasoning = ""
        self._new_calls = ()
        return rest


def _split(said: str, told: str) -> tuple[str, str]:
    """What of a piece is new, and what of that which was told has not come yet."""
    common = min(len(said), len(told))
    if said[:common] != told[:common]:
        raise _another_answer()
    return said[common:], told[common:]


def _another_answer() -> CannotContinue:
    return CannotContinue("The engine reads another answer in the tokens.")


def refusal(error: LoadBalancerError, continuation: Continuation | None) -> LoadBalancerError:
    """What to tell of an error: what one engine has begun and another refuses is not the client's fault."""
    if continuation is not None and isinstance(error, InvalidRequest):
        return CannotContinue(error.message)
    return error
