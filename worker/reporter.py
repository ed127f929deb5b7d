"""Keeps the worker known to its scheduler: registers, reports load on change, and begins again whenever that breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import grpc
import structlog

from lbcore.api.v1 import registry_pb2, registry_pb2_grpc
from lbcore.clock import Clock
from lbcore.errors import LoadBalancerError, NameTaken
from lbcore.types import WorkerSpec
from lbcore.wire.channel import open_channel
from lbcore.wire.convert import load_to_proto, prefixes_to_proto, spec_to_proto
from lbcore.wire.status import error_from_rpc
from worker.engine import Engine
from worker.load import LoadTracker
from worker.prefix_mirror import PrefixMirror

log = structlog.get_logger()

COALESCE_S = 0.005
"""Pause after a report: a burst of changes makes one report, yet the first of them leaves at once."""

_BACKOFF_S = (0.1, 0.2, 0.5, 1.0)


class Reporter:
    """One worker's stream to one scheduler.

    With each report of load go the changes in what the prefix cache holds, where `prefixes` tells them; on a new stream
    all that it holds. `on_drain` is called with the deadline in seconds (None: the worker's own) when the scheduler
    orders a drain, `on_abort` with a request id.
    """

    def __init__(
        self,
        scheduler: str,
        spec: WorkerSpec,
        load: LoadTracker,
        engine: Engine,
        rng: Random,
        clock: Clock,
        *,
        on_drain: Callable[[float | None], None],
        on_abort: Callable[[str], object],
        prefixes: PrefixMirror | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._spec = spec
        self._load = load
        self._engine = engine
        self._rng = rng
        self._clock = clock
        self._on_drain = on_drain
        self._on_abort = on_abort
        self._prefixes = prefixes
        self._news = asyncio.Event()
        self._draining = False
        self._leaving = asyncio.Event()
        self._interval_s = 0.25
        self._pause_s = COALESCE_S
        self.registered = False
        """Whether the scheduler holds a lease for this worker, as far as is known."""
        if prefixes is not None:
            prefixes.on_news = self.changed

    def changed(self) -> None:
        """The load changed in a way the scheduler should hear of at once."""
        self._news.set()

    def drain(self) -> None:
        """Tells the scheduler to send nothing more."""
        self._draining = True
        self._news.set()

    def leave(self) -> None:
        """Says goodbye with a last report; `run` returns after that, or at once when nobody listens."""
        self._leaving.set()
        self._news.set()

    async def run(self) -> None:
        """Stays registered until `leave`.

        Raises:
            NameTaken: a newer process has this worker's name.
        """
        failures = 0
        async with open_channel(self._scheduler) as channel:
            stub = registry_pb2_grpc.RegistryServiceStub(channel)  # type: ignore[no-untyped-call]
            while not self._leaving.is_set():
                error = await self._connection(stub)
                if isinstance(error, NameTaken):
                    raise error
                if self._leaving.is_set():
                    return
                failures = 0 if self.registered else failures + 1
                if failures in (0, 1):
                    why = error.message if error else "closed"
                    log.warning("scheduler_lost", scheduler=self._scheduler, reason=why)
                self.registered = False
                pause_s = _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)] * self._rng.uniform(0.5, 1.0)
                try:
                    async with asyncio.timeout(pause_s):
                        await self._leaving.wait()
                except TimeoutError:
                    continue

    async def _connection(self, stub: registry_pb2_grpc.RegistryServiceStub) -> LoadBalancerError | None:
        call = stub.Connect()
        sender: asyncio.Task[None] | None = None
        message: Any
        try:
            await call.write(registry_pb2.ConnectRequest(registration=spec_to_proto(self._spec)))
            while (message := await call.read()) is not grpc.aio.EOF:
                match message.WhichOneof("message"):
                    case "lease":
                        self._interval_s = max(0.01, message.lease.report_interval_ms / 1000)
                        self.registered = True
                        log.info("registered", scheduler=self._scheduler, lease_ttl_ms=message.lease.ttl_ms)
                        if sender is None:
                            sender = asyncio.get_running_loop().create_task(self._send(call))
                    case "report_ack":
                        self._load.acknowledged(message.report_ack.sequence)
                        self._pause_s = max(COALESCE_S, message.report_ack.report_pause_ms / 1000)
                    case "command":
                        self._obey(message.command)
        except grpc.RpcError as error:
            return error_from_rpc(error)
        finally:
            if sender is not None:
                sender.cancel()
            call.cancel()
        return None

    async def _send(self, call: Any) -> None:
        told_draining = False
        prefixes = self._prefixes
        if prefixes is not None:
            prefixes.resend()
        try:
            while True:
                leaving = self._leaving.is_set()
                self._news.clear()
                if self._draining and not told_draining:
                    told_draining = True
                    await call.write(registry_pb2.ConnectRequest(drain_notice=registry_pb2.DrainNotice()))
                report = load_to_proto(self._load.report(self._engine.load(), self._clock.now()))
                if prefixes is not None:
                    # Before the report that ends tickets, whose prompts count as held only as long.
                    for changes in prefixes.changes(self._clock.now()):
                        await call.write(registry_pb2.ConnectRequest(prefix_report=prefixes_to_proto(changes)))
                await call.write(registry_pb2.ConnectRequest(load_report=report))
                if leaving:
                    await call.write(registry_pb2.ConnectRequest(deregistration=registry_pb2.Deregistration()))
                    await call.done_writing()
                    return
                pause_s = min(self._pause_s, self._interval_s)
                await asyncio.sleep(pause_s)
                try:
                    async with asyncio.timeout(self._interval_s - pause_s):
                        await self._news.wait()
                except TimeoutError:
                    continue
        except (grpc.RpcError, asyncio.InvalidStateError):
            # The reading half sees the end of the stream, with its status.
            pass
        except Exception:
            # A report that cannot be made, of an engine that measures nonsense. Said in good order, the end lets the
            # reading half begin again; cancelling the call here would cancel that half, and with it all reporting.
            log.exception("report_failed")
            await call.done_writing()

    def _obey(self, command: registry_pb2.Command) -> None:
        match command.WhichOneof("command"):
            case "drain":
                deadline_ms = command.drain.deadline_ms
                self._on_drain(deadline_ms / 1000 if deadline_ms else None)
            case "abort":
                self._on_abort(command.abort.request_id)
            case "resend_prefixes":
                if self._prefixes is not None:
                    self._prefixes.resend()
