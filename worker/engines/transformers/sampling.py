"""Chooses the tokens of a step, each sequence by its own rules and its own chance. Needs torch.

transformers keeps one set of sampling rules for all sequences of a batch, or three numbers of each at most. Whoever
stands in the place of its logits processors sees all scores of a step, though, and may decide: what `TokenChooser` has
chosen it marks, and the library then takes the likeliest token, which is the marked one.

A sequence draws one number for each token from a generator of its own, so chance repeats itself with the seed, whoever
else is in the batch. The scores are as stable as the arithmetic: in batches of other shapes sums are rounded otherwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch

from worker.engines.transformers.body import SamplingParams

MIN_TEMPERATURE = 1e-5
"""Below it the likeliest token is taken: scores divided by less overflow."""

GREEDY = SamplingParams(
    temperature=0.0,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    repetition_penalty=1.0,
    logit_bias=(),
    allowed_token_ids=(),
    min_tokens=0,
)
"""The likeliest token, and no other rule."""

RawLogprob = tuple[int, float, tuple[tuple[int, float], ...]]
"""A chosen token, its log probability, and the likeliest tokens with theirs."""


@dataclass(slots=True, eq=False)
class Chooser:
    """How one sequence chooses, and what it tells of that. The thread that steps writes, the event loop's reads."""

    params: SamplingParams
    chance: Random
    ends: Collection[int]
    """Tokens that end the sequence; `min_tokens` keeps them away."""
    top_logprobs: int | None
    begun_tokens: int = 0
    """Tokens of the answer that another engine chose: the last of what the library takes for the prompt."""
    logprobs: deque[RawLogprob] = field(default_factory=deque)
    """One for each token chosen and not yet read, if any are wanted."""
    taken_up: bool = False
    """Whether a step with this sequence has begun."""

    def skip(self, tokens: int) -> None:
        """Leaves out the chance of tokens that another engine chose, so that the same seed goes on as it would have."""
        self.begun_tokens = tokens
        if not self.is_greedy:
            for _ in range(tokens):
                self.chance.random()

    @property
    def is_greedy(self) -> bool:
        return self.params.temperature < MIN_TEMPERATURE

    @property
    def bends(self) -> bool:
        """Whether the scores are not taken as they are."""
        rules = self.params
        return bool(
            rules.presence_penalty
            or rules.frequency_penalty
            or rules.repetition_penalty != 1
            or rules.logit_bias
            or rules.allowed_token_ids
            or rules.min_tokens
        )

    def __deepcopy__(self, memo: object) -> Chooser:
        # A preempted sequence comes back as a copy of its state, and goes on with the same chance.
        return self


class TokenChooser:
    """Stands where the library's list of logits processors would stand. One batch at a time."""

    do_processing = True
    tensors_required = 0

    def __init__(self) -> None:
        self._states: list[Any] = []

    def check_kwargs(self, kwargs: object) -> None:
        """Called for every request; what it brings was checked long ago."""

    def fill_defaults(self, storage: object) -> None:
        """Nothing is kept in tensors."""

    def prepare_tensor_args(self, requests_in_batch: Sequence[Any], arg_storage: Any) -> Any:
        """Called before each step. Only those with a new token have a row of scores, in this order."""
        self._states = [request.state for request in requests_in_batch if request.has_new_token]
        return arg_storage

    def __call__(self, input_ids: Any, scores: Any, logits_processor_args: Any) -> Any:
        """Gives the chosen token of each row an infinite score, where the likeliest is not the chosen one anyway."""
        choosers = [chooser_of(state) for state in self._states]
        told = [row for row, chooser in enumerate(choosers) if chooser.top_logprobs is not None]
        raw = torch.log_softmax(scores[told], dim=-1) if told else None
        for row, chooser in enumerate(choosers):
            if chooser.bends:
                _bend(scores[row], chooser, self._states[row])
        drawn = [row for row, chooser in enumerate(choosers) if not chooser.is_greedy]
        if drawn:
            rows = torch.tensor(drawn, device=scores.device)
            scores[rows, _draw(scores[rows], [choosers[row] for row in drawn])] = torch.inf
        if raw is not None:
            _tell(raw, scores[told].argmax(dim=-1), [choosers[row] for row in told])
        return scores


