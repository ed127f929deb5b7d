"""When vLLM's core is asked to say what its prefix cache holds, and when it is not."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lbcore.generation import Dialect, GenerationRequest
from tests.fakes import ManualClock
from worker.engines.vllm.engine import VllmEngine, VllmOptions
from worker.engines.vllm.events import KvEvents
from worker.engines.vllm.serving import _is_alone


def config(caches: bool = True, cores: int = 1, elsewhere: object = None) -> Any:
    return SimpleNamespace(
        cache_config=SimpleNamespace(enable_prefix_caching=caches),
        parallel_config=SimpleNamespace(data_parallel_size=cores),
        kv_events_config=elsewhere,
    )


@pytest.mark.parametrize(
    ("asked", "left"),
    [(config(caches=False), None), (config(cores=2), None), (config(elsewhere="the operator's"), "the operator's")],
    ids=["without a prefix cache", "with several of them", "that tells somebody else"],
)
def test_a_core_is_not_asked(asked: Any, left: object) -> None:
    engine = VllmEngine("some/model", ("m",), VllmOptions(), ManualClock())
    engine._ask_for_events(asked)
    assert asked.kv_events_config == left
    assert engine._mirror(SimpleNamespace(lora_modules=None)) is None


def test_where_a_socket_s_path_would_be_too_long_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(OSError, match="too long"):
        KvEvents(ManualClock())
    assert [*deep.iterdir()] == []
    asked = config()
    VllmEngine("some/model", ("m",), VllmOptions(), ManualClock())._ask_for_events(asked)
    assert asked.kv_events_config is None


def test_before_the_core_is_there_prompts_are_passed_over_and_closing_leaves_nothing() -> None:
    events = KvEvents(ManualClock())
    folder = Path(events._folder.name)
    request = GenerationRequest("r", Dialect.CHAT, b"", prefix_hashes=(1,), prompt_bytes=256)
    events.prompt(request, "m", [1] * 64, "")
    events.ended("r")
    assert folder.is_dir()
    assert folder.stat().st_mode & 0o077 == 0
    asyncio.run(events.close())
    asyncio.run(events.close())
    assert not folder.exists()


@pytest.mark.parametrize(
    ("prompt", "alone"),
    [(None, True), ("text", True), (["text"], True), ([1, 2, 3], True), ([[1, 2]], True), (["a", "b"], False)],
)
def test_only_a_prompt_that_is_alone_is_told(prompt: object, alone: bool) -> None:
    assert _is_alone({"prompt": prompt}) is alone
