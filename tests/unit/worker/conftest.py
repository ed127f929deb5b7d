"""What tests of the worker share."""

from __future__ import annotations

import pytest

from worker.lanes import Lanes


@pytest.fixture
def lanes() -> Lanes:
    """The lanes of one stream."""
    return Lanes()
