"""lbctl explain: the facts that it asks with, and the page that it prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from lbcore.commands.explain import ExplainOptions, facts_of, page
from lbcore.errors import ConfigError
from lbcore.prefix import block_hashes
from lbcore.types import Candidate, Explanation, Role, WorkerId


def test_a_prompt_is_asked_about_as_a_gateway_would(tmp_path: Path) -> None:
    prompt = b"Once upon a time " * 50
    (tmp_path / "prompt").write_bytes(prompt)
    facts = facts_of(
        ExplainOptions(model="m", prompt_file=str(tmp_path / "prompt"), session="s", tenant="t", priority=2)
    )
    assert (facts.prompt_bytes, facts.prefix_hashes) == (len(prompt), block_hashes(prompt))
    assert (facts.session_id, facts.tenant, facts.priority, facts.phase) == ("s", "t", 2, Role.MIXED)


def test_a_length_alone_is_a_prompt_that_nobody_holds() -> None:
    facts = facts_of(ExplainOptions(model="m", prompt_bytes=4000, phase=Role.DECODE))
    assert (facts.prompt_bytes, facts.prefix_hashes, facts.phase) == (4000, (), Role.DECODE)


def test_a_prompt_has_one_length_and_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--prompt-bytes: the prompt of --prompt-file has a length of its own"):
        facts_of(ExplainOptions(model="m", prompt_file="x", prompt_bytes=1))
    with pytest.raises(ConfigError, match=r"--prompt-file: cannot read .*gone: No such file"):
        facts_of(ExplainOptions(model="m", prompt_file=str(tmp_path / "gone")))


def test_the_page_has_the_reason_and_a_line_for_each_worker() -> None:
    candidates = (
        Candidate(WorkerId("w1"), 41.26, 3072.0, {"wait": 0.0, "own": 40.0, "held": 1.26}),
        Candidate(WorkerId("worker-10"), 1097.0, 0.0, {"wait": 0.0, "own": 1097.0, "held": 0.0}),
        Candidate(WorkerId("w2"), cached_tokens=12.0, excluded_by="has_room"),
    )
    explanation = Explanation("cost", 4000, 0.0, "cheapest of 2", candidates)
    assert page(WorkerId("w1"), explanation).splitlines() == [
        "to w1, by cost: cheapest of 2",
        "4,000 prompt tokens, as estimated",
        "",
        "worker        cost  cached      own  held  left out by",
        "w1            41.3   3,072     40.0   1.3",
        "worker-10  1,097.0       0  1,097.0   0.0",
        "w2                      12                 has_room",
    ]


def test_a_page_of_nobody_says_so() -> None:
    explanation = Explanation("cost", 1, 0.0, "would wait for w1: the only one that can take it", ())
    assert page(None, explanation).splitlines()[0] == (
        "to nobody now, by cost: would wait for w1: the only one that can take it"
    )
