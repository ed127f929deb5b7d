"""Requests as lines of a trace that the simulator replays (docs/simulator.md): when, how long, and what they share.

No text and no name is in it. What prompts share is told by digests under a key that is drawn when the gateway starts
and kept nowhere: who has the trace can see that two prompts begin alike, and cannot test whether one begins as a text
that he guesses.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import orjson

from lbcore.generation import Finished
from lbcore.types import RouteFacts

KEY_BYTES = 16

_NAME_BYTES = 6
"""Of ten million sessions two share a digest with a probability of one in six."""


class TraceWriter:
    """Makes the lines of one trace; processes with the same key make lines of one trace together."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def line(self, facts: RouteFacts, usage: Finished, at_unix_s: float) -> bytes:
        """A request that came then, with its end; its tokens are those that the engine counted."""
        row: dict[str, Any] = {
            "at_ms": round(at_unix_s * 1000, 1),
            "input_tokens": usage.prompt_tokens,
            "output_tokens": usage.output_tokens,
            "prompt_bytes": facts.prompt_bytes,
        }
        if facts.prefix_hashes:
            # KV blocks of one model are of no use to another, however alike the prompts.
            of_model = blake2b(facts.model.encode(), digest_size=8, key=self._key, person=b"block")
            row["byte_blocks"] = [self._digest(of_model, block) for block in facts.prefix_hashes]
        if facts.session_id:
            row["session"] = self._name(facts.session_id, b"session")
        if facts.tenant:
            row["tenant"] = self._name(facts.tenant, b"tenant")
        if facts.priority:
            row["priority"] = facts.priority
        return orjson.dumps(row) + b"\n"

    @staticmethod
    def _digest(of_model: blake2b, block: int) -> str:
        digest = of_model.copy()
        digest.update(block.to_bytes(8, "little"))
        return digest.hexdigest()

    def _name(self, name: str, kind: bytes) -> str:
        return blake2b(name.encode(), digest_size=_NAME_BYTES, key=self._key, person=kind).hexdigest()
