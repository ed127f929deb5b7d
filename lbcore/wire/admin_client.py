"""What operators' tools ask of the scheduler: one call on a connection of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from lbcore.api.v1 import admin_pb2, admin_pb2_grpc
from lbcore.errors import DeadlineExceeded, NoReadyWorker, WorkerUnreachable
from lbcore.types import Explanation, PolicyAssignment, RouteFacts, WorkerId
from lbcore.wire.channel import open_channel
from lbcore.wire.convert import (
    explanation_from_proto,
    policy_assignment_from_proto,
    policy_assignment_to_proto,
    write_facts,
)
from lbcore.wire.status import error_from_rpc

PATIENCE_S = 5.0
"""A scheduler that has not answered after so long counts as gone; it does so within milliseconds."""


async def list_policies(address: str) -> list[PolicyAssignment]:
    """Which policy decides for what.

    Raises:
        NoReadyWorker: no scheduler answers there.
    """
    async with _admin(address) as stub:
        response = await stub.ListPolicies(admin_pb2.ListPoliciesRequest(), timeout=PATIENCE_S)
    return [policy_assignment_from_proto(message) for message in response.assignments]


async def set_policy(address: str, assignment: PolicyAssignment) -> None:
    """Another policy decides from here on.

    Raises:
        InvalidRequest: there is no such policy, or a phase would be left without any.
        NoReadyWorker: no scheduler answers there.
    """
    message = admin_pb2.SetPolicyRequest(assignment=policy_assignment_to_proto(assignment))
    async with _admin(address) as stub:
        await stub.SetPolicy(message, timeout=PATIENCE_S)


async def explain_route(address: str, facts: RouteFacts) -> tuple[WorkerId | None, Explanation]:
    """To whom a request with these facts would be sent now, or None when it would wait for room; and why.

    Raises:
        ModelNotFound: no worker serves the model.
        NoReadyWorker: no scheduler answers there.
    """
    message = admin_pb2.ExplainRouteRequest()
    write_facts(facts, (), None, message.route)
    async with _admin(address) as stub:
        response = await stub.ExplainRoute(message, timeout=PATIENCE_S)
    worker_id = WorkerId(response.worker.worker_id) if response.HasField("worker") else None
    return worker_id, explanation_from_proto(response.explanation)


@asynccontextmanager
async def _admin(address: str) -> AsyncIterator[Any]:
    async with open_channel(address) as channel:
        try:
            yield admin_pb2_grpc.AdminServiceStub(channel)  # type: ignore[no-untyped-call]
        except grpc.RpcError as rpc_error:
            error = error_from_rpc(rpc_error)
            if isinstance(error, WorkerUnreachable | DeadlineExceeded):
                raise NoReadyWorker(f"No scheduler answers at {address}.") from rpc_error
            raise error from rpc_error
