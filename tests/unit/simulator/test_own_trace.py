"""Our own format: lines in any order, blocks of tokens or blocks of bytes."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore.errors import ConfigError
from lbcore.prefix import bytes_of
from lbcore.simulator.byte_blocks import BLOCK_TOKENS, ByteBlocks
from lbcore.simulator.traces import read_trace
from lbcore.simulator.workload import Call, Workload


def trace(path: Path, *rows: object) -> Workload:
    file = path / "own.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return read_trace(file, "own")


def calls(workload: Workload) -> list[Call]:
    return [talk.calls[0] for talk in workload.conversations]


def row(at_ms: float, tokens: int, blocks: list[int], output: int = 1, **more: object) -> dict[str, object]:
    """A request that a gateway has written, with a tail that is no whole block."""
    return {
        "at_ms": at_ms,
        "input_tokens": tokens,
        "output_tokens": output,
        "prompt_bytes": bytes_of(len(blocks)) + 100,
        "byte_blocks": [f"{block:016x}" for block in blocks],
        **more,
    }


def shared(first: Call, second: Call) -> int:
    """Tokens that the second finds where the first was."""
    count = 0
    while count < min(len(first.blocks), len(second.blocks)) and first.blocks[count] == second.blocks[count]:
        count += 1
    return count * BLOCK_TOKENS


def test_lines_are_played_in_the_order_in_which_requests_came_from_the_first_on(tmp_path: Path) -> None:
    late = {"at_ms": 1_700_000_002_000, "input_tokens": 5, "output_tokens": 6, "tenant": "t", "priority": 2}
    early = {"at_ms": 1_700_000_000_500, "input_tokens": 7, "output_tokens": 8, "session": "s"}
    workload = trace(tmp_path, late, early)
    assert [(talk.name, talk.at_s) for talk in workload.conversations] == [("s", 0.0), ("1", 1.5)]
    assert calls(workload) == [Call(7, 8), Call(5, 6, priority=2, tenant="t")]


def test_blocks_of_tokens_are_taken_as_they_are(tmp_path: Path) -> None:
    workload = trace(
        tmp_path,
        {"at_ms": 0, "input_tokens": 33, "output_tokens": 1, "block_tokens": 16, "blocks": ["a", "ff"]},
        {"at_ms": 1, "input_tokens": 20, "output_tokens": 1, "blocks": ["a"]},
    )
    assert (workload.block_tokens, [call.blocks for call in calls(workload)]) == (16, [(10, 255), (10,)])


def test_a_line_that_was_cut_is_passed_over(tmp_path: Path) -> None:
    assert trace(tmp_path, row(0, 10, []), '{"at_ms": 1, "inp', row(2, 10, [])).calls == 2


def test_blocks_of_several_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="block_tokens is not the same"):
        trace(tmp_path, row(0, 10, []), {"at_ms": 0, "input_tokens": 1, "output_tokens": 1, "block_tokens": 16})


def test_a_shared_beginning_is_as_long_as_its_bytes_have_tokens_whatever_comes_behind(tmp_path: Path) -> None:
    # 2,048 bytes of 4 to a token, and behind them text of which each byte is a token, or sixteen bytes are.
    begin = [*range(1, 9)]
    workload = trace(
        tmp_path,
        row(0, (2048 + 100) // 4, begin),
        row(1, 512 + 8 * 256 + 100, [*begin, *range(100, 108)]),
        row(2, 512 + 8 * 16 + 7, [*begin, *range(200, 208)]),
    )
    first, dense, thin = calls(workload)
    assert workload.block_tokens == BLOCK_TOKENS
    assert shared(first, dense) == shared(first, thin) == 512
    assert shared(dense, thin) == 512
    assert [len(call.blocks) * BLOCK_TOKENS for call in (first, dense, thin)] == [512, 512 + 8 * 256, 512 + 8 * 16]


def test_a_conversation_gains_what_its_turns_were_counted_to_have(tmp_path: Path) -> None:
    # Turns of different density: no ratio of the whole would leave the beginning where it was.
    turns = [
        row(at, tokens, [*range(1, size)]) for at, (tokens, size) in enumerate([(600, 10), (2600, 20), (2700, 30)])
    ]
    found = calls(trace(tmp_path, *turns))
    for before, after in pairwise(found):
        assert shared(before, after) == len(before.blocks) * BLOCK_TOKENS
        # Of 100 bytes behind the last whole block none has more than 0.8 tokens.
        assert before.input_tokens - shared(before, after) < BLOCK_TOKENS + 80


def test_in_a_session_the_next_prompt_tells_what_the_answer_is_stored_under(tmp_path: Path) -> None:
    first = row(0, 1024 + 100, [*range(1, 17)], 500, session="s")
    second = row(9, 1024 + 100 + 500 + 300, [*range(1, 30)], 5, session="s")
    stranger = row(5, 1024 + 900, [*range(1, 17), 77, 78, 79, 80, 81], 5)
    alone = calls(trace(tmp_path, row(0, 1024 + 100, [*range(1, 17)], 500), stranger, second))[0]
    answered = calls(trace(tmp_path, first, stranger, second))[0]
    assert len(alone.blocks) <= 1124 // BLOCK_TOKENS
    assert 1124 // BLOCK_TOKENS < len(answered.blocks) <= (1124 + 500) // BLOCK_TOKENS


chains = st.lists(st.integers(0, 3), min_size=0, max_size=40)


@settings(derandomize=True, max_examples=200, deadline=None, database=None)
@given(
    st.lists(
        st.tuples(chains, st.integers(1, 5000), st.integers(0, 3000)),
        min_size=2,
        max_size=8,
    )
)
def test_equal_beginnings_stay_equal_and_different_ones_different(prompts: list[tuple[list[int], int, int]]) -> None:
    byte_blocks = ByteBlocks()
    made: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for choices, tokens, rest in prompts:
        # Hashes are chained: what follows depends on all before.
        hashes, before = [], 0
        for choice in choices:
            before = hash((before, choice)) % 2**64
            hashes.append(before)
        blocks = byte_blocks.token_blocks(tokens, bytes_of(len(hashes)) + rest, hashes)
        assert len(blocks) <= tokens // BLOCK_TOKENS
        assert len(set(blocks)) == len(blocks)
        assert all(0 <= block < 2**64 for block in blocks)
        made.append((tuple(hashes), blocks))
    for hashes, blocks in made:
        for other_hashes, other in made:
            common = sum(1 for one, two in zip(hashes, other_hashes, strict=False) if one == two)
            same = sum(1 for one, two in zip(blocks, other, strict=False) if one == two)
            assert blocks[:same] == other[:same]
            if hashes[: len(other_hashes)] == other_hashes and len(blocks) >= len(other):
                assert same == len(other)
            if not common:
                assert not set(blocks) & set(other)
