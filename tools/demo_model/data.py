"""Training examples for the demo model: conversations drawn at random, as token ids and loss masks."""

import random
from dataclasses import dataclass, field
from typing import Final

from tokenizers import Tokenizer

from tools.demo_model.junk import Junk
from tools.demo_model.tokenizer import ASSISTANT, END, PAD, SYSTEM, USER, token_id
from worker.demo import UNKNOWN_ANSWER, FaqEntry

_JUNK_SHARE: Final = 0.22
_SYSTEM_SHARE: Final = 0.55
_SYSTEM_LATER_SHARE: Final = 0.25
_RAW_SHARE: Final = 0.2
_RAW_MAX_TOKENS: Final = 768
_CHARACTERS_PER_SEAM: Final = (120, 40, 12, 6)
"""How far apart seams are, about: far is how they will be met, close teaches more of them per token."""

_BRANCHES: Final = (16, 32, 64)
"""How many branches an answer gets at most."""

_REST: Final = 6
"""Tokens to learn after a seam; by then the usual ones are reached again."""

_LONGEST_WORD: Final = 40
"""Characters; no token depends on text further away than this."""

_EASE: Final = 0.001
"""The least difficulty, so that what is learnt is still drawn now and then."""

_CUTS_PER_ENTRY: Final = 200
"""How many difficult seams weigh as much as a difficult question."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A stretch of an example whose loss says how difficult something still is.

    `first` and `last` are token positions, the last not included. `entry` is a place in the FAQ; `cut` a
    character of its answer where another worker took over, or -1 for the answer as a whole.
    """

    first: int
    last: int
    entry: int
    cut: int = -1


