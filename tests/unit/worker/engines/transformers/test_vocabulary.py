"""Tokens by themselves, prompts that make none, templates that refuse. With a tokenizer made up for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from lbcore.errors import InvalidRequest
from lbcore.generation import Dialect, GenerationRequest
from worker.engines.transformers.body import Ask, SamplingDefaults, read_body
from worker.engines.transformers.vocabulary import Vocabulary, byte_alphabet


class Backend:
    def __init__(self, decoder: str) -> None:
        self.decoder = decoder


@dataclass
class Added:
    special: bool


class Tokenizer:
    """Writes tokens as it is told, and encodes by the byte."""

    is_fast = True
    all_special_ids = (0,)
    chat_template = "there is one"

    def __init__(self, decoder: str, *written: str) -> None:
        self.backend_tokenizer = Backend(decoder)
        self._written = ("<|end|>", *written)
        self.added_tokens_decoder = {0: Added(True), 8: Added(True), 9: Added(False)}

    def convert_ids_to_tokens(self, token: int) -> str | None:
        return self._written[token] if token < len(self._written) else None

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [0] * add_special_tokens + [*text.encode()]}

    def apply_chat_template(self, messages: list[dict[str, Any]], *, tokenize: bool, **arguments: object) -> str:
        assert not tokenize
        if messages[0]["content"] == "secret":
            raise ValueError("secret")
        return "".join(f"{message['role']}:{message['content']};" for message in messages)


def ask(dialect: Dialect, body: bytes) -> Ask:
    return read_body(GenerationRequest("r", dialect, body), SamplingDefaults())


def chat(content: str) -> Ask:
    return ask(Dialect.CHAT, b'{"messages": [{"role": "user", "content": "%s"}]}' % content.encode())


def test_the_byte_alphabet_has_a_character_for_each_byte() -> None:
    alphabet = byte_alphabet()
    assert sorted(alphabet.values()) == [*range(256)]
    assert (alphabet["a"], alphabet["Ġ"], alphabet["Ċ"], alphabet["é"]) == (97, 32, 10, 0xE9)


def test_tokens_of_a_byte_level_vocabulary() -> None:
    vocabulary = Vocabulary(Tokenizer("ByteLevel(trim_offsets=True)", "Ġno", "æĹ", "<think >", "Ã©"), 9)
    assert vocabulary.special == {0, 8}
    assert [vocabulary.token(token) for token in range(6)] == [
        ("<|end|>", b"<|end|>"),
        (" no", b" no"),
        ("\N{REPLACEMENT CHARACTER}", b"\xe6\x97"),
        ("<think >", b"<think >"),
        ("é", "é".encode()),
        ("", b""),
    ]


def test_tokens_of_a_vocabulary_made_by_sentencepiece() -> None:
    vocabulary = Vocabulary(Tokenizer("Sequence(Replace, ByteFallback)", "▁no", "<0xE6>", "<0x41>", "é"), 9)
    assert [vocabulary.token(token) for token in range(1, 5)] == [
        (" no", b" no"),
        ("\N{REPLACEMENT CHARACTER}", b"\xe6"),
        ("A", b"A"),
        ("é", "é".encode()),
    ]


def test_prompts_of_all_kinds() -> None:
    vocabulary = Vocabulary(Tokenizer("ByteLevel"), 256)
    assert vocabulary.encode(chat("x")) == [[*b"user:x;"]]
    assert vocabulary.encode(ask(Dialect.COMPLETION, b'{"prompt": ["x", [5, 6]]}')) == [[0, *b"x"], [5, 6]]
    assert vocabulary.encode(ask(Dialect.COMPLETION, b'{"prompt": ""}')) == [[0]]


def test_token_ids_beyond_the_vocabulary_are_refused() -> None:
    vocabulary = Vocabulary(Tokenizer("ByteLevel"), 7)
    with pytest.raises(InvalidRequest, match="over 6") as caught:
        vocabulary.encode(ask(Dialect.COMPLETION, b'{"prompt": [[5], [7]]}'))
    assert caught.value.param == "prompt"


def test_what_a_template_does_not_take_is_refused_without_quoting_it() -> None:
    with pytest.raises(InvalidRequest) as caught:
        Vocabulary(Tokenizer("ByteLevel"), 256).encode(chat("secret"))
    assert caught.value.param == "messages"
    assert "secret" not in caught.value.message


def test_a_model_without_a_template_takes_no_chats() -> None:
    tokenizer = Tokenizer("ByteLevel")
    tokenizer.chat_template = ""
    with pytest.raises(InvalidRequest, match="no chat template"):
        Vocabulary(tokenizer, 256).encode(chat("x"))
