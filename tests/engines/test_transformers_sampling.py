"""How tokens are chosen, on scores made up for it: every rule for its own row, every chance for its own sequence."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field, replace
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from worker.engines.transformers.body import SamplingParams
from worker.engines.transformers.sampling import GREEDY, Chooser, TokenChooser

CHANCE = replace(GREEDY, temperature=1.0)
SCORES = [0.0, 1.0, 2.0, 3.0]
ENDS = (3,)


@dataclass
class State:
    """What is read of the library's state of a request."""

    chooser: Chooser
    initial_tokens: list[int] = field(default_factory=lambda: [0])
    generated_tokens: list[int] = field(default_factory=list)
    _true_initial_tokens: int = 0

    @property
    def logit_processor_kwargs(self) -> dict[str, Any]:
        return {"chooser": self.chooser}


def chooser(params: SamplingParams, seed: int = 0, top: int | None = None) -> Chooser:
    return Chooser(params, Random(seed), ENDS, top)


def choose(*states: State, scores: list[float] = SCORES, silent: int = 0) -> list[int]:
    """The token of each; `silent` sequences gain none, and have rows of scores behind the others that mean nothing."""
    requests = [SimpleNamespace(state=None, has_new_token=False) for _ in range(silent)]
    requests += [SimpleNamespace(state=state, has_new_token=True) for state in states]
    tokens = TokenChooser()
    storage = object()
    assert tokens.prepare_tensor_args(requests, storage) is storage
    rows = torch.tensor([scores] * (len(states) + silent))
    return list(tokens(None, rows, None).argmax(dim=-1)[: len(states)].tolist())


def shares(params: SamplingParams, count: int = 4000) -> dict[int, float]:
    """How often each token is chosen."""
    one = chooser(params)
    drawn = Counter(token for _ in range(count // 50) for token in choose(*[State(one)] * 50))
    return {token: number / count for token, number in sorted(drawn.items())}


def test_without_chance_the_likeliest_is_taken() -> None:
    assert choose(State(chooser(GREEDY)), State(chooser(replace(GREEDY, temperature=1e-7))), silent=2) == [3, 3]


def test_chance_follows_the_probabilities() -> None:
    expected = torch.softmax(torch.tensor(SCORES), dim=-1).tolist()
    for params in (CHANCE, replace(CHANCE, top_k=4), replace(CHANCE, min_p=1e-6)):
        assert list(shares(params).values()) == pytest.approx(expected, abs=0.03)


def test_a_high_temperature_makes_all_alike() -> None:
    assert list(shares(replace(CHANCE, temperature=1000)).values()) == pytest.approx([0.25] * 4, abs=0.03)


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        ({"top_k": 1}, {3}),
        ({"top_k": 2}, {2, 3}),
        ({"top_k": 99}, {0, 1, 2, 3}),
        ({"top_p": 0.0}, {3}),
        ({"top_p": 0.64}, {3}),
        ({"top_p": 0.65}, {2, 3}),
        ({"min_p": 1.0}, {3}),
        ({"min_p": 0.3}, {2, 3}),
        ({"top_k": 3, "top_p": 0.5}, {3}),
        ({"allowed_token_ids": (0, 1)}, {0, 1}),
        ({"min_tokens": 1}, {0, 1, 2}),
        ({"logit_bias": ((0, 100.0),)}, {0}),
        ({"logit_bias": ((3, -100.0), (2, -100.0))}, {0, 1}),
    ],
)
def test_a_rule_leaves_only_what_it_allows(rules: dict[str, Any], left: set[int]) -> None:
    assert {*shares(replace(CHANCE, **rules), 2000)} == left


def test_penalties_follow_what_was_generated_and_what_was_there() -> None:
    state = State(chooser(replace(GREEDY, frequency_penalty=0.6)), generated_tokens=[3, 3])
    assert choose(state) == [2]
    state = State(chooser(replace(GREEDY, presence_penalty=0.6)), generated_tokens=[3, 3])
    assert choose(state) == [3]
    state = State(chooser(replace(GREEDY, presence_penalty=1.1)), generated_tokens=[3])
    assert choose(state) == [2]
    state = State(chooser(replace(GREEDY, presence_penalty=2)), initial_tokens=[3])
    assert choose(state) == [3], "a prompt has no presence"
    state = State(chooser(replace(GREEDY, repetition_penalty=2)), initial_tokens=[3])
    assert choose(state) == [2]
    # A score below zero grows worse too.
    assert choose(state, scores=[-3.0, -2.5, -2.2, -2.0]) == [2]


def test_what_was_generated_before_a_preemption_still_counts() -> None:
    rules = chooser(replace(GREEDY, presence_penalty=2))
    assert choose(State(rules, initial_tokens=[0, 3], _true_initial_tokens=1)) == [2]
    enough = chooser(replace(GREEDY, min_tokens=2))
    assert choose(State(enough, initial_tokens=[0, 1], _true_initial_tokens=1)) == [2]
    assert choose(State(enough, initial_tokens=[0, 1, 1], _true_initial_tokens=1)) == [3]
    assert deepcopy(enough) is enough


def test_each_sequence_has_a_chance_of_its_own() -> None:
    alone = [chooser(CHANCE, seed) for seed in range(3)]
    first = [[choose(State(one))[0] for _ in range(30)] for one in alone]
    crowd = [State(chooser(CHANCE, seed)) for seed in range(3)]
    together = [choose(*crowd, State(chooser(GREEDY))) for _ in range(30)]
    assert [[step[row] for step in together] for row in range(3)] == first
    assert {step[3] for step in together} == {3}


def test_log_probabilities_are_those_before_any_rule() -> None:
    raw = torch.log_softmax(torch.tensor(SCORES), dim=-1).tolist()
    told = [
        chooser(replace(GREEDY, logit_bias=((0, 100.0),)), top=2),
        chooser(GREEDY, top=0),
        chooser(GREEDY),
        chooser(GREEDY, top=20),
    ]
    choose(*map(State, told))
    assert [[token for token, _, _ in one.logprobs] for one in told] == [[0], [3], [], [3]]
    assert told[0].logprobs[0][1] == pytest.approx(raw[0])
    assert [token for token, _ in told[0].logprobs[0][2]] == [3, 2]
    assert told[1].logprobs[0][2] == ()
    assert [logprob for _, logprob in told[3].logprobs[0][2]] == pytest.approx(raw[::-1])
