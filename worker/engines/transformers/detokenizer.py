"""Makes text of tokens as they come, without ever tearing a character. Pure; the caller brings the decoder.

A token's text may depend on the one before it (a space at the beginning of a word), and a character may take several
tokens. So tokens are decoded behind those already told, and what is new is told once it ends in a whole character.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

Decode = Callable[[Sequence[int]], str]
"""The text of some tokens, special ones left out."""

NO_TEXT = "\N{REPLACEMENT CHARACTER}"
"""What decoders write for bytes that are no text, or not yet."""

MAX_HELD = 16
"""Tokens held back while they are no text. A character has four bytes at most and each byte at most one token; what is
no text after so many never will be, and holding it back would cost more with every token."""


class Detokenizer:
    """One text as it comes: `feed` returns what is sure to be part of it, `flush` the rest when nothing more comes.

    What both returned, joined, is the text of all tokens. `context` are tokens before them, whose text is not told.
    """

    def __init__(self, decode: Decode, special: Collection[int], context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._special = special
        self._window = [token for token in context if token not in special]
        """The tokens that were told last, and those held back."""
        self._told_tokens = len(self._window)
        self._told = len(decode(self._window)) if self._window else 0
        """How much of the window's text was told, in characters."""

    def feed(self, token: int) -> str:
        if token in self._special:
            return ""
        self._window.append(token)
        text = self._decode(self._window)
        held = len(self._window) - self._told_tokens
        if len(text) <= self._told or (text.endswith(NO_TEXT) and held < MAX_HELD):
            return ""
        return self._tell(text)

    def flush(self) -> str:
        return self._tell(self._decode(self._window)) if len(self._window) > self._told_tokens else ""

    def _tell(self, text: str) -> str:
        new = text[self._told :]
        self._window = self._window[self._told_tokens :]
        self._told_tokens = len(self._window)
        self._told = len(self._decode(self._window))
        return new
