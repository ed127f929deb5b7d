"""Options of the whole test run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes is the machine's affair; a slow one is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

ENGINES = Path(__file__).parent / "engines"
"""Tests that need packages which only `make test-engines` installs."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engines",
        type=lambda names: names.split(","),
        default=[],
        help="run the contract tests on these engines, which may need packages of their own, instead of the usual ones",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path == ENGINES and not config.getoption("engines") else None
