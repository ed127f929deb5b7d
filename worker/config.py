"""The options of lb-worker, but for those of the engines, which stand with each engine."""

from __future__ import annotations

from dataclasses import dataclass

from lbcore.config import at_least, host_port, option, port_number
from lbcore.log import LEVELS
from lbcore.types import Role
from worker.engines import DEFAULT_ENGINE, ENGINES


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Who the worker is, what it serves, and how it behaves."""

    model: str = option(
        metavar="NAME_OR_PATH",
        aliases=("model-path",),
        help="model to serve; 'demo' is the small model that ships with us",
    )
    engine: str = option(DEFAULT_ENGINE, choices=tuple(ENGINES), help="what generates tokens")
    served_model_name: tuple[str, ...] = option(
        (),
        metavar="NAME,...",
        aliases=("model-names",),
        help="names that clients ask for; none means the model's own name without folder and suffix",
    )
    scheduler: str = option("127.0.0.1:50050", metavar="HOST:PORT", check=host_port, help="scheduler to register with")
    host: str = option("127.0.0.1", help="address to listen on")
    port: int = option(0, check=port_number, help="port for gRPC; 0 takes a free one")
    advertise: str = option(
        "", metavar="HOST:PORT", help="address that gateways call; empty means the listening address"
    )
    worker_id: str = option("", metavar="NAME", help="name for operators; empty means the advertised address")
    role: Role = option(Role.MIXED, help="phases of a request that this worker takes")
    labels: tuple[str, ...] = option((), metavar="KEY=VALUE,...", help="labels shown to operators")
    max_queued_requests: int = option(
        256, check=at_least(0), help="requests that may wait in the engine beyond those that run; more are refused"
    )
    drain_timeout_s: float = option(
        30.0, check=at_least(0), help="seconds that running requests get after SIGTERM before they are stopped"
    )
    metrics_port: int = option(0, check=port_number, help="port for /metrics; 0 takes a free one")
    log_level: str = option("info", choices=LEVELS, help="least severe log lines shown")
