"""A worker stays known to its scheduler, whoever starts first and whoever restarts, and its load arrives exact."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from lbcore.api.v1 import registry_pb2, registry_pb2_grpc
from lbcore.clock import MonotonicClock
from lbcore.errors import NameTaken
from lbcore.generation import Dialect, GenerationRequest
from lbcore.pool_events import Deregistered, DrainNoticed, PrefixesReported, Registered
from lbcore.types import (
    EndpointState,
    Epoch,
    LoadReport,
    PrefixReport,
    RouteFacts,
    Ticket,
    TicketPhase,
    WorkerId,
    WorkerSpec,
)
from lbcore.wire.server import service
from tests.fakes import ScriptedEngine, Signal, settle
from tests.fleet import MODEL, spec
from tests.wire.conftest import LEASE_S, Host, SchedulerHost, Wire, eventually, fixture, soon
from worker.engine import EngineLoad
from worker.load import LoadTracker
from worker.prefix_mirror import PrefixMirror
from worker.reporter import Reporter

NEVER_S = 3600.0
"""A report interval so long that every report seen was made for a reason."""
TELLS = replace(spec(), reports_prefixes=True)
"""A worker that says what its prefix cache holds."""


class ReportingWorker:
    """A worker's load and the reporter that tells it; what it was ordered to do is only noted."""

    def __init__(self, scheduler: Host, worker_spec: WorkerSpec) -> None:
        self.load = LoadTracker()
        self.engine = ScriptedEngine()
        self.prefixes = PrefixMirror(16, [MODEL])
        self.drains: list[float | None] = []
        self.aborts: list[str] = []
        self.ordered = Signal()
        self.reporter = Reporter(
            scheduler.address,
            worker_spec,
            self.load,
            self.engine,
            Random(0),
            MonotonicClock(),
            on_drain=lambda deadline_s: self._note(self.drains, deadline_s),
            on_abort=lambda request_id: self._note(self.aborts, request_id),
            prefixes=self.prefixes if worker_spec.reports_prefixes else None,
        )
        self.task = asyncio.ensure_future(self.reporter.run())

    def accept(self, key: str, ticket: int = 0) -> None:
        self.load.accepted(key, Ticket(ticket), 400, now=0.0)
        self.reporter.changed()

    def finish(self, key: str) -> None:
        self.load.finished(key, now=0.0)
        self.reporter.changed()

    def hold(self, *hashes: int) -> None:
        """The engine computes a prompt of these byte blocks; each is an engine block too."""
        size = 64 * len(hashes)
        request = GenerationRequest(
            str(hashes), Dialect.CHAT, b"", prefix_hashes=hashes, prefix_block_bytes=64, prompt_bytes=size
        )
        self.prefixes.prompt(request, MODEL, hashes, size // 4)
        self.prefixes.stored(hashes)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    def _note(self, notes: list[Any], order: object) -> None:
        notes.append(order)
        self.ordered.tell()


@fixture()
async def quiet_scheduler(wire: Wire) -> SchedulerHost:
    """A scheduler that wants no reports but those that say something new."""
    host = await wire.scheduler()
    await host.stop()
    host.report_interval_s = NEVER_S
    host.forget()
    await host.start()
    return host


@fixture()
async def reporting(quiet_scheduler: SchedulerHost) -> AsyncIterator[ReportingWorker]:
    """A worker that the quiet scheduler knows."""
    worker = ReportingWorker(quiet_scheduler, spec())
    await reported(quiet_scheduler)
    yield worker
    await worker.stop()


async def reported(scheduler: SchedulerHost, **fields: object) -> LoadReport:
    """The first report that says this."""

    def found() -> LoadReport | None:
        for report in scheduler.reports():
            if all(getattr(report, name) == value for name, value in fields.items()):
                return report
        return None

    await scheduler.state.happened.until(found)
    report = found()
    assert report is not None
    return report


async def test_a_worker_registers_and_reports_at_once(
    quiet_scheduler: SchedulerHost, reporting: ReportingWorker
) -> None:
    assert quiet_scheduler.endpoint("w0") is not None
    assert reporting.reporter.registered
    assert quiet_scheduler.reports()[0].sequence == 1


async def test_a_worker_that_started_first_connects_when_the_scheduler_comes(scheduler: SchedulerHost) -> None:
    await scheduler.stop()
    worker = ReportingWorker(scheduler, spec())
    worker.accept("a")
    await settle()
    await scheduler.start()
    await reported(scheduler, queued_requests=1)
    await worker.stop()


async def test_a_scheduler_that_forgot_everything_soon_knows_the_load_exactly(
    quiet_scheduler: SchedulerHost, reporting: ReportingWorker
) -> None:
    for key in ("a", "b", "c"):
        reporting.accept(key, ticket=ord(key))
    reporting.load.started("b", 120, 20, 0.0)
    await reported(quiet_scheduler, queued_requests=2, running_requests=1)
    await quiet_scheduler.stop()
    reporting.finish("c")
    quiet_scheduler.forget()
    await quiet_scheduler.start()
    report = await reported(quiet_scheduler)
    assert (report.queued_requests, report.running_requests) == (1, 1)
    assert report.tokens_in_flight == 100 + 120
    endpoint = quiet_scheduler.endpoint("w0")
    assert endpoint is not None
    assert endpoint.load == report


async def test_a_worker_whose_lease_ran_out_registers_again(
    quiet_scheduler: SchedulerHost, reporting: ReportingWorker
) -> None:
    quiet_scheduler.elapse(LEASE_S)
    assert quiet_scheduler.endpoint("w0") is None
    await quiet_scheduler.state.happened.until(lambda: quiet_scheduler.endpoint("w0") is not None)
    assert not reporting.task.done()


async def test_a_broken_stream_is_taken_up_again_with_the_same_epoch(
    quiet_scheduler: SchedulerHost, reporting: ReportingWorker
) -> None:
    await quiet_scheduler.stop()
    await quiet_scheduler.start()
    reporting.accept("a")
    await reported(quiet_scheduler, queued_requests=1)
    endpoint = quiet_scheduler.endpoint("w0")
    assert endpoint is not None
    assert (endpoint.spec.epoch, endpoint.state) == (1, EndpointState.READY)


async def test_a_change_is_told_at_once(quiet_scheduler: SchedulerHost, reporting: ReportingWorker) -> None:
    reporting.accept("a")
    await reported(quiet_scheduler, queued_requests=1)
    reporting.finish("a")
    await reported(quiet_scheduler, queued_requests=0, sequence=3)


async def test_a_burst_of_changes_makes_few_reports(quiet_scheduler: SchedulerHost, reporting: ReportingWorker) -> None:
    before = len(quiet_scheduler.reports())
    for number in range(100):
        reporting.accept(str(number))
        if not number % 10:
            await asyncio.sleep(0)
    await reported(quiet_scheduler, queued_requests=100)
    assert len(quiet_scheduler.reports()) - before <= 20


async def test_without_change_reports_come_at_the_interval_asked_for(wire: Wire) -> None:
    host = await wire.scheduler()
    await host.stop()
    host.report_interval_s = 0.02
    host.forget()
    await host.start()
    worker = ReportingWorker(host, spec())
    await host.state.happened.until(lambda: len(host.reports()) >= 5)
    assert [report.sequence for report in host.reports()[:5]] == [1, 2, 3, 4, 5]
    await worker.stop()


async def test_news_are_told_until_acknowledged_and_not_after(
    quiet_scheduler: SchedulerHost, reporting: ReportingWorker
) -> None:
    reporting.accept("a", ticket=7)
    told = await reported(quiet_scheduler, queued_requests=1)
    assert [(update.ticket, update.phase) for update in told.ticket_updates] == [(7, TicketPhase.ACCEPTED)]
    await eventually(lambda: not reporting.load.look(EngineLoad(), 0.0).ticket_updates)
    reporting.accept("b")
    later = await reported(quiet_scheduler, queued_requests=2)
    assert later.ticket_updates == ()


async def test_a_goodbye_comes_after_the_last_report(
    quiet_scheduler: SchedulerHost, reporting: ReportingWorker
) -> None:
    reporting.accept("a", ticket=7)
    reporting.finish("a")
    reporting.reporter.leave()
    await soon(reporting.task)
    await quiet_scheduler.state.happened.until(lambda: quiet_scheduler.endpoint("w0") is None)
    assert Deregistered(WorkerId("w0"), Epoch(1)) in quiet_scheduler.state.events
    last = quiet_scheduler.reports()[-1]
    assert [(update.ticket, update.phase) for update in last.ticket_updates] == [(7, TicketPhase.FINISHED)]


async def test_a_worker_can_leave_though_nobody_listens(scheduler: SchedulerHost) -> None:
    await scheduler.stop()
    worker = ReportingWorker(scheduler, spec())
    await settle()
    worker.reporter.leave()
    await soon(worker.task)


async def test_a_draining_worker_says_so_and_again_to_a_scheduler_that_forgot(
    quiet_scheduler: SchedulerHost, reporting: ReportingWorker
) -> None:
    notice = DrainNoticed(WorkerId("w0"), Epoch(1))
    reporting.reporter.drain()
    await quiet_scheduler.state.happened.until(lambda: notice in quiet_scheduler.state.events)
    await quiet_scheduler.stop()
    quiet_scheduler.forget()
    await quiet_scheduler.start()
    await quiet_scheduler.state.happened.until(lambda: notice in quiet_scheduler.state.events)


async def test_an_order_to_drain_is_passed_on_with_its_deadline(
    quiet_scheduler: SchedulerHost, reporting: ReportingWorker
) -> None:
    for deadline_ms in (0, 1500):
        quiet_scheduler.registry.command_drain(WorkerId("w0"), deadline_ms)
    await reporting.ordered.until(lambda: len(reporting.drains) == 2)
    assert reporting.drains == [None, 1.5]


async def test_a_worker_whose_name_was_taken_stops_reporting(
    wire: Wire, quiet_scheduler: SchedulerHost, reporting: ReportingWorker
) -> None:
    await wire.connection(quiet_scheduler).register(spec(epoch=2))
    with pytest.raises(NameTaken):
        await soon(reporting.task)


async def test_a_report_that_cannot_be_made_is_tried_again(
    quiet_scheduler: SchedulerHost, reporting: ReportingWorker
) -> None:
    reporting.engine.measured = EngineLoad(kv_used_blocks=-1)
    reporting.accept("a")
    await quiet_scheduler.state.happened.until(lambda: registrations(quiet_scheduler) >= 2)
    reporting.engine.measured = EngineLoad(kv_used_blocks=1)
    await reported(quiet_scheduler, queued_requests=1, kv_used_blocks=1)


async def test_no_moment_of_the_scheduler_s_death_ends_the_reporting(
    quiet_scheduler: SchedulerHost, reporting: ReportingWorker
) -> None:
    for turns in range(5):
        reporting.accept(f"before {turns}")
        await settle(turns)
        stopping = asyncio.ensure_future(quiet_scheduler.stop())
        reporting.accept(f"during {turns}")
        await stopping
        quiet_scheduler.forget()
        await quiet_scheduler.start()
        await reported(quiet_scheduler, queued_requests=2 * turns + 2)
    assert not reporting.task.done()


@fixture()
async def telling(quiet_scheduler: SchedulerHost) -> AsyncIterator[ReportingWorker]:
    """A worker whose engine says what its prefix cache holds."""
    worker = ReportingWorker(quiet_scheduler, TELLS)
    await reported(quiet_scheduler)
    yield worker
    await worker.stop()


def believed(scheduler: SchedulerHost, *hashes: int) -> list[int]:
    """Those of these byte blocks that the worker is believed to hold."""
    facts = RouteFacts("r", MODEL, 64, prefix_block_bytes=64)
    return [one for one in hashes if scheduler.state.pool.pick_request(facts._replace(prefix_hashes=(one,))).hit_tokens]


async def test_what_the_prefix_cache_holds_is_told_when_it_changes(
    quiet_scheduler: SchedulerHost, telling: ReportingWorker
) -> None:
    telling.hold(1, 2, 3)
    await quiet_scheduler.state.happened.until(lambda: believed(quiet_scheduler, 1, 2, 3) == [1, 2, 3])
    telling.prefixes.removed(3)
    await quiet_scheduler.state.happened.until(lambda: believed(quiet_scheduler, 1, 2, 3) == [1, 2])
    reports = prefix_reports(quiet_scheduler)
    assert [(report.sequence, report.whole) for report in reports] == [(1, True), (2, False)]


async def test_a_scheduler_that_forgot_everything_hears_all_that_the_cache_holds(
    quiet_scheduler: SchedulerHost, telling: ReportingWorker
) -> None:
    telling.hold(1, 2)
    await quiet_scheduler.state.happened.until(lambda: believed(quiet_scheduler, 1, 2) == [1, 2])
    await quiet_scheduler.stop()
    telling.hold(1, 2, 3)
    telling.prefixes.removed(2)
    telling.prefixes.removed(2)
    quiet_scheduler.forget()
    await quiet_scheduler.start()
    await quiet_scheduler.state.happened.until(lambda: prefix_reports(quiet_scheduler))
    assert believed(quiet_scheduler, 1, 2, 3) == [1, 3]
    assert prefix_reports(quiet_scheduler)[0].whole


async def test_a_stream_that_is_taken_up_again_begins_with_all_that_the_cache_holds(
    quiet_scheduler: SchedulerHost, telling: ReportingWorker
) -> None:
    telling.hold(1, 2)
    await quiet_scheduler.state.happened.until(lambda: believed(quiet_scheduler, 1, 2) == [1, 2])
    await quiet_scheduler.stop()
    telling.prefixes.cleared()
    # It would be told, and is lost with the stream.
    [*telling.prefixes.changes(0.0)]
    await quiet_scheduler.start()
    await quiet_scheduler.state.happened.until(lambda: believed(quiet_scheduler, 1, 2) == [])
    assert prefix_reports(quiet_scheduler)[-1].whole


async def test_a_report_that_was_lost_is_made_good_by_all_that_the_cache_holds(
    quiet_scheduler: SchedulerHost, telling: ReportingWorker
) -> None:
    telling.hold(1, 2)
    await quiet_scheduler.state.happened.until(lambda: believed(quiet_scheduler, 1, 2) == [1, 2])
    telling.prefixes.removed(1)
    [*telling.prefixes.changes(0.0)]
    telling.hold(4)
    await quiet_scheduler.state.happened.until(lambda: believed(quiet_scheduler, 1, 2, 4) == [2, 4])


async def test_an_order_to_say_all_anew_is_obeyed() -> None:
    order = registry_pb2.Command(resend_prefixes=registry_pb2.ResendPrefixesCommand())
    registry, host = ScriptedRegistry(lease(), registry_pb2.ConnectResponse(command=order)), Host()
    await host.serve(service(registry_pb2, "RegistryService", registry))
    worker = ReportingWorker(host, TELLS)
    worker.hold(1, 2)

    def told() -> list[registry_pb2.PrefixReport]:
        return [message.prefix_report for message in registry.heard if message.HasField("prefix_report")]

    await registry.happened.until(told)
    assert told()[-1].whole
    assert [*told()[-1].stored_hashes] == [1, 2]
    await worker.stop()
    await host.stop()


class ScriptedRegistry(registry_pb2_grpc.RegistryServiceServicer):
    """A scheduler that says what a test wants and remembers what it hears."""

    def __init__(self, *answers: registry_pb2.ConnectResponse) -> None:
        self._answers = answers
        self.heard: list[registry_pb2.ConnectRequest] = []
        self.happened = Signal()

    async def Connect(self, requests: object, context: Any) -> None:  # noqa: N802
        await context.read()
        for answer in self._answers:
            await context.write(answer)
        while message := await context.read():
            self.heard.append(message)
            self.happened.tell()


def lease(report_interval_ms: int = 3_600_000) -> registry_pb2.ConnectResponse:
    return registry_pb2.ConnectResponse(
        lease=registry_pb2.Lease(ttl_ms=3000, report_interval_ms=report_interval_ms, scheduler_epoch=1)
    )


async def told_by(registry: ScriptedRegistry, host: Host) -> ReportingWorker:
    """A worker that is connected to this registry."""
    await host.serve(service(registry_pb2, "RegistryService", registry))
    return ReportingWorker(host, spec())


async def test_an_order_to_abort_is_passed_on() -> None:
    order = registry_pb2.Command(abort=registry_pb2.AbortCommand(request_id="r"))
    host = Host()
    worker = await told_by(ScriptedRegistry(lease(), registry_pb2.ConnectResponse(command=order)), host)
    await worker.ordered.until(lambda: worker.aborts == ["r"])
    await worker.stop()
    await host.stop()


async def test_words_of_a_later_version_are_passed_over() -> None:
    strange = registry_pb2.ConnectResponse(command=registry_pb2.Command())
    registry, host = ScriptedRegistry(registry_pb2.ConnectResponse(), strange, lease(), strange), Host()
    worker = await told_by(registry, host)
    await registry.happened.until(lambda: registry.heard)
    assert not worker.task.done()
    await worker.stop()
    await host.stop()


async def test_a_second_lease_does_not_double_the_reports() -> None:
    registry, host = ScriptedRegistry(lease(), lease(), lease()), Host()
    worker = await told_by(registry, host)
    await registry.happened.until(lambda: registry.heard)
    worker.accept("a")
    await registry.happened.until(lambda: len(registry.heard) >= 2)
    assert [message.load_report.sequence for message in registry.heard] == [1, 2]
    await worker.stop()
    await host.stop()


async def test_an_interval_of_nothing_does_not_flood() -> None:
    registry, host = ScriptedRegistry(lease(report_interval_ms=0)), Host()
    worker = await told_by(registry, host)
    began = asyncio.get_running_loop().time()
    await registry.happened.until(lambda: len(registry.heard) >= 5)
    assert asyncio.get_running_loop().time() - began >= 4 * 0.01 * 0.9
    await worker.stop()
    await host.stop()


async def test_news_that_are_never_acknowledged_are_told_in_every_report() -> None:
    registry, host = ScriptedRegistry(lease()), Host()
    worker = await told_by(registry, host)
    for number in range(1, 4):
        worker.accept(str(number), ticket=number)
        await registry.happened.until(
            lambda number=number: registry.heard and len(registry.heard[-1].load_report.ticket_updates) == number
        )
    await worker.stop()
    await host.stop()


def registrations(scheduler: SchedulerHost) -> int:
    return sum(isinstance(event, Registered) for event in scheduler.state.events)


def prefix_reports(scheduler: SchedulerHost) -> list[PrefixReport]:
    return [event.report for event in scheduler.state.events if isinstance(event, PrefixesReported)]
