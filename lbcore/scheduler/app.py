"""The scheduler process: composes state and services, and runs them until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
from random import Random, SystemRandom

import structlog

from lbcore.clock import Clock
from lbcore.garbage import look_seldom
from lbcore.line_file import LineFile
from lbcore.metrics import MetricsServer
from lbcore.policies.assignments import build_assignments
from lbcore.pool import WorkerPool
from lbcore.pool_events import Ticked
from lbcore.router import QueueLimits
from lbcore.scheduler.admin_service import AdminServicer
from lbcore.scheduler.config import SchedulerConfig
from lbcore.scheduler.decision_log import DecisionLog
from lbcore.scheduler.desk import Desk
from lbcore.scheduler.registry_service import RegistryServicer
from lbcore.scheduler.routing_service import RoutingServicer
from lbcore.scheduler.state import SchedulerState
from lbcore.wire.server import GrpcServer

log = structlog.get_logger()

_SWEEP_S = 0.25
"""The longest pause between two looks for leases and tickets that ran out."""


async def run(config: SchedulerConfig, clock: Clock) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        ConfigError: the scheduler cannot start like this.
    """
    seed = config.seed or SystemRandom().randrange(1, 2**31)
    decisions = LineFile(config.decision_log, "--decision-log") if config.decision_log else None
    state = SchedulerState(
        WorkerPool(lease_ttl_s=config.lease_ttl_s, ticket_ttl_s=config.ticket_ttl_s),
        build_assignments(config.policy, config.prefill_policy, config.decode_policy, config.model_policy),
        clock,
        Random(seed),
        SystemRandom().randrange(1, 2**63),
        _limits(config),
        DecisionLog(decisions).record if decisions is not None else None,
    )
    registry = RegistryServicer(state, config.lease_ttl_s, config.report_interval_s)
    server = GrpcServer(
        [
            registry.registration(),
            RoutingServicer(state).registration(),
            AdminServicer(state, registry).registration(),
        ]
    )
    metrics = MetricsServer(state.metrics.registry)
    port = server.listen(config.host, config.port)
    metrics_port = await metrics.start(config.host, config.metrics_port)
    await server.start()
    await server.set_serving(True)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    tending = [loop.create_task(sweep(state)), loop.create_task(serve_waiting(state.desk))]
    if decisions is not None:
        tending.append(loop.create_task(decisions.keep_writing(clock)))
    for task in tending:
        task.add_done_callback(lambda task: stop.set())
    look_seldom()
    log.info(
        "ready",
        grpc=f"{config.host}:{port}",
        metrics=f"{config.host}:{metrics_port}",
        policy=config.policy,
        seed=seed,
    )
    try:
        await stop.wait()
        for task in tending:
            if task.done():
                # Without it no lease would end, or nobody who waits be answered: better gone, with the reason, and
                # started again.
                task.result()
    finally:
        for task in tending:
            task.cancel()
        await asyncio.gather(*tending, return_exceptions=True)
        await server.stop(0.2)
        await metrics.stop()
        if decisions is not None:
            await decisions.close()
    log.info("stopped")


async def sweep(state: SchedulerState) -> None:
    """Ends leases and tickets when their time is over, for ever."""
    overslept = False
    while True:
        deadline = state.pool.next_deadline()
        soon = state.clock.now() + _SWEEP_S
        wake = soon if deadline is None or overslept else min(deadline, soon)
        await state.clock.sleep_until(wake)
        # After a pause of our own, every lease looks over while the reports that renew it wait to be read: let them.
        overslept = not overslept and state.clock.now() - wake > _SWEEP_S
        if not overslept:
            state.handle(Ticked())


async def serve_waiting(desk: Desk) -> None:
    """Answers those who wait as soon as there is an answer, for ever."""
    while True:
        await desk.alarm.sleep_until(desk.serve())


def _limits(config: SchedulerConfig) -> QueueLimits:
    return QueueLimits(
        late_binding=config.late_binding,
        max_requests=config.max_waiting,
        max_prompt_bytes=config.max_waiting_mb * 1024 * 1024,
        max_tenant_requests=config.max_waiting_per_tenant,
        max_wait_s=config.max_wait_s,
    )
