"""The options of lb-gateway."""

from __future__ import annotations

from dataclasses import dataclass

from lbcore.config import at_least, between, host_port, option, port_number
from lbcore.log import LEVELS


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Where the gateway listens, whom it asks, and what it lets in."""

    scheduler: str = option("127.0.0.1:50050", metavar="HOST:PORT", check=host_port, help="scheduler to ask for routes")
    host: str = option("127.0.0.1", help="address to listen on")
    port: int = option(8000, check=port_number, help="port for HTTP; 0 takes a free one")
    processes: int = option(1, check=between(1, 128), help="processes that share the port, for more than one core")
    max_body_bytes: int = option(
        32 * 1024 * 1024, check=between(1024, 1024**3), help="largest request body let in; more gets 413"
    )
    request_timeout_s: float = option(
        600.0, check=between(0.1, 86_400), help="seconds a request may take in all; then it ends with 504"
    )
    settle_s: float = option(
        2.0,
        check=between(0, 600),
        help="seconds after SIGTERM during which new requests are still taken, until who sends them has seen /ready; "
        "SIGINT does not wait",
    )
    drain_timeout_s: float = option(
        30.0,
        check=at_least(0),
        help="seconds that running requests get after that before they are cut; a second signal cuts them at once",
    )
    continuation: bool = option(
        True,
        help="have another worker go on with an answer when the one that gives it is lost; clients say no to it with "
        "X-LB-Continue: 0",
    )
    stall_timeout_s: float = option(
        5.0,
        check=between(0.5, 3600),
        help="seconds without a token, or twenty times an answer's time per token if that is longer, after which its "
        "worker is given up",
    )
    debug_headers: bool = option(
        False,
        help="tell clients who send X-LB-Explain: 1 why a request went where it went, and so the names of workers",
    )
    trace: str = option(
        "",
        metavar="FILE",
        help="file to which finished requests are appended, without texts and names, for lbctl simulate",
    )
    log_level: str = option("info", choices=LEVELS, help="least severe log lines shown")
