"""Text and tokens of one model: prompts in, answers out. Works with every tokenizer of transformers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from lbcore.errors import InvalidRequest
from worker.engines.transformers.body import Ask, Chat

_BYTE_TOKEN = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")
"""How vocabularies made by sentencepiece write a byte that is no text by itself."""


def byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level vocabularies write bytes: printable ones stand for themselves, the others for
    those from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


_BYTES = byte_alphabet()


class Vocabulary:
    """A tokenizer, and what this engine wants of it. `encode` may run beside all the rest, in one thread at a time."""

    def __init__(self, tokenizer: Any, size: int) -> None:
        self.size = size
        """How many scores the model gives: every smaller number is a token."""
        self._tokenizer = tokenizer
        self._fast = getattr(tokenizer, "backend_tokenizer", None) if getattr(tokenizer, "is_fast", False) else None
        added = tokenizer.added_tokens_decoder if self._fast is not None else {}
        #: Tokens whose text is left out. Fast tokenizers leave out what is marked so, whether it has a role or not.
        self.special = frozenset(tokenizer.all_special_ids).union(token for token, how in added.items() if how.special)
        self._byte_level = "ByteLevel" in str(getattr(self._fast, "decoder", ""))
        self.token = lru_cache(maxsize=2**16)(self._token)

    @property
    def has_chat_template(self) -> bool:
        return bool(getattr(self._tokenizer, "chat_template", None))

    def encode(self, ask: Ask) -> list[list[int]]:
        """The tokens of each prompt. Raises InvalidRequest."""
        if ask.chat is not None:
            prompts = [self.encode_text(self._render(ask.chat))]
        else:
            prompts = [
                self.encode_text(prompt, special=True) if isinstance(prompt, str) else prompt for prompt in ask.prompts
            ]
        for prompt in prompts:
            if not prompt:
                raise InvalidRequest(f"{ask.prompt_field} makes no token.", param=ask.prompt_field)
            if max(prompt) >= self.size:
                raise InvalidRequest(
                    f"{ask.prompt_field} holds a token id over {self.size - 1}.", param=ask.prompt_field
                )
        return prompts

    def encode_text(self, text: str, special: bool = False) -> list[int]:
        """The tokens of a text, if `special` with those that begin a prompt. Raises InvalidRequest."""
        try:
            return [*self._tokenizer(text, add_special_tokens=special)["input_ids"]]
        except UnicodeEncodeError:
            raise InvalidRequest("The prompt holds half a surrogate pair.") from None

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        if self._fast is not None:
            return str(self._fast.decode(tokens, skip_special_tokens=True))
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _token(self, token: int) -> tuple[str, bytes]:
        """A token by itself: as text, in which what is no text is replaced, and as bytes. `token` remembers it."""
        written = self._tokenizer.convert_ids_to_tokens(token)
        if written is None:
            return "", b""
        if token not in self.special:
            byte = _BYTE_TOKEN.match(written)
            if byte is not None:
                raw = bytes([int(byte[1], 16)])
                return raw.decode(errors="replace"), raw
            if self._byte_level and all(character in _BYTES for character in written):
                raw = bytes(_BYTES[character] for character in written)
                return raw.decode(errors="replace"), raw
            # The space before a word, which sentencepiece writes as a low line of its own.
            written = written.replace("\N{LOWER ONE EIGHTH BLOCK}", " ")
        return written, written.encode()

    def _render(self, chat: Chat) -> str:
        if not self.has_chat_template:
            raise InvalidRequest("The model has no chat template: it takes completions only.", param="messages")
        try:
            return str(self._tokenizer.apply_chat_template(chat.messages, tokenize=False, **chat.arguments))
        except Exception as error:
            # Templates refuse what they cannot write by raising; what they say may quote the messages.
            raise InvalidRequest(
                f"The model's chat template does not take these messages ({type(error).__name__}).", param="messages"
            ) from None
