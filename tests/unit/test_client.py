"""What the Python client hashes."""

from __future__ import annotations

import pytest

from gateway.prompt import chat_prompt, completion_prompt
from lbcore.client import conversation_bytes, token_bytes
from lbcore.errors import InvalidRequest


def test_a_conversation_and_tokens_give_the_bytes_that_the_gateway_hashes() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Grüße 🙂"},
        {"role": "assistant", "content": ""},
    ]
    assert conversation_bytes(messages) == chat_prompt(messages, None)
    assert token_bytes([1, 2, 4_000_000_000]) == completion_prompt([1, 2, 4_000_000_000])[0]


@pytest.mark.parametrize("tokens", [[-1], [2**32], ["a"], [1.5]])
def test_what_is_no_token_is_refused_by_name(tokens: list[int]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        token_bytes(tokens)
    assert caught.value.param == "prompt"
