"""Blocks of bytes, as gateways hash prompts, made into blocks of tokens, as the simulator plays them.

Where in a prompt a block of bytes ends is known in bytes; in tokens only how long each prompt is. So each block gets
its length in tokens from the first prompt that has it: what that prompt is longer than the blocks before it, which are
known by then, is spread over the bytes that come after them. A block then has one length for all prompts, equal
beginnings have equal blocks of tokens, and what a conversation gains from turn to turn is what its turns were counted
to have gained.
"""

from __future__ import annotations

from collections.abc import Sequence

from lbcore.prefix import bytes_of

BLOCK_TOKENS = 32
"""About half of what the smallest block of bytes has: of a shared beginning half of this is lost on average, beside
half of a block of bytes. Engines have 16; more blocks are a slower simulation."""

_SPREAD = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio: numbers that belong to one block of bytes lie far apart."""


class ByteBlocks:
    """All blocks seen so far. Ask in the order in which the prompts came."""

    def __init__(self) -> None:
        # Tokens up to the end of each block.
        self._ends: dict[int, float] = {}

    def token_blocks(self, prompt_tokens: int, prompt_bytes: int, hashes: Sequence[int]) -> tuple[int, ...]:
        """The identities of a prompt's whole blocks of `BLOCK_TOKENS`, as far as its whole blocks of bytes go."""
        self._measure(prompt_tokens, prompt_bytes, hashes)
        blocks: list[int] = []
        for block in hashes:
            end = min(self._ends[block], prompt_tokens) + 1e-6
            # The block of bytes in which it ends stands for all before that end, and for a little more.
            while (len(blocks) + 1) * BLOCK_TOKENS <= end:
                blocks.append((block + len(blocks) * _SPREAD) % 2**64)
        return tuple(blocks)

    def _measure(self, prompt_tokens: int, prompt_bytes: int, hashes: Sequence[int]) -> None:
        ends = self._ends
        known, end = 0, 0.0
        while known < len(hashes) and hashes[known] in ends:
            end = ends[hashes[known]]
            known += 1
        begin = bytes_of(known)
        tokens_per_byte = max(0.0, prompt_tokens - end) / max(1, prompt_bytes - begin)
        for number in range(known, len(hashes)):
            ends[hashes[number]] = end + tokens_per_byte * (bytes_of(number + 1) - begin)
