"""The options of lb-scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from lbcore.config import at_least, between, option, port_number
from lbcore.log import LEVELS
from lbcore.policies.assignments import check_model_policies
from lbcore.policies.presets import DEFAULT_DECODE_POLICY, DEFAULT_POLICY
from lbcore.policies.registry import check_policy


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Where the scheduler listens, how it decides, who may wait, and how long it believes in a silent worker."""

    host: str = option("127.0.0.1", help="address to listen on")
    port: int = option(50050, check=port_number, help="port for gRPC; 0 takes a free one")
    metrics_port: int = option(50051, check=port_number, help="port for /metrics; 0 takes a free one")
    policy: str = option(
        DEFAULT_POLICY,
        check=check_policy,
        metavar="NAME",
        help="how workers are picked for whole requests: one of docs/policies.md, parameters in brackets",
    )
    prefill_policy: str = option(
        DEFAULT_POLICY, check=check_policy, metavar="NAME", help="the same where prefill alone is asked for"
    )
    decode_policy: str = option(
        DEFAULT_DECODE_POLICY, check=check_policy, metavar="NAME", help="the same where decode alone is asked for"
    )
    model_policy: tuple[tuple[str, str], ...] = option(
        (),
        check=check_model_policies,
        metavar="MODEL=NAME;...",
        help="policies of models that have their own; MODEL:prefill and MODEL:decode are for those phases",
    )
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
    late_binding: bool = option(
        True,
        help="whether requests wait here while no worker has room for them, rather than in an engine's queue",
    )
    max_waiting: int = option(
        4096, check=at_least(0), help="requests that may wait for one phase of one model; more get 503"
    )
    max_waiting_mb: int = option(
        1024, check=at_least(0), help="megabytes of the prompts of those requests; more get 503"
    )
    max_waiting_per_tenant: int = option(
        1024, check=at_least(0), help="those of one tenant among them; more of that tenant get 429"
    )
    max_wait_s: float = option(
        120.0,
        check=at_least(0),
        help="seconds that a request may have to wait as predicted; past that it gets 503 at once",
    )
    decision_log: str = option(
        "", metavar="FILE", help="file to which each decision is appended with what it was made of"
    )
    seed: int = option(0, help="seed of chance in picks; 0 draws one, which is logged")
    log_level: str = option("info", choices=LEVELS, help="least severe log lines shown")
