"""Lines of a trace: what a replay needs, and nothing that tells who said what."""

from __future__ import annotations

import json
from typing import Any

from gateway.trace import TraceWriter
from lbcore.generation import Finished
from lbcore.prefix import block_hashes
from lbcore.types import RouteFacts

TEXT = b"You are a helpful assistant. " * 40
FACTS = RouteFacts(
    "r1", "m", len(TEXT), block_hashes(TEXT), priority=3, session_id="alice's session", tenant="alice & co"
)
USAGE = Finished(300, 200, 17)


def row(facts: RouteFacts = FACTS, key: bytes = b"key", usage: Finished = USAGE) -> dict[str, Any]:
    line = TraceWriter(key).line(facts, usage, 1_700_000_000.12345)
    assert line.endswith(b"}\n")
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_line_has_time_lengths_and_digests_of_the_rest() -> None:
    found = row()
    assert (found["at_ms"], found["input_tokens"], found["output_tokens"]) == (1_700_000_000_123.4, 300, 17)
    assert (found["prompt_bytes"], found["priority"]) == (len(TEXT), 3)
    assert len(found["byte_blocks"]) == len(FACTS.prefix_hashes)
    assert (len(found["session"]), len(found["tenant"])) == (12, 12)


def test_equal_beginnings_have_equal_digests_of_one_model_alone() -> None:
    longer = FACTS._replace(prefix_hashes=(*FACTS.prefix_hashes, 5))
    assert row(longer)["byte_blocks"][:-1] == row()["byte_blocks"]
    assert not set(row(FACTS._replace(model="other"))["byte_blocks"]) & set(row()["byte_blocks"])


def test_nobody_without_the_key_can_test_a_guess() -> None:
    mine, other = row(), row(key=b"another")
    assert not set(mine["byte_blocks"]) & set(other["byte_blocks"])
    assert mine["session"] != other["session"]
    assert not {f"{block:x}" for block in FACTS.prefix_hashes} & set(mine["byte_blocks"])
    assert b"alice" not in TraceWriter(b"key").line(FACTS, USAGE, 0.0)


def test_a_session_and_a_tenant_of_one_name_are_not_seen_to_be_one() -> None:
    found = row(FACTS._replace(session_id="bob", tenant="bob"))
    assert found["session"] != found["tenant"]


def test_what_there_is_not_is_left_out() -> None:
    assert {*row(RouteFacts("r", "m", 5))} == {"at_ms", "input_tokens", "output_tokens", "prompt_bytes"}
