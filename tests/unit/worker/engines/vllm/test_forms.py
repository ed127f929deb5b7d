"""What is looked at before vLLM sees a body."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lbcore.errors import InvalidRequest
from worker.engines.vllm.forms import MAX_CHOICES, Chat, Completion


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"use_beam_search": True}, "use_beam_search"),
        ({"n": MAX_CHOICES + 1, "temperature": 0}, "n"),
        ({"best_of": 3}, "best_of"),
    ],
)
def test_what_cannot_be_counted_or_would_be_ignored_is_refused(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Chat(SimpleNamespace()).check({"messages": [{"role": "user", "content": "x"}], **fields})
    assert refused.value.param == param


def test_prompts_and_choices_have_a_bound_together() -> None:
    form = Completion(SimpleNamespace())
    form.check({"prompt": ["a"] * 8, "n": MAX_CHOICES // 8})
    with pytest.raises(InvalidRequest) as refused:
        form.check({"prompt": ["a"] * 9, "n": MAX_CHOICES // 8})
    assert refused.value.param == "prompt"


def test_old_names_of_guides_are_put_into_todays() -> None:
    body: dict[str, object] = {"prompt": "x", "guided_regex": "[0-9]"}
    Completion(SimpleNamespace()).check(body)
    assert body["structured_outputs"] == {"regex": "[0-9]"}
    assert "guided_regex" not in body
