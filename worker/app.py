"""The worker process: an engine, the gRPC service over it, and the reporter that keeps both known."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from random import Random, SystemRandom

import structlog

from lbcore.clock import Clock, unix_time_s
from lbcore.errors import ConfigError, EngineFailed, NameTaken, WorkerUnreachable
from lbcore.garbage import look_seldom
from lbcore.metrics import MetricsServer
from lbcore.types import Capacity, Epoch, LoadReport, ServedModel, WorkerId, WorkerSpec
from lbcore.wire.server import GrpcServer
from worker.config import WorkerConfig
from worker.engine import Engine, EngineInfo
from worker.load import LoadTracker
from worker.metrics import worker_registry
from worker.orca_service import OrcaServicer
from worker.prefix_mirror import PrefixMirror
from worker.reporter import Reporter
from worker.service import GenerationServicer, Sessions

log = structlog.get_logger()

READINESS_S = 0.25
"""How often the engine is asked whether it can serve."""


class Worker:
    """One lb-worker from start to end."""

    def __init__(self, config: WorkerConfig, engine: Engine, model_names: tuple[str, ...], clock: Clock) -> None:
        self._config = config
        self._engine = engine
        self._clock = clock
        self._capacity = Capacity()
        self._model_names = model_names
        self._load = LoadTracker()
        self._stop = asyncio.Event()
        self._drain_timeout_s = config.drain_timeout_s
        self._reporter: Reporter | None = None
        self._exit_status = 0

    async def run(self) -> int:
        """Serves until SIGTERM, a drain order, or the engine's end; returns the exit status.

        Raises:
            ConfigError: the worker cannot start like this.
        """
        config = self._config
        labels = _labels(config.labels)
        host = _connectable(config.host) if not config.advertise else ""
        sessions = Sessions(self._engine, self._load, 1, self._changed, self._clock)
        sessions.refusal = WorkerUnreachable("The worker is loading its model.")
        orca = OrcaServicer(self._look, lambda: self._capacity, self._clock)
        generation = GenerationServicer(sessions)
        server = GrpcServer([generation.registration(), orca.registration()])
        metrics = MetricsServer(worker_registry(self._look, sessions.ends, lambda: self._engine.load().faults))
        try:
            # Ports first: a big model should not be loaded for minutes only to find the port taken.
            port = server.listen(config.host, config.port)
            metrics_port = await metrics.start(config.host, config.metrics_port)
            address = config.advertise or f"{host}:{port}"
            # Before any call is taken, so that the tasks that serve them inherit it.
            structlog.contextvars.bind_contextvars(worker_id=config.worker_id or address)
            info = await self._engine.start()
            self._capacity = info.capacity
            sessions.capacity = info.capacity.max_sequences + config.max_queued_requests
            sessions.continues = info.continues
            sessions.refusal = None
            await server.start()
            await server.set_serving(True)
            spec = _spec(config, self._model_names, address, labels, info)
            look_seldom()
            log.info(
                "ready",
                grpc=f"{config.host}:{port}",
                metrics=f"{config.host}:{metrics_port}",
                models=[*self._model_names, *info.adapters],
                engine=config.engine,
                scheduler=config.scheduler,
            )
            await self._serve(server, sessions, generation, spec, info.prefixes)
        finally:
            await self._engine.close()
            await server.stop(0.2)
            await metrics.stop()
        log.info("stopped", exit_status=self._exit_status)
        return self._exit_status

    async def _serve(
        self,
        server: GrpcServer,
        sessions: Sessions,
        generation: GenerationServicer,
        spec: WorkerSpec,
        prefixes: PrefixMirror | None,
    ) -> None:
        """Keeps the scheduler informed until something says stop, then drains."""
        reporter = self._reporter = Reporter(
            self._config.scheduler,
            spec,
            self._load,
            self._engine,
            Random(spec.epoch),
            self._clock,
            on_drain=self._ordered_to_drain,
            on_abort=sessions.abort,
            prefixes=prefixes,
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        reporting = loop.create_task(self._report(reporter))
        watching = loop.create_task(self._watch_engine(sessions))
        following = loop.create_task(self._follow_readiness(server))
        try:
            await self._stop.wait()
            following.cancel()
            await self._drain(server, sessions, generation, reporter, reporting)
        finally:
            for task in (watching, following, reporting):
                task.cancel()
            await asyncio.gather(watching, following, reporting, return_exceptions=True)

    async def _drain(
        self,
        server: GrpcServer,
        sessions: Sessions,
        generation: GenerationServicer,
        reporter: Reporter,
        reporting: asyncio.Task[None],
    ) -> None:
        log.info("draining", requests=len(sessions), timeout_s=self._drain_timeout_s)
        sessions.refusal = sessions.refusal or WorkerUnreachable("The worker is draining.")
        reporter.drain()
        await server.set_serving(False)
        try:
            async with asyncio.timeout(self._drain_timeout_s):
                await sessions.idle()
                # A server that stops waits only for a moment, and what it cuts is lost to a client that is behind.
                generation.end_streams()
                await generation.ended()
        except TimeoutError:
            log.warning("drain_timeout", requests=len(sessions))
            sessions.stop_all(WorkerUnreachable("The worker was stopped."))
            generation.end_streams()
        reporter.leave()
        # Saying goodbye is a courtesy: a scheduler that does not listen finds out by the lease.
        await asyncio.wait([reporting], timeout=1.0)

    async def _watch_engine(self, sessions: Sessions) -> None:
        why = await self._engine.failed()
        log.error("engine_failed", reason=why)
        sessions.refusal = EngineFailed("The engine has stopped.")
        self._exit_status = 1
        self._stop.set()

    async def _follow_readiness(self, server: GrpcServer) -> None:
        """Lets the worker's health say whether its engine can serve now."""
        unready = False
        while True:
            await self._clock.sleep_until(self._clock.now() + READINESS_S)
            try:
                now_unready = self._engine.load().unready
            except Exception:
                # An engine that measures nonsense is no reason to stop looking.
                log.exception("engine_load_failed")
                continue
            if now_unready != unready:
                unready = not unready
                log.warning("engine_unready" if unready else "engine_ready")
                await server.set_serving(not unready)
                self._changed()

    async def _report(self, reporter: Reporter) -> None:
        try:
            await reporter.run()
            return
        except NameTaken as error:
            log.error("name_taken", reason=error.message)
        except Exception:
            # A worker that nobody hears of serves nobody: better gone and started again than alive and unknown.
            log.exception("reporting_crashed")
        self._exit_status = 1
        self._stop.set()

    def _ordered_to_drain(self, deadline_s: float | None) -> None:
        if deadline_s is not None:
            self._drain_timeout_s = deadline_s
        self._stop.set()

    def _look(self) -> LoadReport:
        return self._load.look(self._engine.load(), self._clock.now())

    def _changed(self) -> None:
        if self._reporter is not None:
            self._reporter.changed()


