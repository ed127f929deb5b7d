"""Policies and phases as they travel."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.api.v1 import admin_pb2, routing_pb2
from lbcore.errors import InvalidRequest
from lbcore.types import PolicyAssignment, Role
from lbcore.wire import convert

TEXTS = st.text(max_size=12)
assignments = st.builds(PolicyAssignment, TEXTS, st.sampled_from(Role), TEXTS)


@given(assignments)
def test_an_assignment_survives(assignment: PolicyAssignment) -> None:
    message = convert.policy_assignment_to_proto(assignment)
    assert convert.policy_assignment_from_proto(message) == assignment


def test_a_phase_that_was_not_said_is_the_whole_request() -> None:
    assert convert.policy_assignment_from_proto(admin_pb2.PolicyAssignment()) == PolicyAssignment("", Role.MIXED, "")
    assert convert.facts_from_proto(routing_pb2.RouteRequest(model="m")).phase is Role.MIXED


def test_a_phase_of_a_later_version_is_refused_since_nobody_knows_who_takes_it() -> None:
    for read, message in (
        (convert.policy_assignment_from_proto, admin_pb2.PolicyAssignment(phase=77)),
        (convert.facts_from_proto, routing_pb2.RouteRequest(model="m", phase=77)),
    ):
        with pytest.raises(InvalidRequest) as caught:
            read(message)
        assert caught.value.param == "phase"
