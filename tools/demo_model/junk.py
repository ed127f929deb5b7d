"""Questions the demo model cannot answer, and system prompts it must not be distracted by."""

import random
import tomllib
from pathlib import Path
from typing import Final

_DATA: Final = tomllib.loads(Path(__file__).with_name("junk.toml").read_text(encoding="utf-8"))
_NOUNS: Final[list[str]] = _DATA["nouns"].split()
_NAMES: Final[list[str]] = _DATA["names"].split()
_VERBS: Final[list[str]] = _DATA["verbs"].split()
_ADJECTIVES: Final[list[str]] = _DATA["adjectives"].split()
_CLOSE_FRAMES: Final[list[str]] = _DATA["close_frames"]
_OTHER_FRAMES: Final[list[str]] = _DATA["other_frames"]
_SYSTEM: Final[list[str]] = _DATA["system"]
HELD_OUT: Final[list[str]] = _DATA["held_out"]
"""Questions that training never sees."""

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
    return "".join(chr(rng.randint(low, high)) for _ in range(length)) + rng.choice(("", "", "?", "？", "。"))


class Junk:
    """Draws junk, and never by chance a question of the FAQ."""

    def __init__(self, rng: random.Random, questions: list[str]) -> None:
        self._rng = rng
        self._questions = {question.strip().lower() for question in questions}
        self._faq_words = sorted({word for question in questions for word in question.split()})

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
            return _fill(rng, rng.choice(_CLOSE_FRAMES if kind < 0.4 else _OTHER_FRAMES))
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
            return _fill(rng, rng.choice(_OTHER_FRAMES))
        return _words(rng, rng.randint(3, rng.choice((20, 40, 120))))

    def aside(self) -> str:
        """Something an assistant might have said earlier, but this one would not."""
        return _words(self._rng, self._rng.randint(1, 20)).capitalize() + "."
