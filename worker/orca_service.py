"""The worker's load as ORCA, the open standard for load reports, so that other balancers can read it too.

Service `xds.service.orca.v3.OpenRcaService`, message `xds.data.orca.v3.OrcaLoadReport`. Counts go into `named_metrics`
under the names of our own LoadReport; `application_utilization` is how full the worker is, above 1 when requests queue,
so that weighted round robin, which knows nothing of tokens, does the right thing too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from xds.data.orca.v3.orca_load_report_pb2 import OrcaLoadReport
from xds.service.orca.v3 import orca_pb2

from lbcore.clock import Clock
from lbcore.types import Capacity, LoadReport
from lbcore.wire.server import Registration

_NAMED = (
    "queued_requests",
    "running_requests",
    "queued_prompt_tokens",
    "queued_prompt_pairs",
    "tokens_in_flight",
    "kv_used_blocks",
    "kv_cached_blocks",
    "prefill_tokens_per_s",
    "attention_ratio",
    "step_time_ms",
)

_DEFAULT_INTERVAL_S = 1.0
_SHORTEST_INTERVAL_S = 0.05


def orca_report(load: LoadReport, capacity: Capacity) -> OrcaLoadReport:
    """A load report in ORCA's terms."""
    kv_ratio = load.kv_used_blocks / capacity.kv_blocks if capacity.kv_blocks else 0.0
    requests = load.queued_requests + load.running_requests
    return OrcaLoadReport(
        mem_utilization=min(1.0, kv_ratio),
        application_utilization=max(kv_ratio, requests / capacity.max_sequences),
        named_metrics={name: float(getattr(load, name)) for name in _NAMED},
    )


class OrcaServicer:
    """Streams the present load at the interval the caller asks for."""

    def __init__(self, load: Callable[[], LoadReport], capacity: Callable[[], Capacity], clock: Clock) -> None:
        self._load = load
        self._capacity = capacity
        self._clock = clock

    def registration(self) -> Registration:
        """What a server needs to serve this."""
        descriptor = orca_pb2.DESCRIPTOR.services_by_name["OpenRcaService"]
        handler = grpc.unary_stream_rpc_method_handler(
            self.stream_core_metrics,
            request_deserializer=orca_pb2.OrcaLoadReportRequest.FromString,
            response_serializer=OrcaLoadReport.SerializeToString,
        )
        generic = grpc.method_handlers_generic_handler(descriptor.full_name, {"StreamCoreMetrics": handler})
        return descriptor, lambda server: server.add_generic_rpc_handlers((generic,))

    async def stream_core_metrics(
        self, message: orca_pb2.OrcaLoadReportRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[OrcaLoadReport]:
        """StreamCoreMetrics: one report now, then one for each interval, for ever."""
        asked_s = message.report_interval.seconds + message.report_interval.nanos / 1e9
        interval_s = max(_SHORTEST_INTERVAL_S, asked_s or _DEFAULT_INTERVAL_S)
        while True:
            yield orca_report(self._load(), self._capacity())
            await self._clock.sleep_until(self._clock.now() + interval_s)
