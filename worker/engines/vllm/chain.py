"""From what vLLM says of its KV blocks to the keys of a prefix mirror. Pure.

vLLM names a block by a hash of its own making, and tells which tokens are in it and which block comes before. Of a
prompt only the tokens are known on this side. So both are given the same keys here, made of the tokens alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from xxhash import xxh3_64_intdigest

from worker.prefix_mirror import PrefixMirror

MEDIUM = "GPU"
"""What vLLM calls the memory of the device that it computes on, whatever the device is."""
KINDS = frozenset(("full_attention", "mla_attention", "sink_full_attention", None))
"""Layers that need all of a prompt before a token: what they hold can be found again. Of others vLLM drops parts."""


def prompt_keys(tokens: Sequence[int], block_size: int, adapter: str) -> list[int]:
    """The keys of a prompt's whole blocks, first block first. `adapter` is empty for the model itself."""
    return _chained(array("Q", tokens), block_size, _root(adapter), ())


class BlockChain:
    """Follows one engine core's events, each once and in order, and tells the mirror.

    Of a model whose layers are of several kinds only one is followed, one that needs all of a prompt: the prompt is
    found again as far as these layers have it. Blocks whose beginning is not known stay unknown.
    """

    def __init__(self, mirror: PrefixMirror) -> None:
        self._mirror = mirror
        self._keys: dict[Hashable, int] = {}
        """Keys of the blocks that vLLM holds, by its own hashes."""
        self._group: int | None = None
        """The number of the layers that are followed, once they were seen."""

    def follow(self, events: Iterable[Any]) -> None:
        """Takes vLLM's events, or what has their fields and the names of their classes."""
        for event in events:
            match type(event).__name__:
                case "BlockStored":
                    self._stored(event)
                case "BlockRemoved":
                    if event.medium in (MEDIUM, None) and event.group_idx == self._group:
                        self._removed(event.block_hashes)
                case "AllBlocksCleared":
                    self.cleared()

    def cleared(self) -> None:
        """vLLM holds nothing, or nobody knows what it holds."""
        self._keys.clear()
        self._mirror.cleared()

    def _stored(self, event: Any) -> None:
        hashes, size = event.block_hashes, self._mirror.block_size
        if event.medium not in (MEDIUM, None) or event.kv_cache_spec_kind not in KINDS:
            return
        if event.block_size != size or len(event.token_ids) != size * len(hashes):
            # A part of a block, or blocks with some left out.
            return
        if not self._keys:
            self._group = event.group_idx
        if event.group_idx != self._group:
            return
        adapter = event.lora_name or ""
        parent = event.parent_block_hash
        seed = _root(adapter) if parent is None else self._keys.get(parent)
        if seed is None:
            return
        keys = _chained(array("Q", event.token_ids), size, seed, _beside_tokens(event.extra_keys, adapter))
        self._keys.update(zip(hashes, keys, strict=True))
        self._mirror.stored(keys)

    def _removed(self, hashes: Iterable[Hashable]) -> None:
        for block_hash in hashes:
            key = self._keys.get(block_hash)
            if key is not None and not self._mirror.removed(key):
                del self._keys[block_hash]


def _root(adapter: str) -> int:
    return xxh3_64_intdigest(adapter.encode())


def _chained(tokens: array[int], size: int, key: int, beside: Sequence[bytes]) -> list[int]:
    data = memoryview(tokens).cast("B")
    width = size * tokens.itemsize
    keys: list[int] = []
    for index, end in enumerate(range(width, len(data) + 1, width)):
        if beside and beside[index]:
            # A picture, a salt: what tokens do not tell must make a difference, and no prompt here will match it.
            key = xxh3_64_intdigest(beside[index], key)
        key = xxh3_64_intdigest(data[end - width : end], key)
        keys.append(key)
    return keys


def _beside_tokens(extra_keys: Sequence[Sequence[Any] | None] | None, adapter: str) -> list[bytes]:
    """For each block what beside its tokens, its beginning and the adapter makes it what it is; mostly nothing."""
    if not extra_keys:
        return []
    return [
        repr(rest).encode() if (rest := [part for part in extra or () if part != adapter]) else b""
        for extra in extra_keys
    ]
