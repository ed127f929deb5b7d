"""Turns what llama.cpp streams into the events of a request. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from lbcore.errors import EngineFailed
from lbcore.generation import Delta, Event, Finished, FinishReason, Started, TokenLogprob, ToolCallDelta, TopLogprob
from worker.engines.llamacpp.body import Ask
from worker.engines.llamacpp.errors import error_from_json, too_long
from worker.engines.stop import StopFilter

DONE = b"[DONE]"

_IMPOSSIBLE = -9999.0
"""What OpenAI gives as the logarithm of probability zero."""


class _Choice:
    __slots__ = ("cut", "filter", "tokens")

    def __init__(self, stop: Sequence[str]) -> None:
        self.filter = StopFilter(stop) if stop else None
        self.tokens = 0
        self.cut = False
        """Whether a stop string ended it. llama.cpp knows nothing of that and goes on."""


class Answer:
    """One request's answer as it comes.

    `take` turns the data of one server-sent event into events. Started comes when llama.cpp takes up the first prompt;
    Finished when llama.cpp says it is done, or once every choice has met a stop string.
    Token ids are not told: llama.cpp names none in a chat, and elsewhere none of those it held back because half a
    character was in them.
    """

    def __init__(self, ask: Ask, context_length: int) -> None:
        self._ask = ask
        self._context_length = context_length
        self._choices = [_Choice(ask.stop) for _ in range(ask.choices)]
        self._open_choices = ask.choices
        self._finishing = 0
        self._prompts: dict[int, tuple[int, int]] = {}
        self._processed: dict[int, int] = {}
        self.expected_prompt_tokens = 0
        """Tokens of all prompts, counted by somebody where there are several; 0 for one."""
        self.started = False
        self.finished = False
        self.deltas = 0
        """Deltas with a token so far."""

    @property
    def prompt_tokens(self) -> int:
        return sum(total for total, _ in self._prompts.values())

    @property
    def cached_tokens(self) -> int:
        return sum(cached for _, cached in self._prompts.values())

    @property
    def computed_prompt_tokens(self) -> int:
        """Prompt tokens computed so far, of all prompts; those found in the cache are not among them."""
        return sum(self._processed.values()) - self.cached_tokens

    @property
    def prefilled(self) -> bool:
        """Whether every prompt is computed."""
        return self.deltas > 0 or (
            len(self._prompts) == len(self._ask.prompts) and sum(self._processed.values()) >= self.prompt_tokens
        )

    @property
    def kv_tokens(self) -> int:
        """Tokens this request has in the KV cache by now; those that are held back are missing."""
        return sum(self._processed.values()) + self.deltas

    def take(self, data: bytes) -> Iterator[Event]:
        """Raises LoadBalancerError for an error in the stream, and for a prompt that leaves no room for the answer."""
        if data == DONE:
            if self._open_choices:
                raise EngineFailed("llama.cpp broke off the answer.")
        else:
            chunk = orjson.loads(data)
            if "choices" not in chunk:
                raise error_from_json(chunk, 500, self._ask)
            progress = chunk.get("prompt_progress")
            if progress is not None:
                yield from self._progress(chunk["choices"][0]["index"] // self._ask.choices_per_prompt, progress)
                return
            for choice in chunk["choices"]:
                delta = self._delta(choice, chunk)
                if delta is not None:
                    if not self.started:
                        yield self._start()
                    yield delta
            usage = chunk.get("usage")
            if usage is not None:
                self._use(usage)
        if not self._open_choices and not self.finished:
            self.finished = True
            begun = self._ask.begun_tokens
            prompt_tokens = self.prompt_tokens - begun
            output_tokens = begun + sum(choice.tokens for choice in self._choices)
            yield Finished(prompt_tokens, min(self.cached_tokens, prompt_tokens), output_tokens)

    def _progress(self, prompt: int, progress: Mapping[str, int]) -> Iterator[Event]:
        total = progress["total"]
        asked = self._ask.max_tokens if self._ask.explicit_limit else None
        if asked is not None and total + asked > self._context_length:
            raise too_long(total, asked, self._context_length, self._ask)
        self._prompts.setdefault(prompt, (total, progress["cache"]))
        self._processed[prompt] = max(progress["processed"], self._processed.get(prompt, 0))
        if not self.started:
            yield self._start()

    def _start(self) -> Started:
        self.started = True
        return Started(self.expected_prompt_tokens or self.prompt_tokens, self.cached_tokens)

    def _use(self, usage: Mapping[str, Any]) -> None:
        """Takes in the usage of the choice that has just finished."""
        prompt = self._finishing // self._ask.choices_per_prompt
        self._prompts[prompt] = (usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"])
        choice = self._choices[self._finishing]
        if not choice.cut:
            choice.tokens = usage["completion_tokens"]
            self._open_choices -= 1

    def _delta(self, said: Mapping[str, Any], chunk: Mapping[str, Any]) -> Delta | None:
        reason = said["finish_reason"]
        index = said["index"]
        choice = self._choices[index]
        if reason is not None:
            self._finishing = index
        if choice.cut:
            return None
        reasoning = ""
        calls: tuple[ToolCallDelta, ...] = ()
        message = said.get("delta")
        if message is None:
            text = said["text"]
        else:
            text = message.get("content") or ""
            if len(message) > 1 or not text:
                reasoning = message.get("reasoning_content") or ""
                calls = tuple(map(_tool_call, message.get("tool_calls") or ()))
        if not (text or reasoning or calls or reason):
            return None
        if not reason:
            self.deltas += 1
        content = said.get("logprobs")
        logprobs = self._logprobs(content["content"]) if content and self._ask.top_logprobs is not None else ()
        if choice.filter is not None:
            text = choice.filter.feed(text)
            if choice.filter.stopped:
                choice.cut, choice.tokens = True, chunk["timings"]["predicted_n"]
                self._open_choices -= 1
                reason = FinishReason.STOP
            elif reason:
                text += choice.filter.flush()
            elif not (text or reasoning or calls or logprobs):
                return None
        return Delta(index, text, (), reasoning, calls, logprobs, FinishReason(reason) if reason else None)

    def _logprobs(self, content: Sequence[Mapping[str, Any]]) -> tuple[TokenLogprob, ...]:
        top = self._ask.top_logprobs
        return tuple(
            TokenLogprob(
                token["token"],
                _finite(token["logprob"]),
                bytes(token["bytes"]),
                tuple(
                    TopLogprob(other["token"], _finite(other["logprob"]), bytes(other["bytes"]))
                    for other in token["top_logprobs"][:top]
                ),
            )
            for token in content
        )


def _tool_call(part: Mapping[str, Any]) -> ToolCallDelta:
    function = part.get("function") or {}
    return ToolCallDelta(
        part["index"], part.get("id") or "", function.get("name") or "", function.get("arguments") or ""
    )


def _finite(logprob: float | None) -> float:
    return _IMPOSSIBLE if logprob is None else max(_IMPOSSIBLE, logprob)
