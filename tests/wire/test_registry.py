"""RegistryService over real servers: who is known, for how long, and how each stream ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lbcore.api.v1 import load_pb2, registry_pb2
from lbcore.errors import InvalidRequest, LeaseLost, NameTaken, NotFound
from lbcore.scheduler import registry_service
from lbcore.scheduler.app import sweep
from lbcore.scheduler.registry_service import FEW_UPDATES
from lbcore.types import (
    EndpointState,
    LoadReport,
    PrefixReport,
    RouteFacts,
    Ticket,
    TicketPhase,
    TicketUpdate,
    WorkerId,
)
from lbcore.wire.convert import load_to_proto, spec_to_proto
from tests.fakes import settle
from tests.fleet import MODEL, spec
from tests.wire.conftest import LEASE_S, REPORT_INTERVAL_S, SchedulerHost, Wire, fixture, in_state, soon

Fields = dict[str, Any]


def facts(**more: Any) -> RouteFacts:
    return RouteFacts("r", MODEL, **more)


def changed(message: Any, field: str, value: Any) -> Any:
    """A message with one field set to something else."""
    if isinstance(value, list):
        message.ClearField(field)
        getattr(message, field).extend(value)
    else:
        setattr(message, field, value)
    return message


async def gone(scheduler: SchedulerHost, worker_id: str) -> None:
    await scheduler.state.happened.until(lambda: scheduler.endpoint(worker_id) is None)


async def test_a_worker_that_registers_gets_a_lease_and_can_be_picked(wire: Wire, scheduler: SchedulerHost) -> None:
    lease = await wire.connection(scheduler).register(spec())
    assert lease == registry_pb2.Lease(
        ttl_ms=round(LEASE_S * 1000),
        report_interval_ms=round(REPORT_INTERVAL_S * 1000),
        scheduler_epoch=scheduler.state.epoch,
    )
    assert scheduler.route(facts()).target.worker_id == "w0"


async def test_every_report_is_taken_in_and_acknowledged(wire: Wire, scheduler: SchedulerHost) -> None:
    connection = wire.connection(scheduler)
    await connection.register(spec())
    for sequence in (1, 2, 3):
        assert await connection.report(LoadReport(sequence, running_requests=sequence)) == sequence
        endpoint = scheduler.endpoint("w0")
        assert endpoint is not None
        assert endpoint.load.running_requests == sequence


async def test_of_reports_with_little_news_one_in_sixteen_is_acknowledged_and_one_with_much_at_once(
    wire: Wire, scheduler: SchedulerHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_service, "ACK_EVERY", 16)
    connection = wire.connection(scheduler)
    await connection.register(spec())
    for sequence in range(1, 17):
        await connection.send(load_report=load_to_proto(LoadReport(sequence)))
    assert (await connection.receive()).report_ack.sequence == 16
    news = tuple(TicketUpdate(Ticket(number), TicketPhase.FINISHED) for number in range(1, FEW_UPDATES + 2))
    assert await connection.report(LoadReport(17, ticket_updates=news)) == 17


async def test_a_report_renews_the_lease(wire: Wire, scheduler: SchedulerHost) -> None:
    connection = wire.connection(scheduler)
    await connection.register(spec())
    for sequence in range(1, 6):
        scheduler.elapse(LEASE_S * 0.9)
        await connection.report(LoadReport(sequence))
    assert scheduler.endpoint("w0") is not None


async def test_a_report_settles_the_tickets_it_names(wire: Wire, scheduler: SchedulerHost) -> None:
    connection = wire.connection(scheduler)
    await connection.register(spec())
    routes = [scheduler.route(facts(prompt_bytes=400)) for _ in range(3)]
    updates = (
        TicketUpdate(routes[0].ticket, TicketPhase.ACCEPTED),
        TicketUpdate(routes[1].ticket, TicketPhase.FINISHED),
    )
    for sequence in (1, 2):
        await connection.report(LoadReport(sequence, ticket_updates=updates))
        assert scheduler.credit() == (1, 100)


async def test_a_silent_worker_is_lost_after_its_lease_and_told_so(wire: Wire, scheduler: SchedulerHost) -> None:
    connection = wire.connection(scheduler)
    await connection.register(spec())
    scheduler.elapse(LEASE_S * 0.99)
    assert scheduler.endpoint("w0") is not None
    scheduler.elapse(LEASE_S * 0.01)
    assert scheduler.endpoint("w0") is None
    assert isinstance(await connection.end(), LeaseLost)


async def test_a_worker_whose_lease_was_lost_registers_again(wire: Wire, scheduler: SchedulerHost) -> None:
    first = wire.connection(scheduler)
    await first.register(spec())
    scheduler.elapse(LEASE_S)
    await first.end()
    second = wire.connection(scheduler)
    await second.register(spec())
    assert await second.report(LoadReport(17, running_requests=3)) == 17
    endpoint = scheduler.endpoint("w0")
    assert endpoint is not None
    assert endpoint.load.running_requests == 3


async def test_a_broken_stream_makes_a_worker_silent(wire: Wire, scheduler: SchedulerHost) -> None:
    connection = wire.connection(scheduler)
    await connection.register(spec())
    connection.call.cancel()
    await in_state(scheduler, "w0", EndpointState.SILENT)
    scheduler.elapse(LEASE_S)
    assert scheduler.endpoint("w0") is None


async def test_a_worker_that_comes_back_keeps_load_and_credit(wire: Wire, scheduler: SchedulerHost) -> None:
    first = wire.connection(scheduler)
    await first.register(spec())
    await first.report(LoadReport(1, running_requests=2))
    scheduler.route(facts(prompt_bytes=400))
    first.call.cancel()
    await in_state(scheduler, "w0", EndpointState.SILENT)
    second = wire.connection(scheduler)
    await second.register(spec())
    endpoint = scheduler.endpoint("w0")
    assert endpoint is not None
    assert endpoint.state is EndpointState.READY
    assert (endpoint.load.running_requests, endpoint.credit_requests, endpoint.credit_tokens) == (2, 1, 100)


async def test_the_end_of_a_stream_that_was_replaced_changes_nothing(wire: Wire, scheduler: SchedulerHost) -> None:
    # The worker noticed the broken connection first: its old stream ends here after the new one has begun.
    first, second = wire.connection(scheduler), wire.connection(scheduler)
    await first.register(spec())
    await second.register(spec())
    first.call.cancel()
    assert await second.report(LoadReport(1)) == 1
    await in_state(scheduler, "w0", EndpointState.READY)
    scheduler.registry.command_drain(WorkerId("w0"), 0)
    assert (await second.receive()).command.HasField("drain")


async def test_a_lost_lease_ends_the_newest_stream_of_a_worker(wire: Wire, scheduler: SchedulerHost) -> None:
    first, second = wire.connection(scheduler), wire.connection(scheduler)
    await first.register(spec())
    await second.register(spec())
    scheduler.elapse(LEASE_S)
    assert isinstance(await second.end(), LeaseLost)


async def test_a_second_stream_of_a_worker_ends_the_first(wire: Wire, scheduler: SchedulerHost) -> None:
    first, second = wire.connection(scheduler), wire.connection(scheduler)
    await first.register(spec())
    await second.register(spec())
    assert isinstance(await first.end(), LeaseLost)
    assert await second.report(LoadReport(1)) == 1


async def test_a_restarted_worker_replaces_itself_at_once(wire: Wire, scheduler: SchedulerHost) -> None:
    old, new = wire.connection(scheduler), wire.connection(scheduler)
    await old.register(spec(epoch=1))
    await old.report(LoadReport(9, running_requests=5))
    scheduler.route(facts(prompt_bytes=400))
    await new.register(spec(epoch=2))
    endpoint = scheduler.endpoint("w0")
    assert endpoint is not None
    assert endpoint.spec.epoch == 2
    assert (endpoint.load, endpoint.credit_requests) == (LoadReport(), 0)
    assert isinstance(await old.end(), NameTaken)
    assert await new.report(LoadReport(1, running_requests=1)) == 1


async def test_the_end_of_the_replaced_process_does_not_touch_the_new_one(wire: Wire, scheduler: SchedulerHost) -> None:
    old, new = wire.connection(scheduler), wire.connection(scheduler)
    await old.register(spec(epoch=1))
    await new.register(spec(epoch=2))
    await old.end()
    assert await new.report(LoadReport(1)) == 1
    await in_state(scheduler, "w0", EndpointState.READY)


async def test_a_process_that_was_replaced_cannot_come_back(wire: Wire, scheduler: SchedulerHost) -> None:
    # Cut off while its successor started, it would throw that out and be thrown out in turn, for ever.
    old, new, again = (wire.connection(scheduler) for _ in range(3))
    await old.register(spec(epoch=1))
    old.call.cancel()
    await in_state(scheduler, "w0", EndpointState.SILENT)
    await new.register(spec(epoch=2))
    await again.send(registration=spec_to_proto(spec(epoch=1)))
    assert isinstance(await again.end(), NameTaken)
    assert await new.report(LoadReport(1)) == 1


async def test_reports_after_the_lease_was_lost_are_refused(wire: Wire, scheduler: SchedulerHost) -> None:
    zombie = wire.connection(scheduler)
    await zombie.register(spec())
    scheduler.state.streams.clear()
    scheduler.elapse(LEASE_S)
    await zombie.send(load_report=load_pb2.LoadReport(sequence=1))
    assert isinstance(await zombie.end(), LeaseLost)
    assert scheduler.endpoint("w0") is None


async def test_a_drain_notice_takes_a_worker_out_of_picking(wire: Wire, scheduler: SchedulerHost) -> None:
    connection = wire.connection(scheduler)
    await connection.register(spec())
    await connection.send(drain_notice=registry_pb2.DrainNotice())
    await in_state(scheduler, "w0", EndpointState.DRAINING)
    assert await connection.report(LoadReport(1)) == 1


async def test_a_worker_that_says_goodbye_is_gone_at_once_and_its_stream_ends_well(
    wire: Wire, scheduler: SchedulerHost
) -> None:
    connection = wire.connection(scheduler)
    await connection.register(spec())
    await connection.send(deregistration=registry_pb2.Deregistration())
    await gone(scheduler, "w0")
    await connection.call.done_writing()
    with pytest.raises(AssertionError, match="ended well"):
        await connection.end()


async def test_a_drain_order_reaches_the_worker(wire: Wire, scheduler: SchedulerHost) -> None:
    connection = wire.connection(scheduler)
    await connection.register(spec())
    scheduler.registry.command_drain(WorkerId("w0"), 1500)
    command = (await connection.receive()).command
    assert command.drain.deadline_ms == 1500


async def test_a_worker_that_is_not_connected_cannot_be_ordered(wire: Wire, scheduler: SchedulerHost) -> None:
    connection = wire.connection(scheduler)
    await connection.register(spec())
    connection.call.cancel()
    await in_state(scheduler, "w0", EndpointState.SILENT)
    with pytest.raises(NotFound):
        scheduler.registry.command_drain(WorkerId("w0"), 0)


async def test_a_report_before_the_registration_is_refused(wire: Wire, scheduler: SchedulerHost) -> None:
    connection = wire.connection(scheduler)
    await connection.send(load_report=load_pb2.LoadReport(sequence=1))
    error = await connection.end()
    assert isinstance(error, InvalidRequest)
    assert error.param == "registration"


async def test_a_stream_that_says_nothing_is_refused(wire: Wire, scheduler: SchedulerHost) -> None:
    connection = wire.connection(scheduler)
    await connection.call.done_writing()
    assert isinstance(await connection.end(), InvalidRequest)


async def test_a_second_registration_is_refused_and_the_worker_falls_silent(
    wire: Wire, scheduler: SchedulerHost
) -> None:
    connection = wire.connection(scheduler)
    await connection.register(spec())
    await connection.send(registration=spec_to_proto(spec()))
    assert isinstance(await connection.end(), InvalidRequest)
    await in_state(scheduler, "w0", EndpointState.SILENT)


async def test_a_message_of_a_later_version_is_passed_over(wire: Wire, scheduler: SchedulerHost) -> None:
    connection = wire.connection(scheduler)
    await connection.register(spec())
    await connection.send()
    assert await connection.report(LoadReport(1)) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("worker_id", ""),
        ("epoch", 0),
        ("address", "nowhere"),
        ("address", "host:99999"),
        ("address", "host:²"),
        ("models", []),
    ],
)
async def test_a_senseless_registration_is_refused_by_name(
    wire: Wire, scheduler: SchedulerHost, field: str, value: Any
) -> None:
    connection = wire.connection(scheduler)
    await connection.send(registration=changed(spec_to_proto(spec()), field, value))
    error = await connection.end()
    assert isinstance(error, InvalidRequest)
    assert error.param == field
    assert scheduler.state.pool.endpoints() == ()


async def test_a_report_with_a_number_already_seen_is_acknowledged_and_ignored(
    wire: Wire, scheduler: SchedulerHost
) -> None:
    connection = wire.connection(scheduler)
    await connection.register(spec())
    await connection.report(LoadReport(5, running_requests=1))
    for sequence in (5, 3, 0):
        assert await connection.report(LoadReport(sequence, running_requests=99)) == sequence
    endpoint = scheduler.endpoint("w0")
    assert endpoint is not None
    assert endpoint.load.running_requests == 1


async def test_a_worker_that_ran_out_of_numbers_is_lost_and_heals_by_registering(
    wire: Wire, scheduler: SchedulerHost
) -> None:
    connection = wire.connection(scheduler)
    await connection.register(spec())
    await connection.report(LoadReport(2**64 - 1))
    await connection.report(LoadReport(1))
    scheduler.elapse(LEASE_S)
    assert isinstance(await connection.end(), LeaseLost)
    again = wire.connection(scheduler)
    await again.register(spec())
    await again.report(LoadReport(1, running_requests=1))
    endpoint = scheduler.endpoint("w0")
    assert endpoint is not None
    assert endpoint.load.running_requests == 1


async def test_a_giant_list_of_tickets_that_nobody_gave_settles_nothing(wire: Wire, scheduler: SchedulerHost) -> None:
    connection = wire.connection(scheduler)
    await connection.register(spec())
    scheduler.route(facts(prompt_bytes=400))
    updates = tuple(TicketUpdate(Ticket(number), TicketPhase.ACCEPTED) for number in range(100_000))
    assert await connection.report(LoadReport(1, ticket_updates=updates)) == 1
    assert scheduler.credit() == (1, 100)


async def test_one_worker_cannot_settle_the_tickets_of_another(wire: Wire, scheduler: SchedulerHost) -> None:
    honest, thief = wire.connection(scheduler), wire.connection(scheduler)
    await honest.register(spec("w0"))
    route = scheduler.route(facts(prompt_bytes=400))
    await thief.register(spec("w1"))
    await thief.report(LoadReport(1, ticket_updates=(TicketUpdate(route.ticket, TicketPhase.FINISHED),)))
    assert scheduler.credit() == (1, 100)


async def test_numbers_without_measure_leave_the_scheduler_able_to_pick(wire: Wire, scheduler: SchedulerHost) -> None:
    connection = wire.connection(scheduler)
    await connection.register(spec())
    most = load_pb2.LoadReport(
        sequence=1,
        queued_request_count=0,
        queued_prompt_token_count=2**64 - 1,
        tokens_in_flight_count=2**64 - 1,
        kv_used_block_count=2**64 - 1,
        prefill_tokens_per_s=float("nan"),
        step_time_ms=float("inf"),
    )
    await connection.send(load_report=most)
    assert (await connection.receive()).report_ack.sequence == 1
    assert scheduler.route(facts()).target.worker_id == "w0"
    assert b"lb_scheduler_worker_tokens_in_flight" in scheduler.page()


async def test_a_worker_that_is_gone_leaves_no_labels_behind(wire: Wire, scheduler: SchedulerHost) -> None:
    connection = wire.connection(scheduler)
    await connection.register(spec())
    scheduler.route(facts())
    assert b'worker_id="w0"' in scheduler.page()
    await connection.send(deregistration=registry_pb2.Deregistration())
    await gone(scheduler, "w0")
    assert b'worker_id="w0"' not in scheduler.page()


async def test_a_lost_worker_leaves_no_labels_behind(scheduler: SchedulerHost) -> None:
    scheduler.join(spec())
    scheduler.route(facts())
    scheduler.elapse(LEASE_S)
    assert b'worker_id="w0"' not in scheduler.page()


async def test_a_model_named_twice_by_one_worker_counts_it_once(scheduler: SchedulerHost) -> None:
    scheduler.join(spec(models=[MODEL, MODEL]))
    assert f'lb_scheduler_workers{{model="{MODEL}",state="ready"}} 1.0'.encode() in scheduler.page()


async def test_streams_of_workers_that_left_are_not_kept(wire: Wire, scheduler: SchedulerHost) -> None:
    connection = wire.connection(scheduler)
    await connection.register(spec())
    connection.call.cancel()
    await in_state(scheduler, "w0", EndpointState.SILENT)
    assert scheduler.state.streams == {}


@fixture()
async def sweeping(scheduler: SchedulerHost) -> Any:
    """The scheduler's own sweep, on the manual clock."""
    task = asyncio.ensure_future(sweep(scheduler.state))
    await settle()
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_sweep_ends_a_lease_when_it_is_over(scheduler: SchedulerHost, sweeping: Any) -> None:
    scheduler.join(spec())
    await scheduler.clock.elapse(LEASE_S - 0.01)
    assert scheduler.endpoint("w0") is not None
    await scheduler.clock.elapse(0.01)
    assert scheduler.endpoint("w0") is None


