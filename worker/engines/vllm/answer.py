"""Turns what vLLM's engine puts out into the events of a request.

vLLM's own parsers take tool calls and reasoning out of the text; this only puts their findings into our words. It
stands where vLLM's HTTP server makes JSON of every token, which would cost more than all the rest of a worker.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from lbcore.errors import EngineFailed
from lbcore.generation import Delta, Event, Finished, FinishReason, Started, TokenLogprob, ToolCallDelta, TopLogprob
from worker.engines.begun import Told

Prefilled = Callable[[int, float, float], None]
"""Called with the tokens computed for a prompt, and when that began and ended, in seconds of the engine's clock."""

_IMPOSSIBLE = -9999.0
"""What OpenAI gives as the logarithm of probability zero."""
_REASONS = {reason.value: reason for reason in FinishReason}
_BROKEN = ("abort", "error")


class _Choice:
    __slots__ = ("ended", "parser", "tokens", "tool_calls")

    def __init__(self, parser: Any) -> None:
        self.parser = parser
        self.tokens = 0
        self.tool_calls = False
        self.ended = False


class Answer:
    """The answer to one request, over all its prompts and choices."""

    def __init__(
        self,
        asked: Any,
        parsers: Sequence[Any],
        copies: int,
        prefilled: Prefilled,
        left: Callable[[], None],
        begun_tokens: int = 0,
    ) -> None:
        """`asked` is vLLM's request object; each choice has its parser or None.

        With `copies` > 1 one sequence stands for that many choices that cannot differ. `prefilled` is called once for
        each prompt, `left` for each sequence that has ended. `begun_tokens` of the answer are computed as a part
        of the prompt.
        """
        self._prefilled = prefilled
        self._left = left
        self._choices = [_Choice(parser) for parser in parsers]
        self._copies = copies
        self._per_prompt = asked.n or 1
        self._asked = asked
        self._top = _wanted_logprobs(asked)
        self._forced_call = getattr(asked.tool_choice, "function", None) if hasattr(asked, "tool_choice") else None
        self._parallel_calls = getattr(asked, "parallel_tool_calls", None) is not False
        self._begun_tokens = begun_tokens
        self._prompts: dict[int, tuple[int, int]] = {}
        self.started = False

    @property
    def prompt_tokens(self) -> int:
        return sum(total for total, _ in self._prompts.values())

    @property
    def cached_tokens(self) -> int:
        return sum(cached for _, cached in self._prompts.values())

    def take(self, prompt: int, output: Any, echo: str = "") -> list[Event]:
        """The events in one output of the engine for one prompt. `echo` is text that goes before a choice's first.

        Raises:
            EngineFailed: vLLM gave a sequence up.
        """
        if prompt not in self._prompts and output.prompt_token_ids is not None:
            encoder = getattr(output, "encoder_prompt_token_ids", None) or ()
            tokens = len(output.prompt_token_ids) + len(encoder)
            computed = tokens + self._begun_tokens
            cached = min(output.num_cached_tokens or 0, computed - 1)
            self._prompts[prompt] = (tokens, cached)
            if output.metrics is not None:
                self._prefilled(computed - cached, output.metrics.scheduled_ts, output.metrics.first_token_ts)
        events: list[Event] = []
        for one in output.outputs:
            index = one.index + prompt * self._per_prompt
            delta = self._delta(index, one, output, echo)
            if delta is not None:
                if not self.started:
                    self.started = True
                    events.append(Started(self.prompt_tokens + self._begun_tokens, self.cached_tokens))
                events.append(delta)
        return self._copied(events) if self._copies > 1 else events

    def end(self) -> Finished:
        """The usage, once every choice has ended. Raises EngineFailed when one has not."""
        if not all(choice.ended for choice in self._choices):
            raise EngineFailed("vLLM broke off the answer.")
        output_tokens = sum(choice.tokens for choice in self._choices) * self._copies
        return Finished(self.prompt_tokens, min(self.cached_tokens, self.prompt_tokens), output_tokens)

    def _delta(self, index: int, one: Any, output: Any, echo: str) -> Delta | None:
        choice = self._choices[index]
        if choice.ended:
            return None
        if one.finish_reason in _BROKEN:
            raise EngineFailed("vLLM gave the request up.")
        text, token_ids, reason = one.text, tuple(one.token_ids), one.finish_reason
        if not (text or token_ids or reason):
            return None
        logprobs = _logprobs(token_ids, one.logprobs, self._top) if self._top is not None and one.logprobs else ()
        if echo and not choice.tokens:
            text = echo + text
            if self._top is not None and output.prompt_logprobs:
                logprobs = _logprobs(output.prompt_token_ids, output.prompt_logprobs, self._top) + logprobs
        choice.tokens += len(token_ids)
        reasoning = ""
        calls: tuple[ToolCallDelta, ...] = ()
        if choice.parser is not None:
            found = choice.parser.parse_delta(
                delta_text=text,
                delta_token_ids=list(token_ids),
                request=self._asked,
                prompt_token_ids=output.prompt_token_ids,
                finished=reason is not None,
            )
            text, reasoning, calls = self._parsed(found)
            choice.tool_calls = choice.tool_calls or bool(calls)
            if not self._asked.include_reasoning:
                # What the client is not to read must not be told token by token either; only their number is.
                logprobs, token_ids, reasoning = (), (), ""
        finish_reason = None
        if reason is not None:
            choice.ended = True
            self._left()
            finish_reason = _REASONS.get(reason, FinishReason.STOP)
            if choice.tool_calls and self._forced_call is None and finish_reason is FinishReason.STOP:
                finish_reason = FinishReason.TOOL_CALLS
        return Delta(index, text, token_ids, reasoning, calls, logprobs, finish_reason)

    def _parsed(self, found: Any) -> tuple[str, str, tuple[ToolCallDelta, ...]]:
        if found is None:
            return "", "", ()
        calls = tuple(
            _tool_call(part) for part in found.tool_calls or () if self._parallel_calls or not (part.index or 0)
        )
        return found.content or "", found.reasoning or "", calls

    def _copied(self, events: Sequence[Event]) -> list[Event]:
        copies: list[Event] = []
        for event in events:
            if isinstance(event, Delta):
                first = event.choice * self._copies
                copies += [
                    Delta(
                        first + number,
                        event.text,
                        event.token_ids,
                        event.reasoning,
                        event.tool_calls,
                        event.logprobs,
                        event.finish_reason,
                    )
                    for number in range(self._copies)
                ]
            else:
                copies.append(event)
        return copies


