"""Conversations behind shared system prompts, as text and as the simulator plays them. Pure, the same for a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import log
from random import Random

import orjson

from bench.dataplane.system import MODEL
from lbcore.generation import Dialect, GenerationRequest
from lbcore.simulator.workload import Call, Conversation, Workload
from worker.engines.sim.body import BYTES_PER_TOKEN, read_body

_LEAD_S = 120.0
"""Conversations begin so long before the first request that is kept: then as many are under way as ever."""
_DEVIATION = 0.6
"""Of the logarithm of a length."""
_LETTERS = bytes(b" abcdefghijklmnopqrstuvwxyz.,-?!"[byte % 32] for byte in range(256))


@dataclass(frozen=True, slots=True)
class Shape:
    """What the traffic is like. Lengths are means, in tokens; those of single texts are log-normal."""

    systems: int = 24
    """System prompts; the k-th is asked with 1/k as often as the first."""
    system_tokens: int = 1500
    question_tokens: int = 400
    answer_tokens: int = 100
    most_turns: int = 7
    """A conversation has any number of turns up to this, all equally likely."""
    pause_s: float = 14.0
    """Mean time from one turn to the next, half of it certain."""


SHAPES: Mapping[str, Shape] = {"mixed": Shape(), "shared": Shape(systems=32, question_tokens=250)}
"""By name. In the second a larger part of each prompt is shared."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of the traffic."""

    number: int
    at_s: float
    """From the begin of the run."""
    messages: tuple[tuple[str, str], ...]
    """Role and text."""
    output_tokens: int

    def body(self) -> bytes:
        """As the client posts it."""
        return orjson.dumps(
            {
                "model": MODEL,
                "messages": [{"role": role, "content": text} for role, text in self.messages],
                "max_tokens": self.output_tokens,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )


def traffic(shape: Shape, rate: float, seconds: float, seed: int) -> list[Ask]:
    """Requests within so many seconds, `rate` of them a second on average, in order of time.

    What a turn's prompt says the assistant answered is as long as the answer was to be, and not what it said: engines
    keep prompts for later, not answers.
    """
    rng = Random(seed)
    systems = [_text(rng, _length(rng, shape.system_tokens)) for _ in range(shape.systems)]
    weights = list(accumulate(1 / rank for rank in range(1, shape.systems + 1)))
    found: list[tuple[float, tuple[tuple[str, str], ...], int]] = []
    per_s = rate / ((1 + shape.most_turns) / 2)
    begins = -_LEAD_S
    while (begins := begins + rng.expovariate(per_s)) < seconds:
        at = begins
        said = [("system", rng.choices(systems, cum_weights=weights)[0])]
        for _ in range(rng.randint(1, shape.most_turns)):
            said.append(("user", _text(rng, _length(rng, shape.question_tokens))))
            answer = _length(rng, shape.answer_tokens)
            found.append((at, tuple(said), answer))
            said.append(("assistant", _text(rng, answer)))
            at += shape.pause_s / 2 + rng.expovariate(2 / shape.pause_s)
    kept = sorted((one for one in found if 0 <= one[0] < seconds), key=lambda one: one[0])
    return [Ask(number, *one) for number, one in enumerate(kept)]


def simulated(asks: Sequence[Ask], block_tokens: int) -> Workload:
    """The same for the simulator: each prompt's tokens and blocks are what the simulated engine makes of its body."""
    conversations = []
    for ask in asks:
        prompt = read_body(GenerationRequest(str(ask.number), Dialect.CHAT, ask.body())).prompts[0]
        call = Call(prompt.tokens, ask.output_tokens, prompt.block_hashes(block_tokens))
        conversations.append(Conversation(str(ask.number), ask.at_s, (call,)))
    return Workload("ordering", conversations, block_tokens)


def _length(rng: Random, mean: int) -> int:
    return max(1, round(rng.lognormvariate(log(mean) - _DEVIATION**2 / 2, _DEVIATION)))


def _text(rng: Random, tokens: int) -> str:
    """Letters that no other text has in this order."""
    return rng.randbytes(BYTES_PER_TOKEN * tokens).translate(_LETTERS).decode()
