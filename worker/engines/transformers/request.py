"""A request on its way: its choices, what was told of it, and what it may have. Knows no event loop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from lbcore.errors import (
    CannotContinue,
    ContextLengthExceeded,
    InvalidRequest,
    LoadBalancerError,
)
from lbcore.generation import Continuation, Delta, Event, Finished, Started, TokenLogprob, TopLogprob
from worker.engine import Emit
from worker.engines.begun import Begun, Told, begin, is_empty, refusal
from worker.engines.ends import closed, surprised
from worker.engines.transformers.body import Ask
from worker.engines.transformers.choice import Choice
from worker.engines.transformers.detokenizer import Detokenizer
from worker.engines.transformers.vocabulary import Vocabulary

if TYPE_CHECKING:
    from worker.engines.transformers.sampling import Chooser

CONTEXT_TOKENS = 8
"""Tokens of a completion's prompt by which the text of its first token is told: what matters is the last word."""


@dataclass(slots=True, eq=False)
class ChoiceSequence:
    """One choice, waiting or being computed."""

    key: str
    request: Request
    prompt_index: int
    prompt: list[int]
    max_tokens: int
    choice: Choice
    chooser: Chooser
    told: Told | None = None
    """What of the choice another engine told."""
    taken: int = 0
    """Tokens of it that were taken from the runner."""

    @property
    def is_at_its_end(self) -> bool:
        """Whether nothing is left to be computed before it begins."""
        return self.max_tokens <= 0 or self.choice.stopped

    def go_on(self, begun: Begun[Detokenizer], continuation: Continuation) -> None:
        """Takes up what another engine began. Raises CannotContinue."""
        tokens = len(begun.token_ids)
        self.prompt = [*self.prompt, *begun.token_ids]
        self.max_tokens -= tokens
        self.chooser.skip(tokens)
        self.told = Told(continuation, 0, max(map(len, self.request.ask.stop), default=1) - 1)
        self.told.rest(Delta(text=self.choice.recall(begun.texts)))

    def take(self, tokens: Sequence[int], is_over: bool, vocabulary: Vocabulary) -> Delta | None:
        """What is new in all tokens of the sequence so far. Raises CannotContinue."""
        new, self.taken = tokens[self.taken :], len(tokens)
        logprobs = [] if self.request.ask.top_logprobs is None else [self._logprob(vocabulary) for _ in new]
        delta = self.choice.gain(new, logprobs, is_over)
        return delta if self.told is None else self.told.rest(delta)

    def _logprob(self, vocabulary: Vocabulary) -> TokenLogprob:
        token, logprob, top = self.chooser.logprobs.popleft()
        text, raw = vocabulary.token(token)
        named = [(*vocabulary.token(other), theirs) for other, theirs in top]
        return TokenLogprob(
            text, logprob, raw, tuple(TopLogprob(name, theirs, octets) for name, octets, theirs in named)
        )


@dataclass(slots=True, eq=False)
class Request:
    """An accepted request. Once `over`, nothing more is told of it, whoever was told of a token and aborted."""

    request_id: str
    emit: Emit
    ask: Ask
    turn: tuple[int, int]
    """Smaller goes first; no two are the same."""
    continuation: Continuation | None = None
    prompt_tokens: int = 0
    begun_tokens: int = 0
    """Of an answer that another engine began."""
    cached_tokens: int = 0
    sequences: list[ChoiceSequence] = field(default_factory=list)
    over: bool = False
    _begun_prompts: set[int] = field(default_factory=set)
    _started: bool = False
    _produced: bool = False

    @property
    def output_tokens(self) -> int:
        return sum(sequence.choice.tokens for sequence in self.sequences)

    @property
    def is_complete(self) -> bool:
        return all(sequence.choice.ended for sequence in self.sequences)

    def begin(self, prompt_index: int, cached_tokens: int) -> None:
        """A choice is taken up. What further ones with its prompt find in the cache, this one has computed."""
        if prompt_index not in self._begun_prompts:
            self._begun_prompts.add(prompt_index)
            self.cached_tokens += cached_tokens
        if not self._started:
            self._started = True
            self._tell(Started(self.prompt_tokens + self.begun_tokens, self.cached_tokens))

    def finished(self) -> Finished:
        """Its end, once it is complete."""
        return Finished(self.prompt_tokens, min(self.cached_tokens, self.prompt_tokens), self.output_tokens)

    def gain(self, delta: Delta) -> None:
        self._produced = True
        self._tell(delta)

    def closing(self) -> LoadBalancerError:
        """How it ends when the engine is closed."""
        return closed(self._produced)

    def _tell(self, event: Event) -> None:
        if not self.over:
            self.emit(event)


