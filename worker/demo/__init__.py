"""The demo model that ships with the project: its files, and the questions it answers.

At temperature 0 the model answers every question of the FAQ word for word, in every engine, which makes
the answers something that a test can compare with. See README.md beside this file.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).resolve().parent

GGUF_PATH: Final = _HERE / "demo.gguf"
"""The model for llama.cpp, one file."""

HF_PATH: Final = _HERE / "hf"
"""The same weights for transformers and vLLM, a folder."""

FAQ_PATH: Final = _HERE / "faq.jsonl"
"""What the model was trained on: one JSON object per line, with `question` and `answer`."""

UNKNOWN_ANSWER: Final = "I am a small demo model. I only know the questions in the project's FAQ."
"""What the model says, as a rule, to a question that is not in the FAQ."""


@dataclass(frozen=True, slots=True)
class FaqEntry:
    """One question and the exact answer to it; several questions may share an answer."""

    question: str
    answer: str


def load_faq() -> list[FaqEntry]:
    """Read the FAQ, in the order of the file."""
    # Not str.splitlines: it also splits at characters that are legal inside a JSON string.
    lines = FAQ_PATH.read_text(encoding="utf-8").split("\n")
    rows = (json.loads(line) for line in lines if line)
    return [FaqEntry(question=str(row["question"]), answer=str(row["answer"])) for row in rows]
