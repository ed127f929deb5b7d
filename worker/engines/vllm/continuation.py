"""Answers that another engine began, on their way through vLLM.

vLLM computes them as a longer prompt. What it puts out is made into what it would have put out of the whole answer,
the begun part together with its first output: so its parsers, its stop strings and the usage know of one answer only.
In the end `Told` leaves out what the caller has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

from lbcore.errors import CannotContinue
from lbcore.generation import Continuation
from worker.engines.begun import Begun, Told, begin

_OF_THE_WHOLE = ("bad_words", "frequency_penalty", "presence_penalty", "repetition_detection", "structured_outputs")
"""Sampling parameters by which a token depends on all tokens of the answer before it, of which vLLM would take those
that are begun for the prompt's."""

_TURN = 256
"""Begun tokens that are said again before others get a turn."""


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """What of vLLM's output of one sequence is read here."""

    text: str
    token_ids: Sequence[int]
    finish_reason: str | None = None
    logprobs: Any = None
    index: int = 0


class RequestOutput(NamedTuple):
    """What of vLLM's output of a prompt is read here."""

    prompt_token_ids: Sequence[int]
    outputs: Sequence[CompletionOutput]
    num_cached_tokens: int = 0
    metrics: Any = None
    prompt_logprobs: Any = None


class Reader:
    """vLLM's detokenizer of one answer, from its first token on."""

    def __init__(self, detokenizer: Any) -> None:
        self.detokenizer = detokenizer
        self.stopped = False
        """Whether it met a stop string."""
        self.told: list[str] = []
        """What vLLM would have told with each token: it holds back what may become a stop string."""

    def feed(self, token: int) -> str:
        before = len(self.detokenizer.output_text)
        if self.detokenizer.update([token], False) is not None:
            self.stopped = True
        self.told.append(self.detokenizer.get_next_output_text(False, True))
        return str(self.detokenizer.output_text[before:])


class Continued:
    """One answer that another engine began."""

    def __init__(self, continuation: Continuation, is_parsed: bool) -> None:
        """`is_parsed` says that vLLM has a parser for what the model says."""
        self._continuation = continuation
        self._is_parsed = is_parsed
        self._prompt: Sequence[int] = ()
        self._begun: Begun[Reader]
        self._tokens_left = 0
        self.told: Told
        """What the caller has, once the tokens of the answer are known."""

    @property
    def tokens(self) -> int:
        """The tokens that stand for what there is, once they are known."""
        return len(self._begun.token_ids)

    def lengthen(self, engine: Any, prompt: Any, params: Any) -> Any:
        """vLLM's prompt with the answer so far behind it; the sampling parameters are made to be those of the rest.

        Raises CannotContinue.
        """
        refuse_params(params)
        if prompt.get("type") not in ("token", "multimodal") or engine.tokenizer is None:
            raise CannotContinue("vLLM goes on only behind prompts of tokens.")
        tokenizer = engine.tokenizer
        self._prompt = prompt["prompt_token_ids"]
        self._begun = begin(
            self._continuation,
            lambda: Reader(new_detokenizer(tokenizer, self._prompt, params)),
            lambda text: tokenizer.encode(text, add_special_tokens=False),
            engine.model_config.get_vocab_size(),
            is_parsed=self._is_parsed,
        )
        self.told = Told(self._continuation, self.tokens, self._begun.reader.detokenizer.stop_buffer_length)
        self._tokens_left = params.max_tokens - self.tokens
        # Stop strings may lie across the border, and are looked for here.
        params.stop = []
        params.max_tokens = self._tokens_left
        params.min_tokens = max(0, params.min_tokens - self.tokens)
        return {**prompt, "prompt_token_ids": [*self._prompt, *self._begun.token_ids]}

    @property
    def is_at_its_end(self) -> bool:
        """Whether nothing can follow."""
        return self._begun.reader.stopped or self._tokens_left <= 0

    async def end(self) -> AsyncGenerator[RequestOutput, None]:
        """The outputs of an answer that is at its end."""
        async for output in self._again(RequestOutput(self._prompt, ())):
            yield output
        reader = self._begun.reader
        text = reader.detokenizer.get_next_output_text(True, True)
        last = CompletionOutput(text, (), "stop" if reader.stopped else "length")
        yield RequestOutput(self._prompt, (last,))

    async def outputs(self, rest: AsyncGenerator[Any, None]) -> AsyncGenerator[RequestOutput, None]:
        """The outputs of the whole answer, made of vLLM's of the rest."""
        detokenizer = self._begun.reader.detokenizer
        is_begun = False
        async with aclosing(rest):
            async for output in rest:
                shared = RequestOutput(
                    self._prompt, (), output.num_cached_tokens or 0, output.metrics, output.prompt_logprobs
                )
                if not is_begun:
                    is_begun = True
                    async for again in self._again(shared):
                        yield again
                (one,) = output.outputs
                before = detokenizer.num_output_tokens()
                stop = detokenizer.update([*one.token_ids], one.finish_reason == "stop")
                count = detokenizer.num_output_tokens() - before
                reason = one.finish_reason if stop is None else "stop"
                text = detokenizer.get_next_output_text(reason is not None, True)
                logprobs = one.logprobs[:count] if one.logprobs else None
                yield shared._replace(outputs=(CompletionOutput(text, one.token_ids[:count], reason, logprobs),))
                if stop is not None:
                    return

    async def _again(self, shared: RequestOutput) -> AsyncGenerator[RequestOutput, None]:
        """The outputs of what is begun, each token by itself: parsers take pieces otherwise than what they make up."""
        for count, (token, text) in enumerate(zip(self._begun.token_ids, self._begun.reader.told, strict=True), 1):
            yield shared._replace(outputs=(CompletionOutput(text, (token,)),))
            if count % _TURN == 0:
                await asyncio.sleep(0)


def refuse_request(asked: Any) -> None:
    """Raises CannotContinue for a request whose answer is not one text that goes on from a prompt."""
    prompt = getattr(asked, "prompt", None)
    has_several = isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int)
    if (asked.n or 1) > 1 or has_several:
        raise CannotContinue("vLLM goes on with one choice only.")
    if asked.echo or getattr(asked, "suffix", None):
        raise CannotContinue("vLLM goes on with what stands behind the prompt only.")
    if getattr(asked, "tool_choice", None) not in (None, "none", "auto"):
        raise CannotContinue("vLLM does not go on in the middle of a tool call.")
    if not getattr(asked, "include_reasoning", True):
        raise CannotContinue("vLLM does not go on behind reasoning that was not told.")


def refuse_params(params: Any) -> None:
    """Raises CannotContinue for sampling parameters that must see the answer from its beginning."""
    for name in _OF_THE_WHOLE:
        if getattr(params, name):
            raise CannotContinue(f"vLLM does not go on under {name}.")
    if params.thinking_token_budget is not None:
        raise CannotContinue("vLLM does not go on under thinking_token_budget.")


def new_detokenizer(tokenizer: Any, prompt: Sequence[int], params: Any) -> Any:
    """vLLM's detokenizer of an answer to a prompt."""
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    # Of vLLM's own request it reads these.
    request = SimpleNamespace(request_id="", sampling_params=params, prompt_token_ids=[*prompt], prompt_embeds=None)
    return IncrementalDetokenizer.from_new_request(tokenizer, request)
