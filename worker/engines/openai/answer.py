"""Turns what a server streams into the events of a request. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from lbcore.errors import CannotContinue, ContextLengthExceeded, EngineFailed
from lbcore.generation import Delta, Event, Finished, FinishReason, Started, ToolCallDelta
from worker.engines.openai import chunks
from worker.engines.openai.body import Ask
from worker.engines.openai.continuation import Begun
from worker.engines.openai.errors import BadAnswer, BadEnd, cut_off, from_json, unreadable
from worker.engines.openai.kinds import Facts
from worker.engines.stop import StopFilter

DONE = b"[DONE]"


class _Choice:
    __slots__ = ("counted", "ended", "filter", "held", "repeats", "tells_ids", "tokens")

    def __init__(self, stop: tuple[str, ...], begun: Begun | None) -> None:
        self.filter = StopFilter(stop) if stop else None
        self.held = begun.held if begun is not None else ""
        """Text that goes before the server's, since it was held back when the answer was cut."""
        self.repeats = begun.repeats if begun is not None else ()
        """Token ids that the server tells and the caller has."""
        self.tells_ids = begun is None or begun.tells_ids
        self.tokens = 0
        self.ended = False
        self.counted = False
        """Whether its tokens are the server's own count, or were when we cut it off."""


class Answer:
    """One request's answer as it comes.

    `take` gets the data of one server-sent event, `end` is told when the stream is over, and `whole` gets an answer
    that a server did not stream. Each yields events and raises BadAnswer; after Finished there is nothing more to read.
    """

    def __init__(
        self, ask: Ask, stop: tuple[str, ...], facts: Facts, context_length: int, begun: Begun | None = None
    ) -> None:
        """`stop` are the stop strings that the server was not told of; they are looked for here. `begun` is what there
        was of the answer before, which the server takes for a part of the prompt."""
        self._ask = ask
        self._begun = begun
        self._stop = stop
        self._kind = facts.kind
        self._context_length = context_length
        self._choices: dict[int, _Choice] = {}
        self._last_ended = 0
        self._output_tokens = 0
        self._prompts: dict[int, tuple[int, int]] = {}
        """Tokens of each prompt and how many of them were cached, as far as known."""
        self.started = False
        self.finished = False
        self.is_done = False
        """Whether the server said that it is done."""
        self.tokens = 0
        """Tokens so far, over all choices; a delta counts as one where tokens are not told."""

    @property
    def prompt_tokens(self) -> int:
        return sum(total for total, _ in self._prompts.values())

    @property
    def cached_tokens(self) -> int:
        # The last token of a prompt is always computed.
        return min(sum(cached for _, cached in self._prompts.values()), max(0, self.prompt_tokens - 1))

    @property
    def choices(self) -> int:
        """Choices that have begun."""
        return len(self._choices)

    def take(self, data: bytes) -> Iterator[Event]:
        if data == DONE:
            self.is_done = True
            yield from self._end()
            return
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise unreadable("an event that is no JSON") from None
        if isinstance(chunk, dict):
            try:
                yield from self._read(chunk)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                raise unreadable(f"a chunk that cannot be read ({type(error).__name__})") from None

    def end(self, rest: bytes) -> Iterator[Event]:
        """The stream is over; `rest` is what came after the last whole event. Not every server says that it is done."""
        if rest:
            try:
                yield from self.take(rest)
            except BadAnswer as bad:
                # Half an event is the mark of a stream that was cut.
                raise (cut_off(self.started) if bad.how is BadEnd.UNREADABLE else bad) from None
        if not self.finished:
            if len(self._choices) < self._ask.choices:
                raise cut_off(self.started)
            yield from self._end()

    def whole(self, body: bytes) -> Iterator[Event]:
        """An answer in one piece."""
        yield from self.take(body)
        if not self.finished:
            if not self._choices:
                raise unreadable("JSON that is no answer")
            yield from self._end()

    def _end(self) -> Iterator[Event]:
        if not self._choices or not all(choice.ended for choice in self._choices.values()):
            raise cut_off(self.started)
        if not self.finished:
            self.finished = True
            yield self._finished()

    def _finished(self) -> Finished:
        output_tokens = self._output_tokens or sum(choice.tokens for choice in self._choices.values())
        begun = self._begun
        if begun is None:
            return Finished(self.prompt_tokens, self.cached_tokens, output_tokens)
        prompt_tokens = max(0, self.prompt_tokens - len(begun.token_ids))
        return Finished(prompt_tokens, min(self.cached_tokens, prompt_tokens), begun.tokens + output_tokens)

    def _read(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        bad = from_json(chunk, self._ask.prompt_field)
        if bad is not None:
            raise bad
        said = chunk.get("choices")
        if not isinstance(said, list):
            return
        progress = chunk.get("prompt_progress")
        if isinstance(progress, dict):
            self._count(said[0]["index"], chunks.count_of(progress["total"]), chunks.count_of(progress["cache"]))
            said = ()
        # With a chat they stand beside the choices, with a completion in the first chunk of each.
        for part in (chunk, *said):
            ids = part.get("prompt_token_ids")
            if ids:
                self._count(part.get("index", 0), len(ids), 0)
        deltas = [delta for choice in said if (delta := self._delta(choice, chunk)) is not None]
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self._use(usage)
        if not self.started and (said or progress):
            self.started = True
            # Of several prompts not all may be known.
            yield Started(self.prompt_tokens, self.cached_tokens) if self._ask.prompts == 1 else Started(0)
        yield from deltas
        if self._stop and self._is_settled():
            # What we cut off goes on at the server, so we do not wait for it to be done.
            yield from self._end()

    def _is_settled(self) -> bool:
        return len(self._choices) == self._ask.choices and all(choice.counted for choice in self._choices.values())

    def _count(self, index: int, prompt_tokens: int, cached_tokens: int) -> None:
        """The server has told how long the prompt of a choice is, before it goes on with it."""
        asked, limit = self._ask.max_tokens, self._context_length
        if asked is not None and self._begun is not None:
            asked -= self._begun.tokens
        if asked is not None and limit and prompt_tokens + asked > limit:
            # Servers break the answer off where their context ends, and nobody would know why.
            error = ContextLengthExceeded(
                f"The context is {limit} tokens; the prompt has {prompt_tokens} and {asked} more were asked for.",
                param=self._ask.prompt_field,
            )
            raise BadAnswer(BadEnd.REFUSED, error)
        self._prompts.setdefault(index // self._ask.choices_per_prompt, (prompt_tokens, cached_tokens))

    def _use(self, usage: Mapping[str, Any]) -> None:
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else 0
        counts = (chunks.count_of(usage.get("prompt_tokens")), chunks.count_of(cached))
        output_tokens = chunks.count_of(usage.get("completion_tokens"))
        if self._kind.usage_per_choice:
            self._prompts[self._last_ended // self._ask.choices_per_prompt] = counts
            choice = self._choices[self._last_ended]
            if not choice.counted:
                choice.tokens, choice.counted = output_tokens, True
        else:
            self._prompts = {0: counts}
            self._output_tokens = output_tokens

    def _delta(self, said: Mapping[str, Any], chunk: Mapping[str, Any]) -> Delta | None:
        index = said.get("index", 0)
        if type(index) is not int:
            raise TypeError
        choice = self._choices.get(index)
        if choice is None:
            if not 0 <= index < self._ask.choices:
                raise ValueError
            choice = self._choices[index] = _Choice(self._stop, self._begun)
        stated = said.get("finish_reason")
        if stated:
            self._last_ended = index
        if choice.ended:
            return None
        message = said.get("delta") or said.get("message")
        reasoning = ""
        calls: tuple[ToolCallDelta, ...] = ()
        if isinstance(message, dict):
            text = chunks.text_of(message.get("content"))
            if len(message) > 1 or not text:
                reasoning = chunks.text_of(message.get("reasoning_content") or message.get("reasoning"))
                calls = chunks.tool_calls(message.get("tool_calls"))
        else:
            text = chunks.text_of(said.get("text"))
        if reasoning and self._begun is not None and self._begun.text:
            # It takes what follows for the begin of an answer, and may not know where the reasoning ends.
            error = CannotContinue("The upstream server reasons in the middle of the answer.")
            raise BadAnswer(BadEnd.REFUSED, error)
        ids = chunks.ids_of(said.get("token_ids"))
        if stated in chunks.GAVE_UP:
            raise BadAnswer(BadEnd.FAILED, EngineFailed("The upstream server gave the request up."))
        reason = chunks.finish_reason(stated)
        logprobs = chunks.logprobs(said.get("logprobs"), self._ask.top_logprobs)
        if ids or text or reasoning or calls:
            tokens = len(ids) or len(logprobs) or 1
            choice.tokens += tokens
            self.tokens += tokens
        # What was held back goes along with a token, or it would look like one of which no id was told.
        if choice.filter is not None and (text or ids or reason):
            text, reason = self._cut(choice, text, reason, chunk)
        choice.ended = reason is not None
        if self._begun is not None and ids:
            ids = _new_ids(choice, ids)
        if not (text or ids or reasoning or calls or logprobs or reason):
            return None
        return Delta(index, text, ids, reasoning, calls, logprobs, reason)

    def _cut(
        self, choice: _Choice, text: str, reason: FinishReason | None, chunk: Mapping[str, Any]
    ) -> tuple[str, FinishReason | None]:
        """Ends the text before a stop string. What the server goes on with after that is thrown away."""
        assert choice.filter is not None
        timings = chunk.get("timings")
        if isinstance(timings, dict) and "predicted_n" in timings:
            choice.tokens = chunks.count_of(timings["predicted_n"])
        held, choice.held = choice.held, ""
        text = choice.filter.feed(held + text)
        if choice.filter.stopped:
            choice.counted = True
            return text, FinishReason.STOP
        return (text + choice.filter.flush(), reason) if reason is not None else (text, None)


def _new_ids(choice: _Choice, ids: tuple[int, ...]) -> tuple[int, ...]:
    """Those of the ids that go on where the caller's end; none from where they do not."""
    count = min(len(ids), len(choice.repeats))
    if ids[:count] != choice.repeats[:count]:
        choice.tells_ids = False
    choice.repeats = choice.repeats[count:]
    return ids[count:] if choice.tells_ids else ()
