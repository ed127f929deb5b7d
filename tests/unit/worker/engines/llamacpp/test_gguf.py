"""Model files: a whole one is read, any other refused in one line."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from lbcore.errors import ConfigError
from worker.engines.llamacpp.gguf import GgufHead, read_gguf


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


ENTRIES = [
    entry("general.architecture", 8, text("llama")),
    entry("a.float", 6, struct.pack("<f", float("nan"))),
    entry("a.flag", 7, b"\x01"),
    entry("llama.context_length", 4, struct.pack("<I", 4096)),
    entry("tokens", 9, struct.pack("<IQ", 8, 2) + text("a") + text("日本")),
    entry("scores", 9, struct.pack("<IQ", 6, 3) + bytes(12)),
    entry("nested", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 5, 2) + bytes(8)),
]
TENSOR = text("weight") + struct.pack("<IQQIQ", 2, 4, 4, 0, 0)
HEAD = b"GGUF" + struct.pack("<IQQ", 3, 1, len(ENTRIES)) + b"".join(ENTRIES) + TENSOR
WHOLE = HEAD + bytes(64)


def write(folder: Path, content: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_gguf(path)
    assert "\n" not in caught.value.message
    assert str(path) in caught.value.message
    return caught.value.message


def test_a_whole_file_tells_what_it_is(tmp_path: Path) -> None:
    assert read_gguf(write(tmp_path, WHOLE)) == GgufHead("llama", 4096)


def test_a_file_need_not_say_what_it_was_trained_for(tmp_path: Path) -> None:
    assert read_gguf(write(tmp_path, b"GGUF" + struct.pack("<IQQ", 3, 0, 0))) == GgufHead("", 0)


@pytest.mark.parametrize("length", range(len(HEAD) + 1))
def test_a_file_cut_anywhere_in_its_head_is_refused(tmp_path: Path, length: int) -> None:
    assert "GGUF" in refusal(write(tmp_path, WHOLE[:length]))


@pytest.mark.parametrize("content", [b"", b"just some text\n", b"GGU", b"GGUF", b"GGUF" + bytes(range(256)) * 20])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    refusal(write(tmp_path, content))


def test_a_value_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    refusal(write(tmp_path, b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry("x", 99, b"") + bytes(64)))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "nothing.gguf")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "folder" in refusal(tmp_path)
