"""Readers of request traces: the public ones' formats, and our own. One function each, all to a `Workload`."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any, TextIO, cast

from lbcore.errors import ConfigError
from lbcore.simulator.workload import Call, Conversation, Workload

_AGENTIC_BLOCKS = 8
"""Blocks of 64 tokens that are taken as one, of 512: a block's identity stands for all before it, so nothing is lost
but the last part of a match."""


_LONGEST_PAUSE_S = 300.0
"""Longer ones are cut to this: people leave agents alone for hours, and a few such conversations would go on alone."""


def mooncake(path: Path) -> Workload:
    """Mooncake's traces: JSON lines with timestamp (ms), input_length, output_length, hash_ids (512 tokens each)."""
    conversations = []
    for number, row in enumerate(_json_lines(path)):
        length = max(1, row["input_length"])
        call = Call(length, max(1, row["output_length"]), tuple(row["hash_ids"][: length // 512]))
        conversations.append(Conversation(str(number), row["timestamp"] / 1000, (call,)))
    return Workload(_name(path), conversations, 512)


def azure(path: Path) -> Workload:
    """Azure's LLM inference traces of 2023: CSV with TIMESTAMP, ContextTokens, GeneratedTokens; nothing is shared."""
    conversations: list[Conversation] = []
    begin: datetime | None = None
    with _open(path) as file:
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
    for number, row in enumerate(_json_lines(path)):
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


def servegen(rates: Path, lengths: Path, seed: int = 1, begin_s: float = 0.0, end_s: float = 7200.0) -> Workload:
    """ServeGen's client pools: for each client and window a rate, a law of the pauses between its requests, and
    distributions of lengths. What is between `begin_s` and `end_s` of the day, drawn by chance."""
    rng = Random(seed)
    known = _lengths(lengths)
    conversations: list[Conversation] = []
    with _open(rates) as file:
        for row in csv.DictReader(file):
            start = float(row["window_start_s"])
            client = row["client"]
            if not begin_s <= start < end_s or client not in known:
                continue
            windows = known[client]
            inputs, outputs = max((one for one in windows if one[0] <= start), default=windows[0])[1:]
            at = start
            pause = _pauses(row, rng)
            while (at := at + pause()) < start + 600:
                call = Call(max(1, round(inputs(rng))), max(1, round(outputs(rng))))
                conversations.append(Conversation(client, at - begin_s, (call,)))
    conversations.sort(key=lambda conversation: conversation.at_s)
    return Workload("servegen", conversations)


Draw = Callable[[Random], float]


def _pauses(row: Mapping[str, str], rng: Random) -> Callable[[], float]:
    rate = float(row["rate"])
    shape, scale = (float(value) for value in list(row.values())[-2:])
    if row["pattern"] == "Weibull":
        return lambda: rng.weibullvariate(scale, shape)
    if row["pattern"] == "Gamma":
        return lambda: rng.gammavariate(shape, scale)
    return lambda: rng.expovariate(rate)


def _lengths(path: Path) -> dict[str, list[tuple[float, Draw, Draw]]]:
    known: dict[str, list[tuple[float, Draw, Draw]]] = {}
    for row in _json_lines(path):
        draws = _draw(row["input_tokens"]), _draw(row["output_tokens"])
        known.setdefault(str(row["client"]), []).append((float(row["window_start_s"]), *draws))
    for windows in known.values():
        windows.sort(key=lambda window: window[0])
    return known


def _draw(text: str) -> Draw:
    table = _table(text)
    values = [float(value) for value in table]
    weights = list(accumulate(float(weight) for weight in table.values()))
    return lambda rng: rng.choices(values, cum_weights=weights)[0]


def _table(text: str) -> dict[str, float]:
    # A Python dictionary of numbers in writing: its keys have no quotes, so it is no JSON.
    pairs = (pair.split(":") for pair in text.strip("{} ").split(",") if pair)
    return {length.strip(): float(probability) for length, probability in pairs}


def own(path: Path) -> Workload:
    """Our own format: docs/simulator.md describes it."""
    conversations = []
    block_tokens = 64
    for number, row in enumerate(_json_lines(path)):
        block_tokens = row.get("block_tokens", block_tokens)
        call = Call(
            max(1, row["input_tokens"]),
            max(1, row["output_tokens"]),
            tuple(int(block, 16) for block in row.get("blocks", ())),
            priority=row.get("priority", 0),
            tenant=row.get("tenant", ""),
        )
        conversations.append(Conversation(row.get("session") or str(number), row["at_ms"] / 1000, (call,)))
    return Workload(_name(path), conversations, block_tokens)


READERS: Mapping[str, Callable[[Path], Workload]] = {
    "agentic": agentic,
    "azure": azure,
    "mooncake": mooncake,
    "own": own,
}
"""Trace formats by name."""


def read_trace(path: Path, form: str) -> Workload:
    """Raises ConfigError for a file that cannot be read so."""
    try:
        workload = READERS[form](path)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is no {form} trace: {type(error).__name__}: {error}") from error
    if workload.calls < 2:
        raise ConfigError(f"{path} has fewer than two requests")
    return workload


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with _open(path) as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return cast("TextIO", gzip.open(path, "rt", encoding="utf-8"))
    return path.open(encoding="utf-8")


def _name(path: Path) -> str:
    return path.name.split(".")[0]
