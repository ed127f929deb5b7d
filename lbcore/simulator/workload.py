"""Traffic as the simulator plays it: who asks what, when. Values only, no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Call:
    """One request."""

    input_tokens: int
    output_tokens: int
    blocks: Sequence[int] = ()
    """Identities of the prompt's whole blocks, first block first; each stands for everything up to its end. May go on
    into the answer, for whom the next call of the conversation is known to begin with it."""
    think_s: float = 0.0
    """The client's pause before it: after the conversation's start, or after the answer before it is complete."""
    priority: int = 0
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Calls of one client, one after another."""

    name: str
    at_s: float
    """When it starts, in seconds from the begin of the replay; without meaning in a closed loop."""
    calls: Sequence[Call]


@dataclass(frozen=True, slots=True)
class Workload:
    """All of it.

    An open loop starts each conversation at its time, whatever the fleet does. In a closed loop `users` clients are
    there, each of which takes up the next conversation when its last is over.
    """

    name: str
    conversations: Sequence[Conversation]
    block_tokens: int = 512
    """Tokens in each block."""
    users: int = 0
    """0 for an open loop."""
    note: str = ""
    """Where it comes from, and what was changed."""

    @property
    def calls(self) -> int:
        """How many there are."""
        return sum(len(conversation.calls) for conversation in self.conversations)

    def faster(self, factor: float) -> Workload:
        """The same with conversations that start so many times sooner: lengths and pauses stay as they are."""
        return replace(
            self,
            conversations=[
                replace(conversation, at_s=conversation.at_s / factor) for conversation in self.conversations
            ],
        )

    def first(self, calls: int) -> Workload:
        """The beginning of it: whole conversations until there are so many calls."""
        taken: list[Conversation] = []
        left = calls
        for conversation in self.conversations:
            if left <= 0:
                break
            taken.append(conversation)
            left -= len(conversation.calls)
        return replace(self, conversations=taken)