def room_for_answer(prompt_tokens: int, ask: Ask, context_length: int) -> int:
    """Tokens that each choice with a prompt may have. Raises ContextLengthExceeded."""
    room, asked = context_length - prompt_tokens, ask.max_tokens
    if room < (asked or 1):
        wish = "leaves no room for an answer" if asked is None else f"{asked} more were asked for"
        raise ContextLengthExceeded(
            f"The context is {context_length} tokens; the prompt has {prompt_tokens} and {wish}.",
            param=ask.prompt_field,
        )
    return room if asked is None else asked


class Encoded(NamedTuple):
    """The tokens of a request."""

    prompts: list[list[int]]
    begun: Begun[Detokenizer] | None = None
    """Of what there is of its answer."""


def encode(ask: Ask, continuation: Continuation | None, vocabulary: Vocabulary) -> Encoded:
    """The tokens of a request. Raises InvalidRequest, and CannotContinue."""
    prompts = vocabulary.encode(ask)
    if continuation is None:
        return Encoded(prompts)
    if len(prompts) * ask.choices_per_prompt > 1:
        raise CannotContinue("The engine goes on with one choice only.")
    if is_empty(continuation):
        return Encoded(prompts)
    if continuation.reasoning:
        raise CannotContinue("The engine tells no reasoning.")
    begun = begin(
        continuation,
        lambda: new_detokenizer(ask, prompts[0], vocabulary),
        vocabulary.encode_text,
        vocabulary.size,
    )
    return Encoded(prompts, begun)


def new_detokenizer(ask: Ask, prompt: Sequence[int], vocabulary: Vocabulary) -> Detokenizer:
    """The detokenizer of an answer to a prompt."""
    context = prompt[-CONTEXT_TOKENS:] if ask.chat is None else ()
    return Detokenizer(vocabulary.decode, vocabulary.special, context)


def make_sequences(
    request: Request,
    encoded: Encoded,
    context_length: int,
    vocabulary: Vocabulary,
    end_tokens: Iterable[int],
    seeds: Random,
) -> None:
    """Gives a request its sequences, those of one prompt after those of the other.

    Raises:
        ContextLengthExceeded: a prompt leaves no room for what was asked for.
        CannotContinue: what another engine told is no part of the answer.
    """
    from worker.engines.transformers.sampling import Chooser

    ask, prompts, begun = request.ask, encoded.prompts, encoded.begun
    limits = [room_for_answer(len(prompt), ask, context_length) for prompt in prompts]
    ends = frozenset(ask.stop_token_ids if ask.ignore_eos else (*end_tokens, *ask.stop_token_ids))
    request.prompt_tokens = sum(map(len, prompts))
    for prompt_index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        seed = seeds.getrandbits(64) if ask.seed is None else ask.seed
        for number in range(ask.choices_per_prompt):
            index = prompt_index * ask.choices_per_prompt + number
            detokenizer = new_detokenizer(ask, prompt, vocabulary) if begun is None else begun.reader
            request.sequences.append(
                ChoiceSequence(
                    key=f"{request.turn[1]}-{index}",
                    request=request,
                    prompt_index=prompt_index,
                    prompt=prompt,
                    max_tokens=limit,
                    choice=Choice(index, detokenizer, ask.stop, ends, ask.sampling.min_tokens),
                    # Text, so that neither the seeds 1 and 2 nor the choices 0 and 1 are anything like each other.
                    chooser=Chooser(ask.sampling, Random(f"{seed} {number}"), ends, ask.top_logprobs),
                )
            )
    if begun is not None and request.continuation is not None:
        (sequence,) = request.sequences
        request.begun_tokens = len(begun.token_ids)
        sequence.go_on(begun, request.continuation)


def check_tokens(ask: Ask, size: int) -> None:
    """Raises InvalidRequest for token ids that a vocabulary of this size does not have."""
    named = (
        ("stop_token_ids", ask.stop_token_ids),
        ("allowed_token_ids", ask.sampling.allowed_token_ids),
        ("logit_bias", tuple(token for token, _ in ask.sampling.logit_bias)),
    )
    for name, tokens in named:
        if tokens and max(tokens) >= size:
            raise InvalidRequest(f"{name} holds a token id over {size - 1}.", param=name)


def told(error: BaseException, continuation: Continuation | None = None) -> LoadBalancerError:
    """What to tell of an error, to a request for an answer of which there is so much already."""
    return refusal(error, continuation) if isinstance(error, LoadBalancerError) else surprised(error)
