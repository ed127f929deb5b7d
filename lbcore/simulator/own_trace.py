"""The reader of our own traces, written by hand or by gateways. docs/simulator.md describes the format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from lbcore.simulator.byte_blocks import BLOCK_TOKENS, ByteBlocks
from lbcore.simulator.files import open_text
from lbcore.simulator.workload import Call, Conversation, Workload


def own(path: Path) -> Workload:
    """Our own format, which gateways write, too: docs/simulator.md describes it."""
    rows = sorted(_whole_lines(path), key=lambda row: cast("float", row["at_ms"]))
    begin_ms = rows[0]["at_ms"] if rows else 0.0
    block_tokens = _block_tokens(rows)
    byte_blocks = ByteBlocks()
    calls = [_own_call(row, byte_blocks) for row in rows]
    _continue_sessions([row.get("session", "") for row in rows], calls, block_tokens)
    conversations = [
        Conversation(row.get("session") or str(number), (row["at_ms"] - begin_ms) / 1000, (call,))
        for number, (row, call) in enumerate(zip(rows, calls, strict=True))
    ]
    return Workload(path.name.split(".")[0], conversations, block_tokens)


def _block_tokens(rows: Iterable[Mapping[str, Any]]) -> int:
    said = {row["block_tokens"] for row in rows if "block_tokens" in row}
    said |= {BLOCK_TOKENS for row in rows if "prompt_bytes" in row}
    if len(said) > 1:
        raise ValueError("block_tokens is not the same in all lines")
    return said.pop() if said else BLOCK_TOKENS


def _own_call(row: Mapping[str, Any], byte_blocks: ByteBlocks) -> Call:
    input_tokens = max(1, row["input_tokens"])
    if "prompt_bytes" in row:
        hashes = [int(block, 16) for block in row.get("byte_blocks", ())]
        blocks = byte_blocks.token_blocks(input_tokens, row["prompt_bytes"], hashes)
    else:
        blocks = tuple(int(block, 16) for block in row.get("blocks", ()))
    return Call(
        input_tokens,
        max(1, row["output_tokens"]),
        blocks,
        priority=row.get("priority", 0),
        tenant=row.get("tenant", ""),
    )


def _continue_sessions(sessions: Sequence[str], calls: list[Call], block_tokens: int) -> None:
    """Where the next prompt of a session goes on behind a prompt, it tells what the answer is stored under."""
    last: dict[str, int] = {}
    for number, session in enumerate(sessions):
        before = last.get(session)
        if session and before is not None:
            call, blocks = calls[before], calls[number].blocks
            if call.blocks and tuple(blocks[: len(call.blocks)]) == tuple(call.blocks):
                whole = (call.input_tokens + call.output_tokens) // block_tokens
                calls[before] = replace(call, blocks=blocks[: max(whole, len(call.blocks))])
        last[session] = number


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Without those that end in their middle: a gateway died, or a disk was full."""
    with open_text(path) as file:
        for line in file:
            with suppress(json.JSONDecodeError):
                yield json.loads(line)
