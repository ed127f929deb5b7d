"""llama.cpp's server would ignore some fields and break on others."""

from __future__ import annotations

import orjson
import pytest

from lbcore.errors import InvalidRequest
from lbcore.generation import Dialect, GenerationRequest
from worker.engines.openai.body import Ask, read_body
from worker.engines.openai.kinds import KINDS, Facts
from worker.engines.openai.llamacpp import adapt

KIND = next(kind for kind in KINDS if kind.name == "llamacpp")
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("look", "hear")]


def ask(dialect: Dialect = Dialect.CHAT, **fields: object) -> Ask:
    prompt = {"messages": [{"role": "user", "content": "x"}]} if dialect is Dialect.CHAT else {"prompt": "x"}
    return read_body(GenerationRequest("r", dialect, orjson.dumps({**prompt, **fields})))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"echo": True}, "echo"),
        ({"id_slot": 1}, "id_slot"),
        ({"grammar": 'root ::= "a"{5,2}'}, "grammar"),
        ({"tool_choice": "required", "tools": TOOLS}, "tool_choice"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        adapt(ask(**fields), Facts(KIND, knows_tools=False))
    assert caught.value.param == param


def test_a_tool_chosen_by_name_is_the_only_one() -> None:
    choice = {"type": "function", "function": {"name": "hear"}}
    changes = adapt(ask(tools=TOOLS, tool_choice=choice), Facts(KIND))
    assert changes == {"tools": [TOOLS[1]], "tool_choice": "required"}


def test_log_probabilities_without_likely_tokens_are_log_probabilities() -> None:
    assert adapt(ask(logprobs=True), Facts(KIND)) == {"top_logprobs": 1}
    assert adapt(ask(Dialect.COMPLETION, logprobs=0), Facts(KIND)) == {"logprobs": 1}
    assert adapt(ask(logprobs=True, top_logprobs=3), Facts(KIND)) == {}