async def events(
    answer: Answer, outputs: AsyncGenerator[tuple[int, Any], None], echoes: Sequence[str], told: Told | None = None
) -> AsyncGenerator[Event, None]:
    """The events of a request from the engine's outputs, each with the number of its prompt; what was `told` of the
    answer is left out."""
    async with aclosing(outputs):
        async for prompt, output in outputs:
            for event in answer.take(prompt, output, echoes[prompt] if echoes else ""):
                rest = told.rest(event) if told is not None and type(event) is Delta else event
                if rest is not None:
                    yield rest
    yield answer.end()


def _wanted_logprobs(asked: Any) -> int | None:
    """How many likely tokens to name beside each; None when no log probabilities are wanted."""
    if isinstance(asked.logprobs, bool):
        return (asked.top_logprobs or 0) if asked.logprobs else None
    return None if asked.logprobs is None else int(asked.logprobs)


def _logprobs(
    token_ids: Sequence[int], likely: Sequence[Mapping[int, Any] | None], top: int
) -> tuple[TokenLogprob, ...]:
    return tuple(
        _logprob(token_id, found, top) for token_id, found in zip(token_ids, likely, strict=False) if found is not None
    )


def _logprob(token_id: int, found: Mapping[int, Any], top: int) -> TokenLogprob:
    own = found[token_id]
    ranked = sorted(found.values(), key=lambda one: -one.logprob)[:top]
    text = own.decoded_token or ""
    return TokenLogprob(text, _finite(own.logprob), _bytes(text), tuple(map(_top_logprob, ranked)))


def _top_logprob(one: Any) -> TopLogprob:
    text = one.decoded_token or ""
    return TopLogprob(text, _finite(one.logprob), _bytes(text))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _finite(logprob: float) -> float:
    return max(_IMPOSSIBLE, min(0.0, logprob))


def _tool_call(part: Any) -> ToolCallDelta:
    function = part.function
    return ToolCallDelta(
        part.index or 0,
        part.id or "",
        (function.name or "") if function else "",
        (function.arguments or "") if function else "",
    )
