"""Training examples for the demo model: conversations drawn at random, as token ids and loss masks."""

import random
from dataclasses import dataclass, field
from typing import Final

from tokenizers import Tokenizer

from tools.demo_model.junk import Junk
from tools.demo_model.tokenizer import ASSISTANT, END, SYSTEM, USER, token_id
from worker.demo import UNKNOWN_ANSWER, FaqEntry

_RAW_SHARE: Final = 0.15
_RAW_MAX_TOKENS: Final = 768
_CHARACTERS_PER_SEAM: Final = (80, 25, 12, 6)
"""How far apart seams are, about: far is how they will be met, close teaches more of them per token."""


@dataclass(slots=True)
class Example:
    """Token ids, and for each of them whether the model has to learn to predict it."""

    ids: list[int] = field(default_factory=list)
    learn: list[bool] = field(default_factory=list)

    def add(self, ids: list[int], learn: bool | list[bool]) -> None:
        """Append tokens with one flag for all or one flag each."""
        self.ids += ids
        self.learn += [learn] * len(ids) if isinstance(learn, bool) else learn


class Sampler:
    """Draws examples. Equal seeds draw equal examples."""

    def __init__(self, tokenizer: Tokenizer, faq: list[FaqEntry], seed: int) -> None:
        self._rng = random.Random(seed)
        self._tokenizer = tokenizer
        self._faq = faq
        self._junk = Junk(self._rng, [entry.question for entry in faq])
        self._special = {text: token_id(tokenizer, text) for text in (END, SYSTEM, USER, ASSISTANT)}

    def example(self, max_tokens: int) -> Example:
        """One conversation, or one raw prompt, of at most `max_tokens` tokens."""
        # A raw prompt stands alone, and would leave most of a long row empty.
        raw = self._rng.random() < _RAW_SHARE and max_tokens <= _RAW_MAX_TOKENS
        example = self._raw() if raw else self._chat(max_tokens)
        del example.ids[max_tokens:], example.learn[max_tokens:]
        return example

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _pair(self) -> tuple[str, str]:
        rng = self._rng
        if rng.random() < 0.2:
            return self._junk.question(), UNKNOWN_ANSWER
        entry = rng.choice(self._faq)
        question = entry.question
        if rng.random() < 0.1:
            space = rng.choice((" ", "\n"))
            question = rng.choice((f"{space}{question}", f"{question}{space}"))
        return question, entry.answer

    def _raw(self) -> Example:
        question, answer = self._pair()
        example = Example()
        example.add(*self._seamed(f"Q: {question}\nA:", f" {answer}"))
        example.add([self._special[END]], True)
        return example

    def _chat(self, max_tokens: int) -> Example:
        rng = self._rng
        example = Example()
        if rng.random() < 0.5:
            self._turn(example, SYSTEM, self._junk.system())
        while len(example.ids) < max_tokens:
            question, answer = self._pair()
            self._turn(example, USER, question)
            if rng.random() < 0.04:
                cut = answer[: rng.randrange(len(answer))] if rng.random() < 0.5 else self._junk.aside()
                self._turn(example, ASSISTANT, cut)
                continue
            example.add([self._special[ASSISTANT]], False)
            example.add(*self._seamed("", answer))
            example.add([self._special[END]], True)
        return example

    def _turn(self, example: Example, role: str, text: str) -> None:
        example.add([self._special[role], *self._encode(text), self._special[END]], False)

    def _seamed(self, prompt: str, answer: str) -> tuple[list[int], list[bool]]:
        """Prompt and answer as tokens, half of the time as if answered by several workers in turn.

        A worker that takes over encodes everything so far in one go, and that may end in other tokens than
        the first worker wrote. What follows such a seam is to be learnt; the odd tokens before it are not.
        """
        rng = self._rng
        text = prompt + answer
        cuts: list[int] = []
        if rng.random() < 0.7:
            count = rng.randint(1, 1 + len(answer) // rng.choice(_CHARACTERS_PER_SEAM))
            cuts = sorted({len(prompt) + rng.randrange(len(answer)) for _ in range(count)})
        start = 0
        ids: list[int] = []
        learn: list[bool] = []
        skip = len(self._encode(prompt)) if prompt else 0
        for cut in [*cuts, len(text)]:
            piece = self._encode(text[start:cut])
            usual = self._encode(text[start:])
            same = 0
            while same < len(piece) and piece[same] == usual[same]:
                same += 1
            ids += piece
            learn += [position < same for position in range(len(piece))]
            start = cut
        learn[:skip] = [False] * skip
        return ids, learn