async def test_a_sweep_that_overslept_lets_the_waiting_reports_be_read_first(
    wire: Wire, scheduler: SchedulerHost, sweeping: Any
) -> None:
    connection = wire.connection(scheduler)
    await connection.register(spec())
    scheduler.clock.advance(LEASE_S * 3)
    await connection.report(LoadReport(1))
    await scheduler.clock.elapse(LEASE_S - 0.01)
    assert scheduler.endpoint("w0") is not None


async def test_a_worker_that_is_silent_after_a_pause_of_the_scheduler_is_lost_all_the_same(
    scheduler: SchedulerHost, sweeping: Any
) -> None:
    scheduler.join(spec())
    await settle()
    scheduler.clock.advance(LEASE_S * 3)
    await settle()
    assert scheduler.endpoint("w0") is not None
    await scheduler.clock.elapse(0.5)
    assert scheduler.endpoint("w0") is None


async def test_reports_of_many_workers_are_kept_apart(wire: Wire, scheduler: SchedulerHost) -> None:
    connections = [wire.connection(scheduler) for _ in range(20)]
    for number, connection in enumerate(connections):
        await connection.register(spec(f"w{number}"))
    await soon(
        asyncio.gather(
            *(
                connection.report(LoadReport(1, running_requests=number))
                for number, connection in enumerate(connections)
            )
        )
    )
    loads = {endpoint.worker_id: endpoint.load.running_requests for endpoint in scheduler.state.pool.endpoints()}
    assert loads == {f"w{number}": number for number in range(20)}


