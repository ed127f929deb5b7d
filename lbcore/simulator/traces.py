"""Readers of request traces: the public ones' formats, and our own. One function each, all to a `Workload`."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from lbcore.errors import ConfigError
from lbcore.simulator.files import json_lines, open_text
from lbcore.simulator.own_trace import own
from lbcore.simulator.servegen import servegen
from lbcore.simulator.workload import Call, Conversation, Workload

_AGENTIC_BLOCKS = 8
"""Blocks of 64 tokens that are taken as one, of 512: a block's identity stands for all before it, so nothing is lost
but the last part of a match."""


_LONGEST_PAUSE_S = 300.0
"""Longer ones are cut to this: people leave agents alone for hours, and a few such conversations would go on alone."""


def mooncake(path: Path) -> Workload:
    """Mooncake's traces: JSON lines with timestamp (ms), input_length, output_length, hash_ids (512 tokens each)."""
    conversations = []
    for number, row in enumerate(json_lines(path)):
        length = max(1, row["input_length"])
        call = Call(length, max(1, row["output_length"]), tuple(row["hash_ids"][: length // 512]))
        conversations.append(Conversation(str(number), row["timestamp"] / 1000, (call,)))
    return Workload(_name(path), conversations, 512)


def azure(path: Path) -> Workload:
    """Azure's LLM inference traces of 2023: CSV with TIMESTAMP, ContextTokens, GeneratedTokens; nothing is shared."""
    conversations: list[Conversation] = []
    begin: datetime | None = None
    with open_text(path) as file:
        for number, row in enumerate(csv.DictReader(file)):
            # Seven digits of a second are one more than datetime reads.
            at = datetime.fromisoformat(row["TIMESTAMP"][:26])
            begin = begin or at
            call = Call(max(1, int(row["ContextTokens"])), max(1, int(row["GeneratedTokens"])))
            conversations.append(Conversation(str(number), (at - begin).total_seconds(), (call,)))
    return Workload(_name(path), conversations)


def agentic(path: Path) -> Workload:
    """Agents' conversations: JSON lines with requests (in, out, think_time, hash_runs of 64-token blocks), played in a
    closed loop. What sub-agents ask stands between their parent's requests, in order of time."""
    conversations = []
    for number, row in enumerate(json_lines(path)):
        requests = sorted(_flat(row["requests"]), key=lambda request: cast("float", request["t"]))
        blocks = [_coarse(request.get("hash_runs", ()), number) for request in requests]
        calls = []
        for index, request in enumerate(requests):
            length = max(1, request["in"])
            own = blocks[index][: length // 512]
            if index + 1 < len(blocks) and blocks[index + 1][: len(own)] == own:
                # The next prompt tells what this one's answer is stored under.
                own = blocks[index + 1][: (length + request["out"]) // 512]
            think_s = min(max(0.0, request.get("think_time") or 0.0), _LONGEST_PAUSE_S)
            calls.append(Call(length, max(1, request["out"]), own, think_s))
        if calls:
            conversations.append(Conversation(str(row["id"]), 0.0, tuple(calls)))
    return Workload(_name(path), conversations, 512, users=1)


def _flat(requests: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for request in requests:
        if "requests" in request:
            yield from _flat(request["requests"])
        else:
            yield request


def _coarse(runs: Sequence[Sequence[int]], conversation: int) -> tuple[int, ...]:
    ids = [block for start, length in runs for block in range(start, start + length)]
    # Ids mean something in their own conversation alone.
    return tuple((conversation << 32) + block for block in ids[_AGENTIC_BLOCKS - 1 :: _AGENTIC_BLOCKS])


READERS: Mapping[str, Callable[[Path], Workload]] = {
    "agentic": agentic,
    "azure": azure,
    "mooncake": mooncake,
    "own": own,
    "servegen": servegen,
}
"""Trace formats by name; a servegen trace is a folder."""


def read_trace(path: Path, form: str) -> Workload:
    """Raises ConfigError for a file that cannot be read so."""
    try:
        workload = READERS[form](path)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is no {form} trace: {type(error).__name__}: {error}") from error
    if workload.calls < 2:
        raise ConfigError(f"{path} has fewer than two requests")
    return workload


def _name(path: Path) -> str:
    return path.name.split(".")[0]
