"""What a worker holds of a conversation beyond its prompts: the answers, which the next prompt begins with.

Hashes tell which prompts begin alike, but an answer is not hashed before the next turn comes with it: the scheduler
sees no text. Nor do all callers hash. The last turn of a session tells which worker has computed how much of it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from lbcore.credit import Account

MAX_SESSIONS = 16_384
"""Sessions of one model that are remembered, 300 bytes each; which was not heard of for longest is forgotten."""

MAX_ID_CHARS = 256
"""Nobody's session is named longer; what is, is not remembered."""

CERTAIN_SHARE, CERTAIN_TOKENS = 0.85, 128
"""A prompt goes on where the last one ended when the worker is believed to hold this part of that, or all but so many
tokens: blocks are whole, and tokens are counted in bytes."""


class Turn(NamedTuple):
    """The last one of a session that was answered."""

    account: Account
    """Of the worker epoch that answered."""
    prompt_tokens: int
    tokens: int
    """Of prompt and answer."""


class Sessions:
    """The last turn of each session of one model."""

    def __init__(self) -> None:
        self._turns: OrderedDict[str, Turn] = OrderedDict()

    def answered(self, session_id: str, turn: Turn) -> None:
        """A turn of this session was answered in full or in part."""
        if len(session_id) > MAX_ID_CHARS:
            return
        self._turns[session_id] = turn
        self._turns.move_to_end(session_id)
        if len(self._turns) > MAX_SESSIONS:
            self._turns.popitem(last=False)

    def last(self, session_id: str) -> Turn | None:
        """Its last turn, when it is remembered."""
        return self._turns.get(session_id)

    def __len__(self) -> int:
        return len(self._turns)


def goes_on(turn: Turn, prompt_tokens: int, held_tokens: float | None) -> bool:
    """Whether a prompt of so many tokens continues this turn. `held_tokens` are those that the worker is believed to
    hold by their hashes; None for a caller that does not hash."""
    if prompt_tokens < turn.prompt_tokens:
        return False
    return held_tokens is None or held_tokens >= min(
        CERTAIN_SHARE * turn.prompt_tokens, turn.prompt_tokens - CERTAIN_TOKENS
    )
