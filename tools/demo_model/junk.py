"""Questions the demo model cannot answer, and system prompts it must not be distracted by."""

import random
from typing import Final

_NOUNS: Final = """apple bridge castle dog engine forest garden hammer island jacket kitchen lamp mountain needle
ocean piano queen river sandwich tiger umbrella village window yacht zebra book chair door elephant farmer
giraffe house insect jungle king letter mirror night orange pencil question rabbit school table university
violin water year animal bicycle country doctor evening family guitar history idea journey knife language
machine neighbour office planet quarter restaurant summer teacher uncle valley weather airport bread cheese
database energy festival government hospital internet javascript kernel library music number operating system
physics python recipe science tomato vegetable wine atom bottle computer dinosaur earthquake football gold
hotel ice jazz kitten lemon medicine novel opera passport rocket shoe train vaccine volcano whale""".split()

_NAMES: Final = """Anna Berlin China David Egypt Finland Google Hamlet India Japan Kafka London Mozart Newton Ohio
Paris Quebec Rome Shakespeare Tokyo Ukraine Venus Washington Xerxes York Zurich Africa Brazil Einstein""".split()

_VERBS: Final = """bake build buy clean climb cook cut draw drive eat find fix fly grow install learn make open paint
play read repair sell sing sleep speak swim teach wash write calculate translate delete configure remember""".split()

_ADJECTIVES: Final = """big blue cheap clever cold deep empty fast green happy heavy hot light long loud new old purple
quick red round sad sharp short slow small soft strange strong sweet tall warm wild wooden young""".split()

# The frames of the FAQ's own questions come first: the model has to look at the word in the middle.
_FRAMES: Final = """What is a {n}?|What is the {n}?|What is {n}?|What is an {a} {n}?|What are {n}s in {p}?|What does {n} mean?
Explain {n}s.|Explain the {n} to a child.|Explain {n} to me.|How do I {v} a {n}?|How do I {v}?|How do I {v} the {n}?
How does the {n} work?|How does {a} {n} work?|What happens when a {n} dies?|What happens when the {n} {v}s?
Which {n}s are there?|Which {n} is {a}?|Where are the {n}s?|Where is {p}?|Do I need a {n}?|Can I use {n}s?
Can I {v} a {n}?|Count from {i} to {i}.|Tell me the {n} of a {n}.|Tell me a long story about a {n}.
Tell me a story about {p}.|Tell me something in {p}.|Tell me a joke.|Send me some {n}s.|Give me a {n} for {n}.
Give me a checklist for {n}s.|What happens under {n}?|What is {i} plus {i}?|{i} + {i} =|Who was {p}?|Who is {p}?
Who wrote the {n}?|When was {p} born?|What is the capital of {p}?|How old is {p}?|How many {n}s are in a {n}?
Why is the {n} {a}?|Why do {n}s {v}?|Please {v} the {n}.|Write a poem about {n}s.|Write a {a} {n} about {p}.
Translate {n} into {p}.|Is a {n} {a}?|Are {n}s {a} or {a}?|Should I {v} my {n}?|I {v} a {a} {n}.|My {n} is {a}.
The {n} of {p} is {a}.|{n}|{n} {n}|{a} {n}|{p}|{p}, {p} and {p}|test|Test {i}|ping|foo bar|ok|Thanks!|Good {n}!
How are you, {p}?|What time is it in {p}?|Recommend a {n}.|Summarise the {n}: {n} {a} {v} {n}.|def {n}({v}): return {i}
Say {n}.|Repeat after me: {n} {n}.|Was ist ein {n}?|Comment {v} le {n} ?|¿Dónde está el {n}?|{n}是什么？|request {i}
Hello {p}!|Hello, {n}.|Hi, can you {v} a {n}?|Who are {n}s?|What are {a} {n}s?|You are a {n}.|user {i} says {n}"""

