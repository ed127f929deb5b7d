"""Reads the head of a GGUF file: enough to say in one line why it cannot be served, before llama.cpp sees it."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from lbcore.errors import ConfigError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the value types that are one number each, by GGUF's number for them."""
_UNSIGNED = {4: "<I", 10: "<Q"}
"""The formats of those that a length is written in."""


@dataclass(frozen=True, slots=True)
class GgufHead:
    """What the worker wants to know of a model file."""

    architecture: str
    context_length: int
    """What the model was trained for, in tokens; 0 when the file does not say."""


class _Damaged(Exception):
    pass


def read_gguf(path: Path) -> GgufHead:
    """Raises ConfigError, in one line, for a path that is no whole GGUF file."""
    try:
        if path.is_dir():
            raise ConfigError(f"--model: {path} is a folder; the llamacpp engine wants a GGUF file")
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ConfigError(f"--model: {path} is not a GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(data, len(_MAGIC)).head()
    except OSError as error:
        raise ConfigError(f"--model: {path} cannot be read: {error.strerror}") from None
    except (_Damaged, struct.error, UnicodeDecodeError):
        raise ConfigError(f"--model: {path} is damaged, cut short, or of a GGUF version before 2") from None


class _Reader:
    def __init__(self, data: mmap.mmap, at: int) -> None:
        self._data = data
        self._at = at

    def head(self) -> GgufHead:
        version = self._number("<I")
        if version not in _VERSIONS:
            raise _Damaged
        tensor_count, entry_count = self._number("<Q"), self._number("<Q")
        facts: dict[str, object] = {}
        for _ in range(entry_count):
            name = self._string()
            facts[name] = self._value(self._number("<I"))
        self._check_tensors(tensor_count)
        architecture = str(facts.get("general.architecture", ""))
        length = facts.get(f"{architecture}.context_length", 0)
        return GgufHead(architecture, length if isinstance(length, int) else 0)

    def _check_tensors(self, count: int) -> None:
        """Every tensor must begin inside the file; that the last one also ends there is for llama.cpp to find."""
        last = 0
        for _ in range(count):
            self._string()
            dimensions = self._number("<I")
            self._skip(8 * dimensions + 4)
            last = max(last, self._number("<Q"))
        if count and self._at + last >= len(self._data):
            raise _Damaged

    def _value(self, kind: int) -> object:
        if kind == _STRING:
            return self._string()
        if kind in _UNSIGNED:
            return self._number(_UNSIGNED[kind])
        if kind != _ARRAY:
            self._skip(self._size(kind))
            return None
        kind, count = self._number("<I"), self._number("<Q")
        if kind == _STRING:
            for _ in range(count):
                self._skip(self._number("<Q"))
        elif kind == _ARRAY:
            for _ in range(count):
                self._value(_ARRAY)
        else:
            self._skip(count * self._size(kind))
        return None

    def _size(self, kind: int) -> int:
        if kind not in _SIZES:
            raise _Damaged
        return _SIZES[kind]

    def _number(self, layout: str) -> int:
        (number,) = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return cast("int", number)

    def _string(self) -> str:
        start = self._at + 8
        self._skip(self._number("<Q"))
        return self._data[start : self._at].decode()

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > len(self._data):
            raise _Damaged
