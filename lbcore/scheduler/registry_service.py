"""RegistryService: turns a worker's Connect stream into events for the pool, and the scheduler's answers back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import grpc

from lbcore.api.v1 import registry_pb2, registry_pb2_grpc
from lbcore.errors import InvalidRequest, LeaseLost, LoadBalancerError, NotFound
from lbcore.pool_events import (
    Deregistered,
    Disconnected,
    DrainNoticed,
    PrefixesMissed,
    PrefixesReported,
    Registered,
    Reported,
    ReportRejected,
)
from lbcore.scheduler.state import SchedulerState
from lbcore.types import WorkerId, WorkerSpec
from lbcore.wire.convert import load_from_proto, prefixes_from_proto, spec_from_proto
from lbcore.wire.outbox import Outbox
from lbcore.wire.server import Registration, service
from lbcore.wire.status import abort

ACK_EVERY = 16
"""Reports, of which one is acknowledged. To repeat a few updates of tickets costs less than a message."""

FEW_UPDATES = 32
"""A report with more of them is acknowledged at once, or a busy worker would repeat hundreds."""

MIN_PAUSE_MS = 20.0
PAUSE_MS_PER_WORKER = 1.0
MAX_PAUSE_MS = 200.0
"""Between two reports of one worker. Credit keeps load exact between reports, so that they need not be many: with a
millisecond for each worker two hundred of them send a thousand in a second, and a thousand workers five thousand."""

_RESEND_PREFIXES = registry_pb2.ConnectResponse(
    command=registry_pb2.Command(resend_prefixes=registry_pb2.ResendPrefixesCommand())
)


class RegistryServicer(registry_pb2_grpc.RegistryServiceServicer):
    """One `Connect` per worker; what is to be sent to a worker waits in its stream's outbox."""

    def __init__(self, state: SchedulerState, lease_ttl_s: float, report_interval_s: float) -> None:
        self._state = state
        self._lease = registry_pb2.Lease(
            ttl_ms=round(lease_ttl_s * 1000),
            report_interval_ms=round(report_interval_s * 1000),
            scheduler_epoch=state.epoch,
        )
        self._connections = count(1)
        self._outboxes: dict[WorkerId, Outbox[registry_pb2.ConnectResponse]] = {}

    def registration(self) -> Registration:
        """What a server needs to serve this."""
        return service(registry_pb2, "RegistryService", self)

    def command_drain(self, worker_id: WorkerId, deadline_ms: int) -> None:
        """Orders a worker to drain.

        Raises:
            NotFound: no such worker is connected.
        """
        outbox = self._outboxes.get(worker_id)
        if outbox is None:
            raise NotFound(f"No worker `{worker_id}` is connected.")
        command = registry_pb2.Command(drain=registry_pb2.DrainCommand(deadline_ms=deadline_ms))
        outbox.put(registry_pb2.ConnectResponse(command=command))

    async def Connect(  # noqa: N802
        self,
        request_iterator: AsyncIterator[registry_pb2.ConnectRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        state = self._state
        try:
            spec = await _first(context)
            state.admit(spec)
        except LoadBalancerError as error:
            await abort(context, error)
        outbox: Outbox[registry_pb2.ConnectResponse] = Outbox()
        ending: list[LoadBalancerError] = []

        def end(error: LoadBalancerError) -> None:
            ending.append(error)
            outbox.close()

        connection = next(self._connections)
        state.handle(Registered(spec, connection))
        end_earlier = state.streams.pop((spec.worker_id, spec.epoch), None)
        if end_earlier is not None:
            # The worker noticed that its connection broke before this side did.
            end_earlier(LeaseLost("The worker has called again."))
        state.streams[spec.worker_id, spec.epoch] = end
        self._outboxes[spec.worker_id] = outbox
        outbox.put(registry_pb2.ConnectResponse(lease=self._lease))
        reader = asyncio.get_running_loop().create_task(self._read(context, spec, outbox, end))
        try:
            while messages := await outbox.take():
                for message in messages:
                    await context.write(message)
        finally:
            reader.cancel()
            if self._outboxes.get(spec.worker_id) is outbox:
                del self._outboxes[spec.worker_id]
            if state.streams.get((spec.worker_id, spec.epoch)) is end:
                del state.streams[spec.worker_id, spec.epoch]
            state.handle(Disconnected(spec.worker_id, spec.epoch, connection))
        if ending:
            await abort(context, ending[0])

    def _pause_ms(self) -> int:
        return round(min(max(MIN_PAUSE_MS, PAUSE_MS_PER_WORKER * len(self._outboxes)), MAX_PAUSE_MS))

    async def _read(
        self,
        context: grpc.aio.ServicerContext[Any, Any],
        spec: WorkerSpec,
        outbox: Outbox[registry_pb2.ConnectResponse],
        end: Any,
    ) -> None:
        handle = self._state.handle
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                match message.WhichOneof("message"):
                    case "load_report":
                        report = load_from_proto(message.load_report)
                        effects = handle(Reported(spec.worker_id, spec.epoch, report))
                        if any(isinstance(effect, ReportRejected) for effect in effects):
                            end(LeaseLost("The lease is over."))
                            return
                        if len(report.ticket_updates) > FEW_UPDATES or report.sequence % ACK_EVERY == 0:
                            ack = registry_pb2.ReportAck(sequence=report.sequence, report_pause_ms=self._pause_ms())
                            outbox.put(registry_pb2.ConnectResponse(report_ack=ack))
                    case "prefix_report":
                        prefixes = prefixes_from_proto(message.prefix_report)
                        effects = handle(PrefixesReported(spec.worker_id, spec.epoch, prefixes))
                        if any(isinstance(effect, PrefixesMissed) for effect in effects):
                            outbox.put(_RESEND_PREFIXES)
                    case "drain_notice":
                        handle(DrainNoticed(spec.worker_id, spec.epoch))
                    case "deregistration":
                        handle(Deregistered(spec.worker_id, spec.epoch))
                    case "registration":
                        end(InvalidRequest("Only the first message registers.", param="registration"))
                        return
        finally:
            outbox.close()


async def _first(context: grpc.aio.ServicerContext[Any, Any]) -> WorkerSpec:
    message: Any = await context.read()
    if message is grpc.aio.EOF or message.WhichOneof("message") != "registration":
        raise InvalidRequest("The first message must register.", param="registration")
    return spec_from_proto(message.registration)