def _connectable(host: str) -> str:
    """The host under which others can call a listener on `host`."""
    if host in ("0.0.0.0", "::", ""):
        raise ConfigError(f"--advertise: needed with --host {host or 'empty'}, as HOST:PORT that gateways can reach")
    return f"[{host}]" if ":" in host else host


def _spec(
    config: WorkerConfig, names: tuple[str, ...], address: str, labels: Mapping[str, str], info: EngineInfo
) -> WorkerSpec:
    return WorkerSpec(
        worker_id=WorkerId(config.worker_id or address),
        # 63 bits: never 0, and a signed integer in every language.
        epoch=Epoch(SystemRandom().randrange(1, 2**63)),
        address=address,
        models=_models(names, info),
        role=config.role,
        engine=config.engine,
        capacity=replace(info.capacity, max_queued_requests=config.max_queued_requests),
        labels=labels,
        version=version("lbcore"),
        reports_prefixes=info.prefixes is not None,
    )


def _models(names: tuple[str, ...], info: EngineInfo) -> tuple[ServedModel, ...]:
    created = int(unix_time_s())
    # Adapters stand with the first name alone: every name a client can ask for stands once.
    return tuple(
        ServedModel(name, () if position else info.adapters, info.context_length, created)
        for position, name in enumerate(dict.fromkeys(names))
    )


def _labels(pairs: tuple[str, ...]) -> Mapping[str, str]:
    labels: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise ConfigError(f"--labels: {pair} is not KEY=VALUE")
        labels[key] = value
    return labels
