"""The cost `first_token`."""

from __future__ import annotations

import pytest

from lbcore.policies.costs.first_token import FirstToken
from lbcore.types import LoadReport, PickRequest, WorkerId
from tests.fleet import MODEL, endpoint


def test_the_cost_is_the_time_to_the_first_token_in_milliseconds() -> None:
    holder = endpoint("holder", load=LoadReport(queued_prompt_tokens=500))
    request = PickRequest(MODEL, 1000, {WorkerId("holder"): 800})
    assert list(FirstToken().cost(request, [holder, endpoint("free")])) == pytest.approx([70, 100])
