"""Which scheduler a command speaks to."""

from __future__ import annotations

from dataclasses import dataclass

from lbcore.config import host_port, option


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerOptions:
    """Where it is."""

    scheduler: str = option("127.0.0.1:50050", metavar="HOST:PORT", check=host_port, help="scheduler to speak to")
