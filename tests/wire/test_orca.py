"""The worker's load as ORCA, over a real server."""

from __future__ import annotations

import asyncio

from google.protobuf.duration_pb2 import Duration
from xds.data.orca.v3.orca_load_report_pb2 import OrcaLoadReport
from xds.service.orca.v3 import orca_pb2

from lbcore.types import Capacity, LoadReport
from lbcore.wire.channel import open_channel
from lbcore.wire.server import GrpcServer
from tests.fakes import ManualClock
from worker.orca_service import OrcaServicer, orca_report


def test_utilization_is_the_fullest_resource_and_passes_one_when_requests_queue() -> None:
    capacity = Capacity(max_sequences=4, kv_blocks=100)
    by_blocks = orca_report(LoadReport(running_requests=1, kv_used_blocks=80), capacity)
    by_requests = orca_report(LoadReport(running_requests=4, queued_requests=2, kv_used_blocks=80), capacity)
    assert (by_blocks.application_utilization, by_blocks.mem_utilization) == (0.8, 0.8)
    assert by_requests.application_utilization == 1.5


def test_a_worker_that_says_nothing_of_its_blocks_has_no_memory_utilization() -> None:
    assert orca_report(LoadReport(kv_used_blocks=5), Capacity(max_sequences=1)).mem_utilization == 0.0


async def test_reports_come_at_the_interval_asked_for() -> None:
    clock = ManualClock()
    loads = iter(LoadReport(running_requests=number) for number in range(10))
    servicer = OrcaServicer(lambda: next(loads), lambda: Capacity(max_sequences=10), clock)
    server = GrpcServer([servicer.registration()])
    port = server.listen("127.0.0.1", 0)
    await server.start()
    async with asyncio.timeout(10), open_channel(f"127.0.0.1:{port}") as channel:
        stream = channel.unary_stream(
            "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics",
            request_serializer=orca_pb2.OrcaLoadReportRequest.SerializeToString,
            response_deserializer=OrcaLoadReport.FromString,
        )(orca_pb2.OrcaLoadReportRequest(report_interval=Duration(nanos=500_000_000)))
        assert (await stream.read()).named_metrics["running_requests"] == 0.0
        while not clock.sleeper_count:
            await asyncio.sleep(0)
        await clock.elapse(0.5)
        assert (await stream.read()).named_metrics["running_requests"] == 1.0
        stream.cancel()
    await server.stop(0)
