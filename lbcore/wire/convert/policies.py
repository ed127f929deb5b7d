"""Policies: which decides for what."""

from __future__ import annotations

from lbcore.api.v1 import admin_pb2
from lbcore.types import PolicyAssignment
from lbcore.wire.convert.workers import phase_from_proto, phase_to_proto


def policy_assignment_to_proto(assignment: PolicyAssignment) -> admin_pb2.PolicyAssignment:
    return admin_pb2.PolicyAssignment(
        model=assignment.model, phase=phase_to_proto(assignment.phase), policy=assignment.policy
    )


def policy_assignment_from_proto(message: admin_pb2.PolicyAssignment) -> PolicyAssignment:
    """An assignment as a value.

    Raises:
        InvalidRequest: the phase is not known.
    """
    return PolicyAssignment(message.model, phase_from_proto(message.phase), message.policy)