def chooser_of(state: Any) -> Chooser:
    """The chooser that came with a request's state."""
    chooser: Chooser = state.logit_processor_kwargs["chooser"]
    return chooser


def _bend(row: Any, chooser: Chooser, state: Any) -> None:
    """Penalties, biases and bans, in place."""
    rules = chooser.params
    everything = state.initial_tokens + state.generated_tokens
    generated = everything[(state._true_initial_tokens or len(state.initial_tokens)) - chooser.begun_tokens :]
    if rules.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(everything)), device=row.device)
        there = row[seen]
        row[seen] = torch.where(there > 0, there / rules.repetition_penalty, there * rules.repetition_penalty)
    if generated and (rules.presence_penalty or rules.frequency_penalty):
        tokens, counts = torch.tensor(generated, device=row.device).unique(return_counts=True)
        row[tokens] -= rules.presence_penalty + rules.frequency_penalty * counts
    if rules.logit_bias:
        tokens, biases = zip(*rules.logit_bias, strict=True)
        row[torch.tensor(tokens, device=row.device)] += torch.tensor(biases, device=row.device)
    if rules.allowed_token_ids:
        allowed = torch.tensor(rules.allowed_token_ids, device=row.device)
        kept = row[allowed]
        row.fill_(-torch.inf)
        row[allowed] = kept
    if len(generated) < rules.min_tokens and chooser.ends:
        row[torch.tensor([*chooser.ends], device=row.device)] = -torch.inf


def _draw(scores: Any, choosers: Sequence[Chooser]) -> Any:
    """One token for each row, by its rules and its chance."""
    device = scores.device
    # Sums over a large vocabulary lose digits that decide; Apple's devices have no wider type.
    wide = torch.float32 if device.type == "mps" else torch.float64

    def column(values: Sequence[float]) -> Any:
        return torch.tensor(values, dtype=wide, device=device).unsqueeze(-1)

    rules = [chooser.params for chooser in choosers]
    probabilities = torch.softmax(scores.to(wide) / column([one.temperature for one in rules]), dim=-1)
    order = None
    if any(one.top_k or one.top_p < 1 or one.min_p for one in rules):
        probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
        size = probabilities.shape[-1]
        enough = probabilities >= column([one.min_p for one in rules]) * probabilities[:, :1]
        rank = torch.arange(size, device=device).unsqueeze(0)
        probabilities = probabilities * (rank < column([one.top_k or size for one in rules]))
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
        # The token that reaches the share is still in, and the likeliest always is.
        before = probabilities.cumsum(dim=-1) - probabilities
        within = (before < column([one.top_p for one in rules])) | (rank == 0)
        probabilities = probabilities * (enough & within)
    sums = probabilities.cumsum(dim=-1)
    points = column([chooser.chance.random() for chooser in choosers]) * sums[:, -1:]
    # The first whose sum is beyond the point: never one of probability 0.
    places = torch.searchsorted(sums, points, right=True).clamp_(max=sums.shape[-1] - 1)
    return (places if order is None else order.gather(-1, places)).squeeze(-1)


def _tell(raw: Any, chosen: Any, choosers: Sequence[Chooser]) -> None:
    """Writes down log probabilities as the model gave them, before rules and temperature."""
    count = max(1, *(chooser.top_logprobs or 0 for chooser in choosers))
    values, tokens = raw.topk(min(count, raw.shape[-1]), dim=-1)
    own = raw.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    rows = zip(choosers, chosen.tolist(), own.tolist(), tokens.tolist(), values.tolist(), strict=True)
    for chooser, token, logprob, likely, theirs in rows:
        top = tuple(zip(likely, theirs, strict=True))[: chooser.top_logprobs]
        chooser.logprobs.append((token, logprob, top))
