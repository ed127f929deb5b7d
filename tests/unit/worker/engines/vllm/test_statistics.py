"""What the engine cores say, summed up."""

from __future__ import annotations

import pytest

from lbcore.generation import Finished
from worker.engines.vllm.statistics import CoreStatistics


def test_several_engine_cores_are_one_engine() -> None:
    statistics = CoreStatistics()
    statistics.said(0, running=3, waiting=1, kv_usage=0.5)
    statistics.said(1, running=2, waiting=4, kv_usage=0.1)
    statistics.said(0, running=4, waiting=0, kv_usage=0.7)
    assert (statistics.running, statistics.waiting) == (6, 4)
    assert statistics.kv_usage == pytest.approx(0.4)


def test_before_the_first_word_nothing_runs() -> None:
    assert (CoreStatistics().running, CoreStatistics().kv_usage) == (0, 0)


def test_only_whole_blocks_that_were_not_there_before_are_filled() -> None:
    statistics = CoreStatistics()
    statistics.filled(Finished(prompt_tokens=40, cached_tokens=32, output_tokens=30), block_size=16)
    assert statistics.blocks_filled == 2
    statistics.filled(Finished(prompt_tokens=10, cached_tokens=0, output_tokens=3), block_size=16)
    assert statistics.blocks_filled == 2
