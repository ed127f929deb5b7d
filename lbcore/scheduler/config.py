"""The options of lb-scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from lbcore.config import between, option, port_number
from lbcore.log import LEVELS
from lbcore.policies.presets import DEFAULT_POLICY, PRESETS


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Where the scheduler listens, how it decides, and how long it believes in a silent worker."""

    host: str = option("127.0.0.1", help="address to listen on")
    port: int = option(50050, check=port_number, help="port for gRPC; 0 takes a free one")
    metrics_port: int = option(50051, check=port_number, help="port for /metrics; 0 takes a free one")
    policy: str = option(DEFAULT_POLICY, choices=tuple(PRESETS), help="how workers are picked")
    lease_ttl_s: float = option(
        3.0, check=between(0.2, 3600), help="seconds after its last report until a silent worker is lost"
    )
    report_interval_s: float = option(
        0.25, check=between(0.02, 60), help="longest pause between two load reports that workers are asked for"
    )
    ticket_ttl_s: float = option(
        10.0,
        check=between(0.1, 3600),
        help="seconds after which a dispatch that never reached its worker is given back",
    )
    seed: int = option(0, help="seed of chance in picks; 0 draws one, which is logged")
    log_level: str = option("info", choices=LEVELS, help="least severe log lines shown")
