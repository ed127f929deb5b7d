"""Turns what llama.cpp streams into the events of a request, and its errors into ours. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from lbcore.errors import ContextLengthExceeded, EngineFailed, InvalidRequest, LoadBalancerError
from lbcore.generation import Delta, Event, Finished, FinishReason, Started, TokenLogprob, ToolCallDelta, TopLogprob
from worker.engines.llamacpp_body import Ask

DONE = b"[DONE]"

_IMPOSSIBLE = -9999.0
"""What OpenAI gives as the logarithm of probability zero."""


class Answer:
    """One request's answer as it comes.

    `take` turns the data of one server-sent event into events. Started comes once the tokens of every prompt are
    known, and before the first Delta; Finished once llama.cpp says it is done. Token ids are not told: llama.cpp names
    none in a chat, and elsewhere none of those it held back because half a character or stop string was in them.
    """

    def __init__(self, ask: Ask, context_length: int) -> None:
        self._ask = ask
        self._context_length = context_length
        self._started = False
        self._prompts: dict[int, tuple[int, int]] = {}
        self._processed: dict[int, int] = {}
        self._open_choices = ask.choices
        self._output_tokens = 0
        self._filters = [StopFilter(ask.stop) for _ in range(ask.choices)] if ask.stop else []
        self.expected_prompt_tokens = 0
        """Tokens of all prompts where somebody has counted them: Started need not wait for the last prompt then."""
        self.deltas = 0
        """Deltas with a token so far."""

    @property
    def kv_tokens(self) -> int:
        """Tokens this request has in the KV cache by now; those that are held back are missing."""
        return sum(self._processed.values()) + self.deltas

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
            len(self._prompts) == self._ask.prompts
            and self.computed_prompt_tokens + self.cached_tokens >= self.prompt_tokens
        )

    def take(self, data: bytes) -> Iterator[Event]:
        """Raises LoadBalancerError for an error in the stream, and for a prompt that leaves no room for the answer."""
        if data == DONE:
            if self._open_choices:
                raise EngineFailed("llama.cpp broke off the answer.")
            yield self._finish()
            return
        chunk = orjson.loads(data)
        if "choices" not in chunk:
            raise error_from_json(chunk, 500, self._ask)
        choices = chunk["choices"]
        progress = chunk.get("prompt_progress")
        if progress is not None:
            self._progress(choices[0]["index"] // self._ask.choices_per_prompt, progress)
            if not self._started and (self.expected_prompt_tokens or len(self._prompts) == len(self._ask.prompts)):
                yield self._start()
            return
        for choice in choices:
            delta = self._filtered(choice, chunk) if self._filters else self._delta(choice)
            if delta is not None:
                if not self._started:
                    yield self._start()
                yield delta
        usage = chunk.get("usage")
        if usage is not None:
            index = choices[0]["index"] // self._ask.choices_per_prompt if choices else 0
            self._prompts[index] = (usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"])
            self._output_tokens += usage["completion_tokens"]

    def _progress(self, prompt: int, progress: Mapping[str, int]) -> None:
        total, cached = progress["total"], progress["cache"]
        asked = self._ask.max_tokens if self._ask.explicit_limit else None
        if asked is not None and total + asked > self._context_length:
            raise too_long(total, asked, self._context_length, self._ask)
        if prompt not in self._prompts:
            self._prompts[prompt] = (total, cached)
        self._processed[prompt] = max(progress["processed"], self._processed.get(prompt, 0))

    def _start(self) -> Started:
        self._started = True
        return Started(self.expected_prompt_tokens or self.prompt_tokens, self.cached_tokens)

    def _finish(self) -> Finished:
        return Finished(self.prompt_tokens, self.cached_tokens, self._output_tokens)

    def _delta(self, choice: Mapping[str, Any]) -> Delta | None:
        reason = choice["finish_reason"]
        if reason is not None:
            self._open_choices -= 1
        reasoning = ""
        calls: tuple[ToolCallDelta, ...] = ()
        said = choice.get("delta")
        if said is None:
            text = choice["text"]
        else:
            text = said.get("content") or ""
            if len(said) > 1 or not text:
                reasoning = said.get("reasoning_content") or ""
                calls = tuple(map(_tool_call, said.get("tool_calls") or ()))
        if not (text or reasoning or calls or reason is not None):
            return None
        if reason is None:
            self.deltas += 1
        logprobs = choice.get("logprobs")
        return Delta(
            choice["index"],
            text,
            (),
            reasoning,
            calls,
            () if logprobs is None or self._ask.top_logprobs is None else self._logprobs(logprobs["content"]),
            None if reason is None else FinishReason(reason),
        )

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


def too_long(prompt: int, asked: int, context_length: int, ask: Ask) -> ContextLengthExceeded:
    """The refusal of a prompt that leaves less room than was asked for."""
    return ContextLengthExceeded(
        f"The context is {context_length} tokens; the prompt has {prompt} and {asked} more were asked for.",
        param=ask.prompt_field,
    )


_FIELD = re.compile(r"^Field '([^']+)': (?:\[json\.[^\]]*\] )?(.*)$", re.DOTALL)
_CLIENTS_FAULT = re.compile(
    r"^(?:Failed to parse|Cannot |Unsupported|Invalid|Missing|All non-assistant|Expected)"
    r"|jinja|template|not supported|unsupported|must be|is required"
)
"""What llama.cpp says with status 500 when a body does not go together with itself, the model or its chat template."""
_QUOTE = re.compile(r"[\s:;,]*[\n{\[].*", re.DOTALL)
"""Where llama.cpp begins to quote the request or the template: our messages hold neither."""


def error_from_body(body: bytes, status: int, ask: Ask) -> LoadBalancerError:
    """The error that an answer with an HTTP status other than 200 stands for."""
    try:
        return error_from_json(orjson.loads(body), status, ask)
    except orjson.JSONDecodeError:
        return EngineFailed(f"llama.cpp answered with status {status}.")


def error_from_json(answer: object, status: int, ask: Ask) -> LoadBalancerError:
    """The error that llama.cpp's error object stands for."""
    error = answer.get("error", answer) if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        return EngineFailed(f"llama.cpp answered with status {status}.")
    if error.get("type") == "exceed_context_size_error":
        prompt, limit = error.get("n_prompt_tokens"), error.get("n_ctx")
        return ContextLengthExceeded(
            f"The context is {limit} tokens; the prompt has {prompt} and leaves no room for an answer.",
            param=ask.prompt_field,
        )
    message = str(error.get("message", ""))
    field = _FIELD.match(message)
    if field is not None:
        return InvalidRequest(f"{field[1]}: {_QUOTE.sub('', field[2])}.", param=field[1])
    said = _QUOTE.sub("", message).rstrip(".")
    if error.get("code", status) == 400 or _CLIENTS_FAULT.search(message):
        return InvalidRequest(f"llama.cpp refused the request: {said}.", param=_param(message, ask))
    return EngineFailed(f"llama.cpp failed: {said}.")


def _param(message: str, ask: Ask) -> str | None:
    """The field that a message is about, where llama.cpp does not name it as such."""
    about = (
        ("tool_choice", "tool_choice"),
        ("tool", "tools"),
        ("schema", "response_format"),
        ("response_format", "response_format"),
        ("grammar", "grammar"),
        ("stop", "stop"),
        ("rompt", ask.prompt_field),
        ("essage", ask.prompt_field),
        ("content", ask.prompt_field),
        ("input is not supported", ask.prompt_field),
    )
    return next((param for word, param in about if word in message), None)
