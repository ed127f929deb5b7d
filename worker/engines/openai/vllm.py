"""What vLLM's own server needs of a request beyond OpenAI's API. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.engines.openai.body import Ask
    from worker.engines.openai.kinds import Facts

_GREEDY = {"temperature": 1.0, "top_k": 1, "top_p": 1.0, "min_p": 0.0}
"""The likeliest token and no other, which is what temperature 0 means."""


def adapt(ask: Ask, facts: Facts) -> Mapping[str, object]:
    """The fields to change. It refuses several choices at temperature 0, which OpenAI's API allows."""
    is_greedy = ask.body.get("temperature") == 0
    return _GREEDY if is_greedy and ask.choices_per_prompt > 1 else {}
