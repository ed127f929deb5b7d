"""The files of the project, for the tests of its rules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("lbcore", "gateway", "worker")
PART_FOLDERS = ("filters", "scorers", "pickers", "costs")
"""Folders of `lbcore/policies` with one part in each file."""
GENERATED = ROOT / "lbcore" / "api"


def python_files() -> Iterator[Path]:
    """Every Python file that people write."""
    for folder in (*PACKAGES, "tests", "tools", "bench", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if GENERATED not in path.parents:
                yield path


def documents() -> Iterator[Path]:
    """Every page for readers."""
    yield from sorted(ROOT.glob("*.md"))
    for folder in ("docs", "deploy", "examples", "bench", *PACKAGES):
        yield from sorted((ROOT / folder).rglob("*.md"))


def name(path: Path) -> str:
    """The path from the root."""
    return path.relative_to(ROOT).as_posix()
