"""Ends that are the engine's fault."""

from __future__ import annotations

from worker.engines.ends import closed, surprised


def test_the_text_of_a_surprise_is_not_told() -> None:
    error = surprised(ValueError("the client's words"))
    assert "ValueError" in error.message
    assert "words" not in error.message


def test_before_the_first_of_an_answer_another_worker_may_take_over() -> None:
    assert closed(begun=False).retry_elsewhere
    assert not closed(begun=True).retry_elsewhere
