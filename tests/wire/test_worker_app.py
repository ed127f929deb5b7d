"""A whole worker inside the test's event loop, with a scripted engine: how it comes, how it goes, and what is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from lbcore.errors import ConfigError, EngineFailed, WorkerUnreachable
from lbcore.generation import Dialect, Failed, Finished, GenerationRequest
from lbcore.types import EndpointState, ServedModel, WorkerId
from lbcore.wire.channel import open_channel
from lbcore.wire.clients import GenerationClient
from tests.fakes import ManualClock, ScriptedEngine
from tests.fleet import spec
from tests.wire.conftest import Host, SchedulerHost, Wire, all_events, begin, failure_of, fixture, in_state, soon
from worker import app
from worker.app import Worker
from worker.config import WorkerConfig
from worker.engine import EngineLoad

MODEL = "m"


def ask() -> GenerationRequest:
    return GenerationRequest("r", Dialect.CHAT, b"{}")


class RunningWorker:
    """A worker and the task that runs it."""

    def __init__(
        self, scheduler: Host, names: tuple[str, ...] = (MODEL,), adapters: tuple[str, ...] = (), **options: Any
    ) -> None:
        self.engine = ScriptedEngine()
        self.engine.info = replace(self.engine.info, adapters=adapters)
        config = WorkerConfig(
            model=MODEL, worker_id="w0", scheduler=scheduler.address, max_queued_requests=2, **options
        )
        self.clock = ManualClock()
        self.task = asyncio.ensure_future(Worker(config, self.engine, names, self.clock).run())

    async def exit_status(self) -> int:
        return await soon(self.task)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@fixture()
async def running(scheduler: SchedulerHost) -> AsyncIterator[RunningWorker]:
    """A worker that the scheduler knows."""
    worker = RunningWorker(scheduler)
    await scheduler.state.happened.until(lambda: scheduler.endpoint("w0") is not None)
    yield worker
    await worker.stop()


@fixture()
async def client(scheduler: SchedulerHost, running: RunningWorker) -> AsyncIterator[GenerationClient]:
    client = GenerationClient(address_of(scheduler))
    yield client
    await client.close()


def address_of(scheduler: SchedulerHost) -> str:
    endpoint = scheduler.endpoint("w0")
    assert endpoint is not None
    return endpoint.spec.address


async def drained_by(scheduler: SchedulerHost, deadline_ms: int = 0) -> None:
    """Orders the worker to drain and waits until the scheduler has heard that it does."""
    scheduler.registry.command_drain(WorkerId("w0"), deadline_ms)

    def is_draining() -> bool:
        endpoint = scheduler.endpoint("w0")
        return endpoint is None or endpoint.state is EndpointState.DRAINING

    await scheduler.state.happened.until(is_draining)


async def health(address: str) -> int:
    async with open_channel(address) as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    return int(reply.status)


async def test_a_worker_tells_what_it_is_and_serves(
    scheduler: SchedulerHost, running: RunningWorker, client: GenerationClient
) -> None:
    endpoint = scheduler.endpoint("w0")
    assert endpoint is not None
    capacity = endpoint.spec.capacity
    assert (capacity.max_sequences, capacity.max_queued_requests) == (4, 2)
    assert [model.name for model in endpoint.spec.models] == [MODEL]
    assert isinstance(endpoint.spec.models[0], ServedModel)
    assert await health(address_of(scheduler)) == health_pb2.HealthCheckResponse.SERVING
    call = begin(client, ask())
    (await running.engine.next()).answer("Hi")
    assert (await all_events(call))[-1] == Finished(10, 0, 1)


async def test_a_worker_may_serve_several_names_and_adapters_each_said_once(scheduler: SchedulerHost) -> None:
    worker = RunningWorker(scheduler, ("big", "default", "big"), ("poet", "lawyer"))
    await scheduler.state.happened.until(lambda: scheduler.endpoint("w0") is not None)
    endpoint = scheduler.endpoint("w0")
    assert endpoint is not None
    assert sorted(endpoint.spec.model_names) == ["big", "default", "lawyer", "poet"]
    assert all(model.context_length == 4096 for model in endpoint.spec.models)
    await worker.stop()


async def test_a_worker_takes_as_many_requests_as_it_said(running: RunningWorker, client: GenerationClient) -> None:
    calls = [begin(client, ask()) for _ in range(7)]
    for _ in range(6):
        await running.engine.next()
    assert (await failure_of(calls[6])).reason == "SATURATED"


async def test_a_worker_ordered_to_drain_finishes_what_it_has_and_leaves(
    scheduler: SchedulerHost, running: RunningWorker, client: GenerationClient
) -> None:
    call = begin(client, ask())
    taken = await running.engine.next()
    address = address_of(scheduler)
    await drained_by(scheduler)
    assert isinstance(await failure_of(begin(client, ask())), WorkerUnreachable)
    assert await health(address) == health_pb2.HealthCheckResponse.NOT_SERVING
    taken.answer("to", "the", "end")
    assert (await all_events(call))[-1] == Finished(10, 0, 3)
    assert await running.exit_status() == 0
    assert scheduler.endpoint("w0") is None
    assert running.engine.is_closed


async def test_what_outlives_the_drain_s_deadline_is_stopped(
    scheduler: SchedulerHost, running: RunningWorker, client: GenerationClient
) -> None:
    call = begin(client, ask())
    await running.engine.next()
    await drained_by(scheduler, deadline_ms=10)
    assert isinstance(await failure_of(call), WorkerUnreachable)
    assert await running.exit_status() == 0
    assert running.engine.aborted == ["r#1"]
    assert scheduler.endpoint("w0") is None


async def test_a_worker_whose_engine_broke_ends_with_an_error_and_is_gone_at_once(
    scheduler: SchedulerHost, running: RunningWorker, client: GenerationClient
) -> None:
    call = begin(client, ask())
    await running.engine.next()
    running.engine.break_down("Out of memory.")
    last = (await all_events(call))[-1]
    assert isinstance(last, Failed)
    assert isinstance(last.error, EngineFailed)
    assert await running.exit_status() == 1
    assert scheduler.endpoint("w0") is None


async def test_a_worker_whose_engine_is_away_is_not_picked_until_it_is_back(
    scheduler: SchedulerHost, running: RunningWorker
) -> None:
    address = address_of(scheduler)
    for unready, state, serving in (
        (True, EndpointState.UNREADY, health_pb2.HealthCheckResponse.NOT_SERVING),
        (False, EndpointState.READY, health_pb2.HealthCheckResponse.SERVING),
    ):
        running.engine.measured = EngineLoad(unready=unready)
        await running.clock.elapse(2 * app.READINESS_S)
        await in_state(scheduler, "w0", state)
        assert await health(address) == serving


async def test_an_engine_that_measures_nonsense_for_once_is_looked_at_again(
    scheduler: SchedulerHost, running: RunningWorker
) -> None:
    address, measure = address_of(scheduler), running.engine.load

    def fail() -> EngineLoad:
        raise ValueError

    running.engine.load = fail  # type: ignore[method-assign]
    await running.clock.elapse(2 * app.READINESS_S)
    running.engine.load = measure  # type: ignore[method-assign]
    running.engine.measured = EngineLoad(unready=True)
    await running.clock.elapse(2 * app.READINESS_S)
    assert await health(address) == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_worker_whose_name_was_taken_finishes_what_it_has_and_ends_with_an_error(
    wire: Wire, scheduler: SchedulerHost, running: RunningWorker, client: GenerationClient
) -> None:
    call = begin(client, ask())
    taken = await running.engine.next()
    await wire.connection(scheduler).register(spec("w0", epoch=1))
    taken.answer("done")
    assert (await all_events(call))[-1] == Finished(10, 0, 1)
    assert await running.exit_status() == 1


async def test_a_worker_that_nobody_can_hear_of_ends(scheduler: SchedulerHost, monkeypatch: pytest.MonkeyPatch) -> None:
    async def crash(reporter: object) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(app.Reporter, "run", crash)
    with capture_logs() as logs:
        worker = RunningWorker(scheduler)
        assert await worker.exit_status() == 1
    assert "reporting_crashed" in [line["event"] for line in logs]


async def test_a_worker_without_a_scheduler_can_be_stopped(scheduler: SchedulerHost, running: RunningWorker) -> None:
    await scheduler.stop()
    running.engine.break_down("Over.")
    assert await running.exit_status() == 1


async def metrics_page(address: str) -> str:
    async with aiohttp.ClientSession() as http, http.get(f"http://{address}/metrics") as response:
        return await response.text()


async def test_the_metrics_page_tells_the_load_and_how_requests_ended(scheduler: SchedulerHost) -> None:
    with capture_logs() as logs:
        worker = RunningWorker(scheduler)
        await scheduler.state.happened.until(lambda: scheduler.endpoint("w0") is not None)
    [ready] = [line for line in logs if line["event"] == "ready"]
    client = GenerationClient(address_of(scheduler))
    good, bad = begin(client, ask()), begin(client, ask())
    (await worker.engine.next()).answer("Hi")
    (await worker.engine.next()).fail(EngineFailed("No."))
    await all_events(good)
    await failure_of(bad)
    worker.engine.measured = EngineLoad(faults={"truncated": 2})
    page = await metrics_page(ready["metrics"])
    for line in (
        'lb_worker_requests_total{reason="OK"} 1.0',
        'lb_worker_requests_total{reason="ENGINE_FAILED"} 1.0',
        'lb_worker_engine_faults_total{kind="truncated"} 2.0',
        "lb_worker_engine_ready 1.0",
        "lb_worker_output_tokens_total 1.0",
    ):
        assert line in page
    begin(client, ask())
    (await worker.engine.next()).start(prompt_tokens=10, cached_tokens=4)
    page = await metrics_page(ready["metrics"])
    for line in (
        "lb_worker_running_requests 1.0",
        "lb_worker_queued_requests 0.0",
        "lb_worker_queued_prompt_tokens 6.0",
        "lb_worker_tokens_in_flight 10.0",
        "lb_worker_prompt_tokens_total 20.0",
        "lb_worker_cached_prompt_tokens_total 4.0",
    ):
        assert line in page
    await client.close()
    await worker.stop()


@pytest.mark.parametrize(
    ("options", "named"),
    [({"host": "0.0.0.0"}, "--advertise"), ({"labels": ("zone",)}, "--labels")],
    ids=["nowhere to call", "half a label"],
)
async def test_what_cannot_work_is_said_before_the_model_is_loaded(
    scheduler: SchedulerHost, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], named: str
) -> None:
    async def never(engine: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(ScriptedEngine, "start", never)
    with pytest.raises(ConfigError, match=named):
        await RunningWorker(scheduler, **options).exit_status()


async def test_a_port_in_use_is_said_before_the_model_is_loaded(
    scheduler: SchedulerHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(engine: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(ScriptedEngine, "start", never)
    for option in ("port", "metrics_port"):
        with pytest.raises(ConfigError, match=f"--{option.replace('_', '-')}"):
            await RunningWorker(scheduler, **{option: scheduler.port}).exit_status()
