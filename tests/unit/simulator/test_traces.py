"""Readers of traces, on rows as the public files have them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from lbcore.errors import ConfigError
from lbcore.simulator.traces import read_trace


def lines(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def test_mooncake_has_times_in_milliseconds_and_blocks_of_which_the_last_is_not_whole(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "conversation.jsonl",
        {"timestamp": 0, "input_length": 1100, "output_length": 500, "hash_ids": [0, 1, 2]},
        {"timestamp": 3000, "input_length": 512, "output_length": 0, "hash_ids": [0]},
    )
    workload = read_trace(path, "mooncake")
    assert (workload.name, workload.block_tokens, workload.users) == ("conversation", 512, 0)
    assert [talk.at_s for talk in workload.conversations] == [0.0, 3.0]
    first, second = (talk.calls[0] for talk in workload.conversations)
    assert (first.input_tokens, first.output_tokens, tuple(first.blocks)) == (1100, 500, (0, 1))
    # A call has one token of answer at least: that is when it is over.
    assert (second.output_tokens, tuple(second.blocks)) == (1, (0,))


def test_a_compressed_file_is_read_as_a_plain_one(tmp_path: Path) -> None:
    row = json.dumps({"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": []})
    path = tmp_path / "trace.jsonl.gz"
    path.write_bytes(gzip.compress(f"{row}\n{row}".encode()))
    assert read_trace(path, "mooncake").calls == 2


def test_azure_counts_from_its_first_request(tmp_path: Path) -> None:
    path = tmp_path / "conv.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,109\n",
        encoding="utf-8",
    )
    workload = read_trace(path, "azure")
    assert [round(talk.at_s, 3) for talk in workload.conversations] == [0.0, 4.315]
    assert [(talk.calls[0].input_tokens, talk.calls[0].output_tokens) for talk in workload.conversations] == [
        (374, 44),
        (396, 109),
    ]


def agent(identity: str, *requests: dict[str, object]) -> dict[str, object]:
    return {"id": identity, "block_size": 64, "requests": list(requests)}


def request(t: float, tokens: int, runs: list[list[int]], **more: object) -> dict[str, object]:
    return {"t": t, "type": "n", "in": tokens, "out": 100, "hash_runs": runs, "think_time": 1.0, **more}


def test_an_agents_conversation_is_played_call_after_call_with_its_pauses(tmp_path: Path) -> None:
    path = lines(tmp_path / "agents.jsonl", agent("a", request(0, 1024, [[1, 16]]), request(5, 1536, [[1, 24]])))
    workload = read_trace(path, "agentic")
    assert workload.users == 1
    (talk,) = workload.conversations
    first, second = talk.calls
    assert (first.input_tokens, second.input_tokens, second.think_s) == (1024, 1536, 1.0)
    # Eight blocks of 64 are one of 512, known by its last.
    assert (tuple(first.blocks), tuple(second.blocks)) == ((8, 16), (8, 16, 24))


def test_an_answer_is_stored_under_the_blocks_of_the_next_prompt(tmp_path: Path) -> None:
    longer = request(0, 1000, [[1, 15]], out=600)
    path = lines(tmp_path / "agents.jsonl", agent("a", longer, request(5, 1664, [[1, 26]])))
    first = read_trace(path, "agentic").conversations[0].calls[0]
    assert tuple(first.blocks) == (8, 16, 24)


def test_blocks_of_two_conversations_are_different_blocks(tmp_path: Path) -> None:
    alike = request(0, 512, [[1, 8]])
    path = lines(tmp_path / "agents.jsonl", agent("a", alike), agent("b", alike))
    first, second = (talk.calls[0].blocks[0] for talk in read_trace(path, "agentic").conversations)
    assert first != second


def test_what_sub_agents_ask_stands_between_their_parents_calls_by_time(tmp_path: Path) -> None:
    nested = {"t": 1, "type": "nested", "requests": [request(2, 64, []), request(9, 65, [])]}
    path = lines(tmp_path / "agents.jsonl", agent("a", request(0, 1, []), nested, request(5, 2, [])))
    assert [call.input_tokens for call in read_trace(path, "agentic").conversations[0].calls] == [1, 64, 2, 65]


def test_an_empty_trace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"trace\.jsonl has fewer than two requests"):
        read_trace(path, "mooncake")


@pytest.mark.parametrize("text", ["not json", '{"timestamp": 1}', '["list"]', "1"])
def test_what_is_no_such_trace_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"trace\.jsonl is no mooncake trace"):
        read_trace(path, "mooncake")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.jsonl"):
        read_trace(tmp_path / "gone.jsonl", "mooncake")
