"""Policies over real servers: operators list and change them, and requests for a phase go to those who take it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import grpc
import pytest
from structlog.testing import capture_logs

from lbcore.api.v1 import admin_pb2, routing_pb2, worker_pb2
from lbcore.errors import InvalidRequest, NoReadyWorker
from lbcore.router import QueueLimits
from lbcore.types import PolicyAssignment, Role, Route, RouteFacts
from lbcore.wire.admin_client import list_policies, set_policy
from lbcore.wire.convert import route_from_proto, write_facts
from lbcore.wire.status import error_from_rpc
from tests.fleet import MODEL, spec
from tests.wire.conftest import Host, SchedulerHost, Wire, eventually, fixture, soon, where_to

LLAMA = "meta-llama/Llama-3.1-8B:latest"
OF_ALL = [PolicyAssignment("", phase, "least_requests") for phase in Role]
MS_400 = 400 * 10 * 4
"""Bytes of a prompt whose prefill takes 400 ms where nothing was measured."""

Ask = Callable[[RouteFacts], Awaitable[Route]]


@fixture(params=["Route", "RouteStream"])
async def ask(request: pytest.FixtureRequest, wire: Wire, scheduler: SchedulerHost) -> Ask:
    """The same question through either door."""
    if request.param == "RouteStream":
        return partial(where_to, wire.routing_client(scheduler))
    stub = wire.routing_stub(scheduler)

    async def unary(facts: RouteFacts) -> Route:
        message = routing_pb2.RouteRequest()
        write_facts(facts, (), None, message)
        try:
            return route_from_proto(await stub.Route(message))
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error

    return unary


async def test_without_a_change_every_model_has_what_the_scheduler_was_started_with(scheduler: SchedulerHost) -> None:
    assert await list_policies(scheduler.address) == OF_ALL


async def test_a_change_is_listed_logged_and_can_be_taken_back(scheduler: SchedulerHost) -> None:
    wanted = PolicyAssignment(LLAMA, Role.DECODE, "gie(kv=0, prefix=3)")
    with capture_logs() as logs:
        await set_policy(scheduler.address, wanted)
    written = wanted._replace(policy="gie(kv=0)")
    assert await list_policies(scheduler.address) == [*OF_ALL, written]
    changed = {"event": "policy_changed", "log_level": "info", "model": LLAMA, "phase": "decode", "policy": "gie(kv=0)"}
    assert changed in logs
    await set_policy(scheduler.address, wanted._replace(policy=""))
    assert await list_policies(scheduler.address) == OF_ALL


async def test_an_unspecified_phase_means_whole_requests(wire: Wire, scheduler: SchedulerHost) -> None:
    assignment = admin_pb2.PolicyAssignment(model=MODEL, policy="random")
    await wire.admin_stub(scheduler).SetPolicy(admin_pb2.SetPolicyRequest(assignment=assignment))
    assert (await list_policies(scheduler.address))[-1] == PolicyAssignment(MODEL, Role.MIXED, "random")


@pytest.mark.parametrize(
    ("assignment", "param", "text"),
    [
        (admin_pb2.PolicyAssignment(policy="fastest"), "policy", "'fastest' is no policy"),
        (admin_pb2.PolicyAssignment(model=MODEL, policy="gie(kv=-1)"), "policy", "below 0"),
        (admin_pb2.PolicyAssignment(phase=worker_pb2.WORKER_ROLE_DECODE), "policy", "cannot be taken away"),
        (admin_pb2.PolicyAssignment(policy="cost", phase=77), "phase", "phase is not known"),
    ],
)
async def test_what_makes_no_sense_is_refused_and_changes_nothing(
    wire: Wire, scheduler: SchedulerHost, assignment: admin_pb2.PolicyAssignment, param: str, text: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        await wire.admin_stub(scheduler).SetPolicy(admin_pb2.SetPolicyRequest(assignment=assignment))
    assert isinstance(caught.value, grpc.aio.AioRpcError)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    error = error_from_rpc(caught.value)
    assert isinstance(error, InvalidRequest)
    assert error.param == param
    assert text in error.message
    assert await list_policies(scheduler.address) == OF_ALL


async def test_a_tool_hears_why_its_policy_was_refused(scheduler: SchedulerHost) -> None:
    with pytest.raises(InvalidRequest, match="'fastest' is no policy"):
        await set_policy(scheduler.address, PolicyAssignment("", Role.MIXED, "fastest"))


async def test_a_tool_hears_that_no_scheduler_is_there() -> None:
    host = Host()
    await host.serve()
    address = host.address
    await host.stop()
    with pytest.raises(NoReadyWorker, match=f"No scheduler answers at {address}"):
        await list_policies(address)


async def test_a_change_holds_for_the_next_request(scheduler: SchedulerHost, ask: Ask) -> None:
    scheduler.join(spec("w0"), spec("w1"))
    await set_policy(scheduler.address, PolicyAssignment(MODEL, Role.MIXED, "consistent_hash(bound=1000)"))
    facts = RouteFacts("r", MODEL, session_id="s")
    assert len({(await soon(ask(facts))).target.worker_id for _ in range(6)}) == 1
    await set_policy(scheduler.address, PolicyAssignment(MODEL, Role.MIXED, "round_robin"))
    assert {(await soon(ask(facts))).target.worker_id for _ in range(2)} == {"w0", "w1"}


async def test_who_waits_is_answered_when_the_policy_no_longer_lets_it_wait(wire: Wire) -> None:
    scheduler = await wire.scheduler(QueueLimits())
    scheduler.join(spec("w0"))
    await set_policy(scheduler.address, PolicyAssignment("", Role.MIXED, "cost"))
    client = wire.routing_client(scheduler)
    heard: list[object] = []
    for number in range(3):
        client.ask(RouteFacts(f"r{number}", MODEL, prompt_bytes=MS_400), heard.append)
    await eventually(lambda: scheduler.waiting() == 3)
    await set_policy(scheduler.address, PolicyAssignment(MODEL, Role.MIXED, "least_requests"))
    await eventually(lambda: len(heard) == 3)
    assert all(isinstance(answer, Route) for answer in heard)
    assert scheduler.waiting() == 0


@pytest.mark.parametrize(("phase", "worker"), [(Role.PREFILL, "w0"), (Role.DECODE, "w1")])
async def test_a_phase_goes_to_the_worker_that_takes_it(
    scheduler: SchedulerHost, ask: Ask, phase: Role, worker: str
) -> None:
    scheduler.join(spec("w0", role=Role.PREFILL), spec("w1", role=Role.DECODE))
    assert (await soon(ask(RouteFacts("r", MODEL, phase=phase)))).target.worker_id == worker


async def test_nobody_is_ready_for_a_whole_request_where_all_take_a_phase(scheduler: SchedulerHost, ask: Ask) -> None:
    scheduler.join(spec("w0", role=Role.PREFILL), spec("w1", role=Role.DECODE))
    with pytest.raises(NoReadyWorker):
        await soon(ask(RouteFacts("r", MODEL)))


async def test_a_phase_of_a_later_version_is_refused(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(spec("w0"))
    message = routing_pb2.RouteRequest(model=MODEL, phase=77)
    with pytest.raises(grpc.RpcError) as caught:
        await wire.routing_stub(scheduler).Route(message)
    error = error_from_rpc(caught.value)
    assert isinstance(error, InvalidRequest)
    assert error.param == "phase"
