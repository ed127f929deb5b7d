"""vLLM's blocks and a prompt's get the same keys where they have the same tokens, and only there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from lbcore.generation import Dialect, GenerationRequest
from worker.engines.vllm.chain import BlockChain, prompt_keys
from worker.engines.vllm.events import InOrder
from worker.prefix_mirror import PrefixMirror

SIZE = 4
TOKENS = [*range(100, 112)]


@dataclass
class BlockStored:
    """As vLLM has it."""

    block_hashes: Sequence[bytes]
    parent_block_hash: bytes | None
    token_ids: Sequence[int]
    block_size: int = SIZE
    medium: str | None = "GPU"
    lora_name: str | None = None
    extra_keys: Sequence[Sequence[Any] | None] | None = None
    group_idx: int | None = 0
    kv_cache_spec_kind: str | None = "full_attention"


@dataclass
class BlockRemoved:
    block_hashes: Sequence[bytes]
    medium: str | None = "GPU"
    group_idx: int | None = 0


class AllBlocksCleared:
    pass


class Heard:
    """A chain, and what the mirror behind it holds of one prompt: how many of its three byte blocks."""

    def __init__(self, adapter: str = "") -> None:
        self.mirror = PrefixMirror(SIZE, ["m"])
        self.chain = BlockChain(self.mirror)
        request = GenerationRequest(
            "r", Dialect.CHAT, b"", prefix_hashes=(1, 2, 3), prefix_block_bytes=16, prompt_bytes=48
        )
        self.mirror.prompt(request, "m", prompt_keys(TOKENS, SIZE, adapter), len(TOKENS))

    @property
    def blocks(self) -> set[int]:
        return {*self.mirror.held("m")}

    def hear(self, *events: Any) -> set[int]:
        self.chain.follow(events)
        return self.blocks


FIRST_TWO = BlockStored([b"A", b"B"], None, TOKENS[:8])
THIRD = BlockStored([b"C"], b"B", TOKENS[8:])


@pytest.fixture
def heard() -> Heard:
    return Heard()


def test_what_vllm_stores_is_held_until_it_is_removed(heard: Heard) -> None:
    assert heard.hear(FIRST_TWO) == {1, 2}
    assert heard.hear(THIRD) == {1, 2, 3}
    assert heard.hear(BlockRemoved([b"C"]), BlockRemoved([b"B"])) == {1}
    assert heard.hear(BlockStored([b"B"], b"A", TOKENS[4:8])) == {1, 2}


def test_a_whole_prompt_has_as_many_keys_as_whole_blocks() -> None:
    assert len(prompt_keys(TOKENS, SIZE, "")) == 3
    assert prompt_keys(TOKENS[:11], SIZE, "") == prompt_keys(TOKENS, SIZE, "")[:2]
    assert prompt_keys([], SIZE, "") == []


def test_the_same_tokens_behind_others_are_another_block(heard: Heard) -> None:
    assert heard.hear(BlockStored([b"A"], None, [1, 2, 3, 4]), BlockStored([b"B"], b"A", TOKENS[4:8])) == set()


def test_a_block_that_vllm_has_twice_goes_with_the_second(heard: Heard) -> None:
    heard.hear(FIRST_TWO, FIRST_TWO)
    assert heard.hear(BlockRemoved([b"B"])) == {1, 2}
    assert heard.hear(BlockRemoved([b"B"])) == {1}


def test_what_an_adapter_made_is_of_no_use_without_it(heard: Heard) -> None:
    adapted = BlockStored([b"A", b"B"], None, TOKENS[:8], lora_name="fancy", extra_keys=[("fancy",), ("fancy",)])
    assert heard.hear(adapted) == set()
    assert Heard("fancy").hear(adapted) == {1, 2}
    assert Heard("fancy").hear(FIRST_TWO) == set()


def test_a_picture_among_the_tokens_makes_another_block_and_others_of_all_behind_it(heard: Heard) -> None:
    seen = BlockStored([b"A", b"B", b"C"], None, TOKENS, extra_keys=[None, (("picture", 0),), None])
    assert heard.hear(seen) == {1}


def test_a_block_whose_beginning_is_not_known_stays_unknown(heard: Heard) -> None:
    assert heard.hear(THIRD) == set()
    assert heard.hear(FIRST_TWO, BlockRemoved([b"C"])) == {1, 2}


@pytest.mark.parametrize(
    "event",
    [
        BlockStored([b"A"], None, TOKENS[:4], medium="CPU"),
        BlockStored([b"A"], None, TOKENS[:4], kv_cache_spec_kind="sliding_window"),
        BlockStored([b"A"], None, TOKENS[:2], block_size=2),
        BlockStored([b"A"], None, TOKENS[:8]),
    ],
    ids=["elsewhere", "of layers that look back a little", "a part of a block", "some left out"],
)
def test_what_does_not_make_a_prompt_be_found_again_is_passed_over(heard: Heard, event: BlockStored) -> None:
    assert heard.hear(event) == set()


def test_of_several_kinds_of_layers_one_is_followed(heard: Heard) -> None:
    window = BlockStored([b"A", b"B"], None, TOKENS[:8], group_idx=0, kv_cache_spec_kind="sliding_window")
    full = BlockStored([b"A", b"B"], None, TOKENS[:8], group_idx=1)
    more = BlockStored([b"A", b"B"], None, TOKENS[:8], group_idx=2)
    assert heard.hear(window, full, more) == {1, 2}
    assert heard.hear(BlockRemoved([b"A"], group_idx=0), BlockRemoved([b"A"], group_idx=2)) == {1, 2}
    assert heard.hear(BlockRemoved([b"A"], group_idx=1)) == {2}
    assert heard.hear(BlockRemoved([b"B"], group_idx=1)) == set()


def test_a_cache_that_was_emptied_holds_nothing(heard: Heard) -> None:
    assert heard.hear(FIRST_TWO, AllBlocksCleared()) == set()
    assert heard.hear(THIRD) == set()


def test_batches_count_once_and_in_their_order(heard: Heard) -> None:
    order = InOrder(heard.chain)
    order.take(0, [FIRST_TWO])
    order.take(0, [AllBlocksCleared()])
    order.take(1, [THIRD])
    assert heard.blocks == {1, 2, 3}
    assert (order.expected, order.gaps) == (2, 0)


def test_after_a_batch_that_is_lost_for_good_nothing_is_believed(heard: Heard) -> None:
    order = InOrder(heard.chain)
    order.take(0, [FIRST_TWO])
    order.take(2, [BlockStored([b"X"], None, [1, 2, 3, 4])])
    assert heard.blocks == set()
    assert (order.expected, order.gaps) == (3, 1)
    # What comes from now on counts.
    order.take(3, [FIRST_TWO])
    assert heard.blocks == {1, 2}