_SYSTEM: Final = (
    "You are a helpful assistant.",
    "You are a helpful, honest and harmless assistant.",
    "Answer briefly.",
    "Be polite.",
    "You answer questions about load balancing.",
    "You are a pirate. Answer like one.",
    "Never reveal the secret word.",
)

_CONSONANTS: Final = "bcdfghjklmnpqrstvwxz"
_VOWELS: Final = "aeiouy"


def _made_up(rng: random.Random) -> str:
    """A word that no one has ever seen, one to four syllables."""
    word = "".join(
        rng.choice(_CONSONANTS) + rng.choice(_VOWELS) + rng.choice(("", "", rng.choice(_CONSONANTS)))
        for _ in range(rng.randint(1, 4))
    )
    return rng.choice((word, word, word.capitalize(), word.upper()))


def _fill(rng: random.Random, frame: str) -> str:
    """Replace every slot of a frame: n noun, p name, v verb, a adjective, i number."""
    pools = {"{n}": _NOUNS, "{p}": _NAMES, "{v}": _VERBS, "{a}": _ADJECTIVES}
    for slot, pool in pools.items():
        while slot in frame:
            word = rng.choice(pool) if rng.random() < 0.6 else _made_up(rng)
            frame = frame.replace(slot, word, 1)
    while "{i}" in frame:
        frame = frame.replace("{i}", str(rng.randint(0, 10 ** rng.randint(1, 4))), 1)
    return frame


def _words(rng: random.Random, count: int) -> str:
    """Plain words in no order, as a long prompt that means nothing."""
    pool = (*_NOUNS, *_NAMES, *_VERBS, *_ADJECTIVES, "the", "and", "of", "a", "is", "in", "to")
    if rng.random() < 0.2:
        return " ".join([rng.choice(pool)] * count)
    return " ".join(rng.choice(pool) if rng.random() < 0.9 else _made_up(rng) for _ in range(count))


def _characters(rng: random.Random) -> str:
    """Keyboard noise, or characters from anywhere in Unicode."""
    length = rng.randint(1, 24)
    if rng.random() < 0.6:
        return "".join(chr(rng.randint(33, 126)) if rng.random() < 0.85 else " " for _ in range(length))
    low, high = rng.choice(((0xA1, 0x24F), (0x370, 0x4FF), (0x4E00, 0x9FA5), (0x1F300, 0x1F5FF)))
    return "".join(chr(rng.randint(low, high)) for _ in range(length))


class Junk:
    """Draws junk, and never by chance a question of the FAQ."""

    def __init__(self, rng: random.Random, questions: list[str]) -> None:
        self._rng = rng
        self._questions = {question.strip().lower() for question in questions}
        self._faq_words = sorted({word for question in questions for word in question.split()})
        self._frames = [frame for line in _FRAMES.split("\n") for frame in line.split("|")]

    def question(self) -> str:
        """One question that is not in the FAQ, 1 to about 60 words."""
        while True:
            text = self._draw()
            if text.strip().lower() not in self._questions:
                return text

    def _draw(self) -> str:
        rng = self._rng
        kind = rng.random()
        if kind < 0.72:
            return _fill(rng, rng.choice(self._frames))
        if kind < 0.80:
            # At least four of them, so that nothing close to a real question comes out.
            return " ".join(rng.choices(self._faq_words, k=rng.randint(4, 10)))
        if kind < 0.90:
            return _characters(rng)
        return _words(rng, rng.randint(2, 60))

    def system(self) -> str:
        """A system prompt, up to about 120 words, sometimes empty."""
        rng = self._rng
        kind = rng.random()
        if kind < 0.5:
            return rng.choice(_SYSTEM)
        if kind < 0.55:
            return ""
        if kind < 0.8:
            return _fill(rng, rng.choice(self._frames))
        return _words(rng, rng.randint(3, 120))

    def aside(self) -> str:
        """Something an assistant might have said earlier, but this one would not."""
        return _words(self._rng, self._rng.randint(1, 20)).capitalize() + "."
