"""A file of lines: written in time, whole, and never at the cost of whose lines they are."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from lbcore import line_file
from lbcore.errors import ConfigError
from lbcore.line_file import FLUSH_S, LineFile
from tests.fakes import ManualClock


async def test_lines_are_written_within_a_second_and_at_the_end(tmp_path: Path) -> None:
    path, clock = tmp_path / "log", ManualClock()
    file = LineFile(str(path), "--log")
    writing = asyncio.create_task(file.keep_writing(clock))
    file.put(b"1\n")
    await clock.elapse(FLUSH_S / 2)
    assert path.read_bytes() == b""
    await clock.elapse(FLUSH_S / 2)
    await file.flush()
    assert path.read_bytes() == b"1\n"
    file.put(b"2\n")
    writing.cancel()
    await file.close()
    assert path.read_bytes() == b"1\n2\n"
    assert path.stat().st_mode & 0o777 == 0o600


async def test_two_files_of_one_path_append_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    files = [LineFile(str(path), "--log") for _ in range(3)]
    for number in range(50):
        for name, file in enumerate(files):
            file.put(b"%d " % name * 1000 + b"\n")
        await files[number % 3].flush()
    await asyncio.gather(*(file.close() for file in files))
    lines = path.read_bytes().splitlines()
    assert len(lines) == 150
    assert all(len(set(line.split())) == 1 and len(line) == 2000 for line in lines)


async def test_a_line_that_was_cut_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"whole\ncu")
    file = LineFile(str(path), "--log")
    file.put(b"next\n")
    await file.close()
    assert path.read_bytes() == b"whole\ncu\nnext\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only where there is a disk that is always full")
async def test_a_full_disk_is_said_once_and_ends_the_writing() -> None:
    file = LineFile("/dev/full", "--log")
    with capture_logs() as logs:
        for _ in range(3):
            file.put(b"line\n")
            await file.flush()
    assert [(entry["event"], entry["path"], entry["reason"]) for entry in logs] == [
        ("file_given_up", "/dev/full", "No space left on device")
    ]
    assert not file.is_open
    await file.close()


async def test_what_a_slow_disk_leaves_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_file, "MAX_UNWRITTEN_BYTES", 10)
    file = LineFile(str(tmp_path / "log"), "--log")
    with capture_logs() as logs:
        for _ in range(9):
            file.put(b"line\n")
    assert [entry["reason"] for entry in logs] == ["the disk is too slow"]
    await file.close()
    assert (tmp_path / "log").read_bytes() == b""


def test_a_file_that_cannot_be_opened_is_named_with_its_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--log: cannot write .*gone/log: No such file or directory"):
        LineFile(str(tmp_path / "gone" / "log"), "--log")
