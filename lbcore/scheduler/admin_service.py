"""AdminService: what operators see and order."""

from __future__ import annotations

from typing import Any

import grpc

from lbcore.api.v1 import admin_pb2, admin_pb2_grpc
from lbcore.errors import ConfigError, InvalidRequest, LoadBalancerError
from lbcore.scheduler.registry_service import RegistryServicer
from lbcore.scheduler.state import SchedulerState
from lbcore.types import WorkerId
from lbcore.wire.convert import (
    explanation_to_proto,
    facts_from_proto,
    policy_assignment_from_proto,
    policy_assignment_to_proto,
    target_to_proto,
    worker_status_to_proto,
)
from lbcore.wire.server import Registration, service
from lbcore.wire.status import abort


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Reads the table and speaks to workers through their Connect streams."""

    def __init__(self, state: SchedulerState, registry: RegistryServicer) -> None:
        self._state = state
        self._registry = registry

    def registration(self) -> Registration:
        """What a server needs to serve this."""
        return service(admin_pb2, "AdminService", self)

    async def ListWorkers(  # noqa: N802
        self, message: admin_pb2.ListWorkersRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.ListWorkersResponse:
        statuses = self._state.table.statuses()
        return admin_pb2.ListWorkersResponse(workers=[worker_status_to_proto(status) for status in statuses])

    async def DrainWorker(  # noqa: N802
        self, message: admin_pb2.DrainWorkerRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.DrainWorkerResponse:
        try:
            self._registry.command_drain(WorkerId(message.worker_id), message.deadline_ms)
        except LoadBalancerError as error:
            await abort(context, error)
        return admin_pb2.DrainWorkerResponse()

    async def ListPolicies(  # noqa: N802
        self, message: admin_pb2.ListPoliciesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.ListPoliciesResponse:
        assignments = self._state.assignments.listed()
        return admin_pb2.ListPoliciesResponse(assignments=map(policy_assignment_to_proto, assignments))

    async def SetPolicy(  # noqa: N802
        self, message: admin_pb2.SetPolicyRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.SetPolicyResponse:
        try:
            self._state.assign(policy_assignment_from_proto(message.assignment))
        except ConfigError as error:
            # Of the caller's making: this process has started, and goes on as before.
            await abort(context, InvalidRequest(error.message, param="policy"))
        except LoadBalancerError as error:
            await abort(context, error)
        return admin_pb2.SetPolicyResponse()

    async def ExplainRoute(  # noqa: N802
        self, message: admin_pb2.ExplainRouteRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.ExplainRouteResponse:
        try:
            target, explanation = self._state.desk.explain(facts_from_proto(message.route))
        except LoadBalancerError as error:
            await abort(context, error)
        worker = None if target is None else target_to_proto(target)
        return admin_pb2.ExplainRouteResponse(worker=worker, explanation=explanation_to_proto(explanation))
