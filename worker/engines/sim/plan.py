"""What a request makes the simulated engine compute: its sequences, and what each of them answers.

Pure, but for the clock that stamps tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

from lbcore.errors import CannotContinue, ContextLengthExceeded, InvalidRequest
from lbcore.generation import Delta, Dialect, Embedding, FinishReason, GenerationRequest
from worker.engines.sim.answer import behind, deltas, draw_answer, draw_length, stamped_deltas
from worker.engines.sim.body import BYTES_PER_TOKEN, Ask, Prompt, read_body
from worker.engines.sim.embedding import draw_embedding, read_embedding_body

Output = Iterator[Delta | Embedding]
"""A delta for each output token of a sequence, or the one vector of its prompt."""


class PlannedPrompt(NamedTuple):
    """A prompt, and the sequences that begin with it."""

    prompt: Prompt
    prompt_tokens: int
    is_cached: bool
    """Whether its blocks are looked for in the cache, and left there."""
    answers: list[tuple[int, Output]]
    """For each sequence its output tokens and its output."""
    begun: tuple[int, int] = (0, 0)
    """Of an answer that another worker began: its part of the tokens of the prompt, and the tokens it had there."""


@dataclass(frozen=True, slots=True)
class Planner:
    """Makes plans under the options of one engine; `SimOptions` says what they mean."""

    context_length: int
    seed: int
    stamp: bool
    embedding_size: int

    def plan(self, request: GenerationRequest) -> list[PlannedPrompt]:
        """Raises InvalidRequest for what is no such body or does not fit the context."""
        if request.dialect is Dialect.EMBEDDING:
            return self._embeddings(request)
        ask = read_body(request)
        if request.continuation is not None:
            return [self._continued(ask, request.continuation.text)]
        return [self._planned(ask, index) for index in range(len(ask.prompts))]

    def _embeddings(self, request: GenerationRequest) -> list[PlannedPrompt]:
        ask = read_embedding_body(request, self.embedding_size)
        planned = []
        for index, prompt in enumerate(ask.inputs):
            tokens = prompt.tokens
            if tokens > self.context_length:
                message = f"The context is {self.context_length} tokens; the input at {index} has {tokens}."
                raise ContextLengthExceeded(message, param="input")
            output = draw_embedding(index, prompt.answer_key(self.seed, 0), ask.size)
            planned.append(PlannedPrompt(prompt, tokens, False, [(0, output)]))
        return planned

    def _planned(self, ask: Ask, index: int) -> PlannedPrompt:
        """One of the prompts, with the number of tokens and the deltas of each of its choices."""
        prompt = ask.prompts[index]
        prompt_tokens = prompt.tokens
        key = prompt.answer_key(self.seed, ask.seed)
        length, limited = self._length(ask, prompt_tokens, key)
        first = index * ask.choices_per_prompt
        if self.stamp:
            answers = _stamped(ask, first, length, limited)
        else:
            answers = []
            for number in range(ask.choices_per_prompt):
                answer = draw_answer(key, number, length, limited, ask.stop)
                answers.append((len(answer.tokens), deltas(answer, first + number, ask.top_logprobs)))
        return PlannedPrompt(prompt, prompt_tokens, True, answers)

    def _continued(self, ask: Ask, text: str) -> PlannedPrompt:
        if self.stamp or len(ask.prompts) * ask.choices_per_prompt > 1:
            raise CannotContinue("The simulated engine goes on with one choice only, and not with stamps.")
        prompt, prompt_tokens, is_cached, [(tokens, output)] = self._planned(ask, 0)[:4]
        begun_tokens, rest = behind(cast("Iterator[Delta]", output), text)
        is_text = prompt.bytes_per_token == BYTES_PER_TOKEN
        more = text.encode() if is_text else bytes(begun_tokens * prompt.bytes_per_token)
        longer = Prompt(prompt.data + more, prompt.bytes_per_token)
        begun = longer.tokens - prompt_tokens, begun_tokens
        return PlannedPrompt(longer, longer.tokens, is_cached, [(tokens - begun_tokens, rest)], begun)

    def _length(self, ask: Ask, prompt_tokens: int, key: bytes) -> tuple[int, bool]:
        """Tokens that each choice may have, and whether that is a limit rather than the answer's natural end."""
        limit, asked = self.context_length, ask.max_tokens
        room = limit - prompt_tokens
        if room < (asked or 1):
            wish = "leaves no room for an answer" if asked is None else f"{asked} more were asked for"
            message = f"The context is {limit} tokens; the prompt has {prompt_tokens} and {wish}."
            raise ContextLengthExceeded(message, param=ask.prompt_field)
        if asked is not None:
            return asked, True
        natural = draw_length(key)
        return min(natural, room), natural > room


def _stamped(ask: Ask, first: int, length: int, limited: bool) -> list[tuple[int, Output]]:
    for name, asked in (("stop", ask.stop), ("logprobs", ask.top_logprobs is not None)):
        if asked:
            raise InvalidRequest(f"{name} is not supported by a stamping engine.", param=name)
    reason = FinishReason.LENGTH if limited else FinishReason.STOP
    choices = range(first, first + ask.choices_per_prompt)
    return [(length, stamped_deltas(length, choice, reason, time.monotonic_ns)) for choice in choices]
