"""AdminService over real servers: operators see what the scheduler knows, and their orders reach the workers."""

from __future__ import annotations

import grpc
import pytest

from lbcore.api.v1 import admin_pb2, worker_pb2
from lbcore.errors import NotFound
from lbcore.pool_events import DrainNoticed
from lbcore.types import Epoch, LoadReport, RouteFacts, WorkerId
from lbcore.wire.convert import spec_from_proto, worker_status_from_proto
from lbcore.wire.status import error_from_rpc
from tests.fleet import MODEL, spec
from tests.wire.conftest import SchedulerHost, Wire


async def test_nobody_is_listed_where_nobody_is(wire: Wire, scheduler: SchedulerHost) -> None:
    reply = await wire.admin_stub(scheduler).ListWorkers(admin_pb2.ListWorkersRequest())
    assert [*reply.workers] == []


async def test_workers_are_listed_by_name_as_they_are(wire: Wire, scheduler: SchedulerHost) -> None:
    second, first = spec("w1", adapters=("tuned",)), spec("w0", epoch=2**64 - 1)
    scheduler.join(second, first)
    scheduler.state.handle(DrainNoticed(WorkerId("w1"), Epoch(1)))
    reply = await wire.admin_stub(scheduler).ListWorkers(admin_pb2.ListWorkersRequest())
    assert [spec_from_proto(worker.spec) for worker in reply.workers] == [first, second]
    assert [worker.state for worker in reply.workers] == [
        worker_pb2.WORKER_STATE_READY,
        worker_pb2.WORKER_STATE_DRAINING,
    ]


async def test_a_listed_worker_shows_its_last_report_its_age_and_the_credit_since(
    wire: Wire, scheduler: SchedulerHost
) -> None:
    connection = wire.connection(scheduler)
    await connection.register(spec())
    await connection.report(LoadReport(1, running_requests=3, step_time_ms=4.5))
    scheduler.route(RouteFacts("r", MODEL, prompt_bytes=400))
    scheduler.clock.advance(0.5)
    reply = await wire.admin_stub(scheduler).ListWorkers(admin_pb2.ListWorkersRequest())
    [status] = map(worker_status_from_proto, reply.workers)
    assert status.load == LoadReport(1, running_requests=3, step_time_ms=4.5)
    assert status.report_age_ms == pytest.approx(500)
    assert (status.credit_requests, status.credit_tokens) == (1, 100)


async def test_an_order_to_drain_reaches_the_worker_with_its_deadline(wire: Wire, scheduler: SchedulerHost) -> None:
    connection = wire.connection(scheduler)
    await connection.register(spec())
    await wire.admin_stub(scheduler).DrainWorker(admin_pb2.DrainWorkerRequest(worker_id="w0", deadline_ms=2500))
    assert (await connection.receive()).command.drain.deadline_ms == 2500


@pytest.mark.parametrize("worker_id", ["w1", "", "w0\n"])
async def test_an_order_to_an_unknown_worker_is_refused(wire: Wire, scheduler: SchedulerHost, worker_id: str) -> None:
    await wire.connection(scheduler).register(spec())
    with pytest.raises(grpc.RpcError) as caught:
        await wire.admin_stub(scheduler).DrainWorker(admin_pb2.DrainWorkerRequest(worker_id=worker_id))
    assert isinstance(error_from_rpc(caught.value), NotFound)


async def test_a_worker_known_but_not_connected_cannot_be_drained(wire: Wire, scheduler: SchedulerHost) -> None:
    scheduler.join(spec())
    with pytest.raises(grpc.RpcError) as caught:
        await wire.admin_stub(scheduler).DrainWorker(admin_pb2.DrainWorkerRequest(worker_id="w0"))
    assert isinstance(error_from_rpc(caught.value), NotFound)