def held(scheduler: SchedulerHost, *hashes: int) -> float:
    """Prompt tokens that the worker is believed to hold, at 100 to a block."""
    asked = facts(prompt_bytes=400 * len(hashes), prefix_hashes=hashes, prefix_block_bytes=400)
    return scheduler.state.pool.pick_request(asked).hit_tokens.get(WorkerId("w0"), 0.0)


async def test_what_a_worker_tells_of_its_prefix_cache_is_believed(wire: Wire, scheduler: SchedulerHost) -> None:
    connection = wire.connection(scheduler)
    await connection.register(spec(reports_prefixes=True))
    await connection.tell_prefixes(PrefixReport(1, MODEL, True, (1, 2, 3)))
    await connection.tell_prefixes(PrefixReport(2, MODEL, False, (2**64 - 1,), (3,)))
    # The answer to a load report says that all before it was taken in.
    await connection.report(LoadReport(1))
    assert (held(scheduler, 1, 2, 3), held(scheduler, 2**64 - 1)) == (200, 100)
    assert scheduler.route(facts()).target.wants_prefix_hashes


async def test_after_a_gap_a_worker_is_told_once_to_tell_all_again(wire: Wire, scheduler: SchedulerHost) -> None:
    connection = wire.connection(scheduler)
    await connection.register(spec(reports_prefixes=True))
    await connection.tell_prefixes(PrefixReport(1, MODEL, True, (1, 2)))
    await connection.tell_prefixes(PrefixReport(3, MODEL, False, (4,)))
    await connection.tell_prefixes(PrefixReport(4, MODEL, False, (5,)))
    command = (await connection.receive()).command
    assert command.HasField("resend_prefixes")
    assert await connection.report(LoadReport(1)) == 1
    assert held(scheduler, 1) == 0
    await connection.tell_prefixes(PrefixReport(5, MODEL, True, (1, 2, 4, 5)))
    assert await connection.report(LoadReport(2)) == 2
    assert held(scheduler, 1, 2, 4, 5) == 400


async def test_a_worker_that_comes_back_has_lost_nothing_of_what_it_told(wire: Wire, scheduler: SchedulerHost) -> None:
    first = wire.connection(scheduler)
    await first.register(spec(reports_prefixes=True))
    await first.tell_prefixes(PrefixReport(1, MODEL, True, (1, 2)))
    await first.report(LoadReport(1))
    first.call.cancel()
    await in_state(scheduler, "w0", EndpointState.SILENT)
    second = wire.connection(scheduler)
    await second.register(spec(reports_prefixes=True))
    assert held(scheduler, 1, 2) == 200
    await second.tell_prefixes(PrefixReport(2, MODEL, True, (1,)))
    await second.report(LoadReport(2))
    assert held(scheduler, 1, 2) == 100
