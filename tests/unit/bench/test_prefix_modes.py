"""The pure half of the comparison of prefix modes: what is asked, and what is made of what came."""

from __future__ import annotations

import pytest

from bench.prefix_modes import CONVERSATIONS, Figures, Seen, conversations, figures, table
from lbcore.client import conversation_bytes


def test_a_seed_asks_the_same_every_time() -> None:
    assert conversations(50, seed=1) == conversations(50, seed=1)
    assert conversations(50, seed=1) != conversations(50, seed=2)


def test_each_turn_begins_with_the_whole_turn_before() -> None:
    last: dict[int, bytes] = {}
    for turn in conversations(120, seed=0):
        data = conversation_bytes(turn.messages)
        assert data.startswith(last.get(turn.conversation, b""))
        assert len(turn.messages) % 2 == 0
        last[turn.conversation] = data
    assert CONVERSATIONS / 2 < len(last) <= CONVERSATIONS


def test_the_figures_count_tokens_and_not_requests() -> None:
    seen = [
        Seen("w0", prompt=100, cached=0, believed=50.0, ttft_ms=30.0),
        Seen("w1", prompt=900, cached=800, believed=700.0, ttft_ms=10.0),
        Seen("w1", prompt=1000, cached=200, believed=200.0, ttft_ms=20.0),
    ]
    assert figures("events", seen) == Figures(
        "events",
        requests=3,
        cached_ratio=0.5,
        mean_error=50.0,
        over_ratio=50 / 2000,
        under_ratio=100 / 2000,
        mean_ttft_ms=20.0,
        median_ttft_ms=20.0,
        busiest_ratio=pytest.approx(2 / 3),
    )


def test_the_table_has_each_round_and_the_mean_of_each_mode() -> None:
    one = Figures("own record", 10, 0.5, 50.0, 0.1, 0.05, 20.0, 18.0, 0.6)
    two = Figures("events", 10, 0.75, 10.0, 0.01, 0.02, 12.0, 11.0, 0.5)
    lines = table([one, two, two, one]).splitlines()
    assert lines[2] == "| own record | 1 | 50.0% | 10.0% | 5.0% | 50 tokens | 20 ms | 18 ms |"
    assert lines[4] == "| **own record** | mean | 50.0% | 10.0% | 5.0% | 50 tokens | 20 ms | 18 ms |"
    assert len(lines) == 8
