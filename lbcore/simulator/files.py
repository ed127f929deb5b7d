"""Files of traces: plain or compressed, as text or as JSON lines."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast


def open_text(path: Path) -> TextIO:
    """UTF-8; a name that ends with .gz is of a compressed file."""
    if path.suffix == ".gz":
        return cast("TextIO", gzip.open(path, "rt", encoding="utf-8"))
    return path.open(encoding="utf-8")


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """A value of each line that is not empty."""
    with open_text(path) as file:
        for line in file:
            if line.strip():
                yield json.loads(line)
