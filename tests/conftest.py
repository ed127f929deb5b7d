"""Options of the whole test run."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engines",
        type=lambda names: names.split(","),
        default=[],
        help="run the contract tests on these engines, which may need packages of their own, instead of the usual ones",
    )