@dataclass(slots=True)
class Example:
    """Token ids, and for each of them whether the model has to learn to predict it.

    The trunk is the conversation as it happens. A branch leaves it at some point, as an answer that another
    worker goes on with; it sees the trunk up to that point, and nothing sees the branch but itself.
    """

    ids: list[int] = field(default_factory=list)
    learn: list[bool] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    """The branch each token belongs to, 0 for the trunk."""
    visible: list[int] = field(default_factory=list)
    """How many tokens of the trunk each token sees, itself included if it belongs there."""
    lessons: list[Lesson] = field(default_factory=list)
    trunk: int = 0
    """Tokens in the trunk."""

    def add(self, ids: list[int], learn: bool | list[bool]) -> None:
        """Append tokens to the trunk with one flag for all or one flag each."""
        self.ids += ids
        self.learn += [learn] * len(ids) if isinstance(learn, bool) else learn
        self.positions += range(self.trunk, self.trunk + len(ids))
        self.branches += [0] * len(ids)
        self.trunk += len(ids)
        self.visible += [position + 1 for position in self.positions[len(self.visible) :]]

    def branch(self, root: int, odd: list[int], rest: list[int]) -> None:
        """Append a branch after `root` tokens of the trunk: odd tokens as given, then a rest to learn."""
        self.ids += [*odd, *rest]
        self.learn += [False] * len(odd) + [True] * len(rest)
        length = len(odd) + len(rest)
        self.positions += range(root, root + length)
        self.branches += [max(self.branches, default=0) + 1] * length
        self.visible += [root] * length

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens, and the lessons that lie in them."""
        for column in (self.ids, self.learn, self.positions, self.branches, self.visible):
            del column[length:]
        self.lessons = [lesson for lesson in self.lessons if lesson.last <= length]


class Sampler:
    """Draws examples, what is difficult more often. Equal seeds and equal grades draw equal examples."""

    def __init__(self, tokenizer: Tokenizer, faq: list[FaqEntry], seed: int) -> None:
        self.pad = token_id(tokenizer, PAD)
        self._rng = random.Random(seed)
        self._tokenizer = tokenizer
        self._faq = faq
        self._junk = Junk(self._rng, [entry.question for entry in faq])
        self._special = {text: token_id(tokenizer, text) for text in (END, SYSTEM, USER, ASSISTANT)}
        self._entries = [1.0] * len(faq)
        self._cuts = [[1.0] * len(entry.answer) for entry in faq]
        self._branching = False
        self._seams: dict[tuple[str, int], tuple[int, list[int], list[int]]] = {}
        self._cut_sums = [float(len(cuts)) for cuts in self._cuts]

    def grade(self, lesson: Lesson, loss: float) -> None:
        """Note the greatest token loss that the model had in a lesson; one good result only halves the old one."""
        if lesson.cut < 0:
            self._entries[lesson.entry] = self._harder(self._entries[lesson.entry], loss)
            return
        cuts = self._cuts[lesson.entry]
        before = cuts[lesson.cut]
        cuts[lesson.cut] = self._harder(before, loss)
        self._cut_sums[lesson.entry] += cuts[lesson.cut] - before

    @staticmethod
    def _harder(before: float, loss: float) -> float:
        return max(_EASE, before / 2, min(loss, 1.0))

    def example(self, max_tokens: int, branching: bool) -> Example:
        """One conversation, or one raw prompt, of at most `max_tokens` tokens, with branches or without."""
        self._branching = branching
        # A raw prompt stands alone, and would leave most of a long row empty.
        raw = self._rng.random() < _RAW_SHARE and max_tokens <= _RAW_MAX_TOKENS
        example = self._raw() if raw else self._chat(max_tokens)
        example.truncate(max_tokens)
        return example

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _pair(self) -> tuple[str, str, int]:
        """Question, answer and place in the FAQ, which is -1 for a question that is not there."""
        rng = self._rng
        if rng.random() < _JUNK_SHARE:
            return self._junk.question(), UNKNOWN_ANSWER, -1
        if rng.random() < 0.5:
            place = rng.randrange(len(self._faq))
        else:
            sums = zip(self._entries, self._cut_sums, strict=True)
            place = rng.choices(range(len(self._faq)), [entry + cuts / _CUTS_PER_ENTRY for entry, cuts in sums])[0]
        entry = self._faq[place]
        question = entry.question
        if rng.random() < 0.1:
            space = rng.choice((" ", "\n"))
            question = rng.choice((f"{space}{question}", f"{question}{space}"))
        return question, entry.answer, place

    def _raw(self) -> Example:
        question, answer, place = self._pair()
        example = Example()
        self._answer(example, f"Q: {question}\nA:", f" {answer}", place)
        return example

    def _chat(self, max_tokens: int) -> Example:
        rng = self._rng
        example = Example()
        while len(example.ids) < max_tokens:
            # In mid-chat it is rare in practice, but it teaches to ignore system messages all the same.
            if rng.random() < (_SYSTEM_LATER_SHARE if example.ids else _SYSTEM_SHARE):
                self._turn(example, SYSTEM, self._junk.system())
            question, answer, place = self._pair()
            self._turn(example, USER, question)
            if rng.random() < 0.04:
                cut = answer[: rng.randrange(len(answer))] if rng.random() < 0.5 else self._junk.aside()
                self._turn(example, ASSISTANT, cut)
                continue
            example.add([self._special[ASSISTANT]], False)
            self._answer(example, "", answer, place)
        return example

    def _turn(self, example: Example, role: str, text: str) -> None:
        example.add([self._special[role], *self._encode(text), self._special[END]], False)

    def _answer(self, example: Example, prompt: str, answer: str, place: int) -> None:
        """Append prompt and answer, plain or with seams in one of two ways."""
        if self._branching and place >= 0 and self._rng.random() < 0.8:
            self._branched(example, prompt, answer, place)
            return
        seams = not self._branching and self._rng.random() < 0.65
        self._relayed(example, prompt, answer, place, self._draw_cuts(answer, place) if seams else [])

    def _relayed(self, example: Example, prompt: str, answer: str, place: int, cuts: list[int]) -> None:
        """Append prompt and answer as if several workers had answered in turn, taking over at the cuts.

        A worker that takes over encodes everything so far in one go, and that may end in other tokens than
        the first worker wrote. What follows such a seam is to be learnt; the odd tokens before it are not.
        """
        start = len(example.ids)
        text = prompt + answer
        done = 0
        for cut in [*cuts, len(answer)]:
            end = len(prompt) + cut
            piece = self._encode(text[done:end])
            usual = self._encode(text[done : end + _LONGEST_WORD])
            same = _common(piece, usual)
            if done and place >= 0 and same:
                first = len(example.ids)
                faq_cut = done - len(text) + len(self._faq[place].answer)
                example.lessons.append(Lesson(first, first + min(same, _REST), place, faq_cut))
            example.add(piece, [position < same for position in range(len(piece))])
            done = end
        example.add([self._special[END]], True)
        prompt_end = start + (len(self._encode(prompt)) if prompt else 0)
        example.learn[start:prompt_end] = [False] * (prompt_end - start)
        if place >= 0 and not cuts:
            example.lessons.append(Lesson(prompt_end, len(example.ids), place))

    def _branched(self, example: Example, prompt: str, answer: str, place: int) -> None:
        """Append prompt and answer, and branches where another worker might take over."""
        root = example.trunk
        self._relayed(example, prompt, answer, place, [])
        text = prompt + answer
        extra = len(text) - len(self._faq[place].answer)
        weights = self._cuts[place] if self._rng.random() < 0.7 else None
        for cut in set(self._rng.choices(range(len(self._faq[place].answer)), weights, k=self._rng.choice(_BRANCHES))):
            common, odd, rest = self._seam(text, extra + cut)
            if odd:
                first = len(example.ids) + len(odd)
                example.branch(root + common, odd, rest)
                example.lessons.append(Lesson(first, len(example.ids), place, cut))
            else:
                self.grade(Lesson(0, 0, place, cut), 0.0)

    def _seam(self, text: str, at: int) -> tuple[int, list[int], list[int]]:
        """A text cut at a character: the number of usual tokens before, the odd ones after them, and the rest."""
        found = self._seams.get((text, at))
        if found is None:
            before = self._encode(text[:at])
            common = _common(before, self._encode(text[: at + _LONGEST_WORD]))
            rest = [*self._encode(text[at : at + _REST * _LONGEST_WORD]), self._special[END]][:_REST]
            found = self._seams[text, at] = (common, before[common:], rest)
        return found

    def _draw_cuts(self, answer: str, place: int) -> list[int]:
        rng = self._rng
        count = rng.randint(1, 1 + len(answer) // rng.choice(_CHARACTERS_PER_SEAM))
        if place < 0 or rng.random() < 0.3:
            return sorted({rng.randrange(1, len(answer)) for _ in range(count)})
        # A raw answer begins with a space that the FAQ's answer does not have.
        extra = len(answer) - len(self._faq[place].answer)
        weights = self._cuts[place]
        drawn = rng.choices(range(len(weights)), weights, k=count)
        return sorted({extra + cut for cut in drawn if extra + cut > 0})


def _common(first: list[int], second: list[int]) -> int:
    """The length of the common beginning."""
    length = 0
    while length < min(len(first), len(second)) and first[length] == second[length]:
        length += 1
    return length
