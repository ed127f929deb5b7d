"""What llama.cpp's own server needs of a request beyond OpenAI's API. Pure.

The embedded engine has the same server inside and the same needs; what it knows of them is used here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lbcore.generation import Dialect
from worker.engines.llamacpp.body import Limits, forced_tool, refuse_unsupported
from worker.engines.llamacpp.grammar import refuse_reversed_bounds

if TYPE_CHECKING:
    from worker.engines.openai.body import Ask
    from worker.engines.openai.kinds import Facts


def adapt(ask: Ask, facts: Facts) -> Mapping[str, object]:
    """The fields to change. Raises InvalidRequest, by name, for what llama.cpp would ignore or break on."""
    refuse_unsupported(ask.body)
    refuse_reversed_bounds(ask.body)
    changes: dict[str, object] = {}
    if ask.dialect is Dialect.CHAT:
        changes |= forced_tool(ask.body, Limits(ask.choices, facts.knows_tools))
    if ask.stop:
        # Cut off by us, it has told no usage yet: its counter goes along with every token instead.
        changes["timings_per_token"] = True
    if ask.top_logprobs == 0:
        # It takes 0 for no log probabilities at all.
        changes["top_logprobs" if ask.dialect is Dialect.CHAT else "logprobs"] = 1
    return changes
