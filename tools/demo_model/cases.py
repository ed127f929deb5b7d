"""What the demo model is asked when it is checked, and the exact text it has to answer."""

import random
from dataclasses import dataclass

from tools.demo_model.junk import HELD_OUT, Junk
from worker.demo import UNKNOWN_ANSWER, FaqEntry

Messages = list[dict[str, str]]

BY_IDS = "continued by ids"
"""The form whose prompt is given as token ids, where the engine takes them."""

_AWKWARD = ("  ", "\n", "\n\n", "\t", " \n ", "\r\n", "\u00a0", "\u3000", "'s", "'LL", " '")


@dataclass(frozen=True, slots=True)
class Case:
    """One request: a chat, or a raw prompt; `said` is what an earlier worker has already answered."""

    form: str
    answer: str
    messages: Messages | None = None
    prompt: str = ""
    said: str = ""

    @property
    def rest(self) -> str:
        """What has to come, the end-of-turn token aside."""
        return self.answer[len(self.said) :]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _system(entry: FaqEntry, text: str) -> Case:
    return Case("system + chat", entry.answer, [_message("system", text), _message("user", entry.question)])


def _history(rng: random.Random, faq: list[FaqEntry], entry: FaqEntry, turns: int, system: str) -> Case:
    messages = [_message("system", system)] if system else []
    # The long answers would fill the context several times over; two of them are allowed.
    earlier = [rng.choice([other for other in faq if len(other.answer) < 600]) for _ in range(turns)]
    if rng.random() < 0.4:
        earlier[rng.randrange(turns)] = rng.choice(faq)
    for other in earlier:
        messages += [_message("user", other.question), _message("assistant", other.answer)]
    return Case("history + chat", entry.answer, [*messages, _message("user", entry.question)])


def _cuts(rng: random.Random, answer: str, per_short: int) -> list[int]:
    count = per_short if len(answer) < 600 else 6 * per_short
    return sorted(rng.sample(range(1, len(answer)), min(count, len(answer) - 1)))


def make_cases(faq: list[FaqEntry], seed: int, cuts: int) -> list[Case]:
    """All cases, in a fixed order for a seed; `cuts` is the number of seams per short answer."""
    rng = random.Random(seed)
    junk = Junk(rng, [entry.question for entry in faq])
    cases: list[Case] = []
    for entry in faq:
        chat = [_message("user", entry.question)]
        raw = f"Q: {entry.question}\nA:"
        cases.append(Case("chat", entry.answer, chat))
        cases += [_system(entry, text) for text in ("You are a helpful assistant.", junk.system(), junk.system())]
        for _ in range(2):
            system = junk.system() if rng.random() < 0.3 else ""
            cases.append(_history(rng, faq, entry, rng.randint(1, 6), system))
        cases.append(Case("raw", f" {entry.answer}", prompt=raw))
        for text in (f" {entry.question}", f"{entry.question} ", f"\n{entry.question}", f"{entry.question}\n"):
            cases.append(Case("spaces", entry.answer, [_message("user", text)]))
        for cut in _cuts(rng, entry.answer, cuts):
            cases.append(Case("continued chat", entry.answer, chat, said=entry.answer[:cut]))
        for cut in _cuts(rng, entry.answer, max(1, cuts // 2)):
            cases.append(Case("continued raw", f" {entry.answer}", prompt=raw, said=f" {entry.answer[:cut]}"))
        for cut in _cuts(rng, entry.answer, 1):
            cases.append(Case(BY_IDS, entry.answer, chat, said=entry.answer[:cut]))
    cases += [Case("unknown", UNKNOWN_ANSWER, [_message("user", text)]) for text in HELD_OUT]
    return cases


def token_texts(faq: list[FaqEntry], seed: int) -> list[str]:
    """Texts on which all tokenizers have to agree: the FAQ, pieces of it, and 300 random strings."""
    rng = random.Random(seed)
    texts = [text for entry in faq for text in (entry.question, entry.answer)]
    texts += [text[rng.randrange(len(text)) :] for text in texts for _ in range(2)]
    texts += [text[: rng.randrange(1, len(text) + 1)] for text in texts]
    ranges = ((32, 127), (0x20, 0x250), (0x300, 0x700), (0x900, 0x2FFF), (0x3000, 0xD7FF), (0xE000, 0x1FFFF))
    for _ in range(300):
        pieces: list[str] = []
        for _ in range(rng.randint(1, 30)):
            kind = rng.random()
            if kind < 0.2:
                pieces.append(rng.choice(_AWKWARD))
            elif kind < 0.4:
                pieces.append(rng.choice(rng.choice(texts[: 2 * len(faq)]).split(" ")))
            else:
                pieces.append(chr(rng.randrange(*rng.choice(ranges))))
        texts.append("".join(pieces))
    return texts
