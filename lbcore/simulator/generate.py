"""Made-up traffic, each kind with one thing that tells policies apart. Deterministic by seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import log
from random import Random

from lbcore.simulator.workload import Call, Conversation, Workload

BLOCK_TOKENS = 128
_FAMILY = 1 << 32
"""Blocks of one prompt family have this many identities of their own."""


def poisson(calls: int, seed: int = 1) -> Workload:
    """Unrelated prompts of some 1,000 tokens at one arrival a second: load alone decides."""
    rng = Random(seed)
    arrivals = _arrivals(rng, calls)
    conversations = [
        Conversation(str(number), at, (Call(_length(rng, 1000), _length(rng, 250)),))
        for number, at in enumerate(arrivals)
    ]
    return Workload("poisson", conversations, BLOCK_TOKENS)


def bursts(calls: int, seed: int = 1) -> Workload:
    """The same in bursts of 1 to 100 calls within a tenth of a second, one call a second on average."""
    rng = Random(seed)
    conversations: list[Conversation] = []
    at = 0.0
    while len(conversations) < calls:
        size = rng.randint(1, 100)
        at += rng.expovariate(1 / size)
        for _ in range(min(size, calls - len(conversations))):
            call = Call(_length(rng, 1000), _length(rng, 250))
            conversations.append(Conversation(str(len(conversations)), at + rng.random() * 0.1, (call,)))
    return Workload("bursts", conversations, BLOCK_TOKENS)


def one_prefix(calls: int, seed: int = 1) -> Workload:
    """Every prompt begins with the same 4,096 tokens and ends with some 500 of its own."""
    return _shared("one_prefix", calls, seed, groups=1, system=4096, question=500, output=200)


def system_prompts(calls: int, seed: int = 1) -> Workload:
    """150 system prompts of 6,016 tokens with questions of some 1,200: more than one worker's cache can hold."""
    return _shared("system_prompts", calls, seed, groups=150, system=6016, question=1200, output=500)


def multi_turn(calls: int, seed: int = 1) -> Workload:
    """Conversations that begin at any time and go on for 1 to 12 turns, with pauses of some 20 s to think; each prompt
    holds all that was said before."""
    rng = Random(seed)
    conversations: list[Conversation] = []
    made = 0
    at = 0.0
    while made < calls:
        turns = rng.randint(1, 12)
        at += rng.expovariate(1 / turns)
        talk: list[Call] = []
        family = len(conversations) * _FAMILY
        length = _length(rng, 1500)
        for turn in range(turns):
            output = _length(rng, 250)
            blocks = range(family, family + (length + output) // BLOCK_TOKENS)
            talk.append(Call(length, output, blocks, rng.expovariate(1 / 20) if turn else 0.0))
            length += output + _length(rng, 300)
        conversations.append(Conversation(str(len(conversations)), at, tuple(talk)))
        made += turns
    return Workload("multi_turn", conversations, BLOCK_TOKENS)


def long_mix(calls: int, seed: int = 1) -> Workload:
    """One prompt in twenty has 16,000 to 100,000 tokens, the others some 600."""
    rng = Random(seed)
    conversations = []
    for number, at in enumerate(_arrivals(rng, calls)):
        length = rng.randint(16_000, 100_000) if rng.random() < 0.05 else _length(rng, 600)
        conversations.append(Conversation(str(number), at, (Call(length, _length(rng, 250)),)))
    return Workload("long_mix", conversations, BLOCK_TOKENS)


GENERATORS: Mapping[str, Callable[[int, int], Workload]] = {
    "bursts": bursts,
    "long_mix": long_mix,
    "multi_turn": multi_turn,
    "one_prefix": one_prefix,
    "poisson": poisson,
    "system_prompts": system_prompts,
}
"""Kinds of traffic by name; each takes a number of calls and a seed, and makes about one call a second."""


def _shared(name: str, calls: int, seed: int, *, groups: int, system: int, question: int, output: int) -> Workload:
    rng = Random(seed)
    conversations = []
    for number, at in enumerate(_arrivals(rng, calls)):
        # Some prompts are asked with more than others, as names in a text are.
        group = min(int(rng.paretovariate(1.0)) - 1, groups - 1) if rng.random() < 0.5 else rng.randrange(groups)
        length = system + _length(rng, question)
        shared = range(group * _FAMILY, group * _FAMILY + system // BLOCK_TOKENS)
        own = (groups + 1 + number) * _FAMILY
        blocks = (*shared, *range(own, own + length // BLOCK_TOKENS - len(shared)))
        conversations.append(Conversation(str(number), at, (Call(length, _length(rng, output), blocks),)))
    return Workload(name, conversations, BLOCK_TOKENS)


def _arrivals(rng: Random, calls: int) -> list[float]:
    at = 0.0
    return [at := at + rng.expovariate(1.0) for _ in range(calls)]


def _length(rng: Random, mean: float) -> int:
    """Log-normal with a deviation of 0.8 in the exponent, as lengths of chats roughly are."""
    return max(1, round(rng.lognormvariate(log(mean) - 0.32, 0.8)))
