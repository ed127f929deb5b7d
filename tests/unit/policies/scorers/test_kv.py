"""The scorer `kv`."""

from __future__ import annotations

import pytest

from lbcore.policies.scorers.kv import Kv
from lbcore.types import Capacity
from tests.unit.policies.workers import prompt, worker

SILENT = Capacity(max_sequences=8)
"""Of a worker that says nothing of its KV cache."""


def test_the_score_is_the_free_part_of_the_cache() -> None:
    workers = [worker(kv_used_blocks=used) for used in (0, 250, 1000, 1200)]
    assert Kv().score(prompt(), workers) == [1.0, 0.75, 0.0, 0.0]


def test_who_does_not_say_has_the_mean_of_those_who_do() -> None:
    workers = worker(kv_used_blocks=200), worker(kv_used_blocks=600), worker(capacity=SILENT)
    assert Kv().score(prompt(), workers)[2] == pytest.approx(0.6)


def test_where_nobody_says_all_are_empty() -> None:
    assert Kv().score(prompt(), [worker(capacity=SILENT, kv_used_blocks=7)] * 2) == [1.0, 1.0]
