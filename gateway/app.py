"""The gateway process: a server over one routing client and the workers' streams."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
from contextlib import suppress
from random import Random, SystemRandom

import structlog
from aiohttp import web

from gateway.config import GatewayConfig
from gateway.exchange import Exchanges, Trace
from gateway.fleet import Fleet
from gateway.handlers import Handlers
from gateway.metrics import GatewayMetrics
from gateway.processes import Place
from gateway.siblings import OwnPage
from gateway.trace import TraceWriter
from lbcore.clock import Clock
from lbcore.dispatch import Dispatcher
from lbcore.errors import ConfigError
from lbcore.garbage import look_seldom
from lbcore.generation import Finished
from lbcore.line_file import LineFile
from lbcore.standby import Standby
from lbcore.types import RouteFacts
from lbcore.wire.clients import GenerationClients
from lbcore.wire.routing_client import RoutingClient

log = structlog.get_logger()

# aiohttp logs what it could not parse as HTTP with the client's bytes in it; those may be anybody's prompt.
_unparsable = logging.getLogger("gateway.unparsable")
_unparsable.setLevel(logging.CRITICAL)


async def run(config: GatewayConfig, clock: Clock, trace_key: bytes, place: Place | None = None) -> None:
    """Serves until SIGTERM or SIGINT, then lets running requests finish. `place` is its place among its siblings, which
    all have the same `trace_key`.

    Raises:
        ConfigError: the gateway cannot start like this.
    """
    lines = LineFile(config.trace, "--trace") if config.trace else None
    routing = RoutingClient(config.scheduler)
    workers = GenerationClients()
    metrics = GatewayMetrics()
    fleet = Fleet(on_change=workers.keep_only)
    rng = Random(SystemRandom().randrange(2**64))
    standby = Standby(fleet.workers, lambda: fleet.missing, rng)
    dispatcher = Dispatcher(routing, workers, clock, config.stall_timeout_s, standby)
    trace = None if lines is None else trace_to(lines, trace_key)
    exchanges = Exchanges(config, dispatcher.start, fleet, metrics, clock, trace)
    handlers = Handlers(exchanges, rng, place)
    server = handlers.server(logger=_unparsable)
    runner = web.ServerRunner(server, shutdown_timeout=config.drain_timeout_s)
    await runner.setup()
    try:
        await web.TCPSite(runner, config.host, config.port, reuse_port=place is not None).start()
    except OSError as error:
        await runner.cleanup()
        raise ConfigError(f"--port: cannot listen on {config.host}:{config.port}: {error.strerror or error}") from error
    loop = asyncio.get_running_loop()
    following = loop.create_task(fleet.follow(routing, rng))
    tracing = None if lines is None else loop.create_task(lines.keep_writing(clock))
    stop, cut = asyncio.Event(), asyncio.Event()
    settle_s = config.settle_s

    def told(number: signal.Signals) -> None:
        nonlocal settle_s
        if number is signal.SIGINT and place is not None:
            # A terminal tells all processes; the supervisor tells its own by SIGTERM, and that would be the second.
            return
        if stop.is_set():
            cut.set()
        elif number is signal.SIGINT:
            settle_s = 0.0
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told, number)
    following.add_done_callback(lambda task: stop.set())
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A supervisor that was killed can stop nobody; without this its children would hold the port for ever.
        loop.add_reader(parent.sentinel, stop.set)
    own_page = OwnPage(metrics.registry, place) if place is not None else None
    if own_page is not None:
        await own_page.start()
    host, port = runner.addresses[0][:2]
    look_seldom()
    log.info("ready", http=f"{host}:{port}", scheduler=config.scheduler, index=place.index if place else 0)
    try:
        await stop.wait()
        if following.done():
            # A table that nobody keeps up to date is worse than a gateway that is started again.
            following.result()
        if parent is not None:
            loop.remove_reader(parent.sentinel)
        log.info("draining", requests=exchanges.in_flight, settle_s=settle_s, timeout_s=config.drain_timeout_s)
        handlers.draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(settle_s):
                await cut.wait()
        cutting = loop.create_task(cut.wait())
        cutting.add_done_callback(lambda task: server.cut() if not task.cancelled() else None)
        await runner.cleanup()
        cutting.cancel()
    finally:
        await runner.cleanup()
        if own_page is not None:
            await own_page.stop()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        if lines is not None and tracing is not None:
            tracing.cancel()
            await asyncio.gather(tracing, return_exceptions=True)
            await lines.close()
        await workers.close()
        await routing.close()
    log.info("stopped")


def trace_to(lines: LineFile, key: bytes) -> Trace:
    """Has finished requests written down, as far as their engine has counted their tokens."""
    writer = TraceWriter(key)

    def trace(facts: RouteFacts, usage: Finished, at_unix_s: float) -> None:
        if lines.is_open and usage.prompt_tokens:
            lines.put(writer.line(facts, usage, at_unix_s))

    return trace
