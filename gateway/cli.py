"""lb-gateway: OpenAI's HTTP API in front of the workers."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from functools import partial
from random import SystemRandom

from gateway.app import run
from gateway.config import GatewayConfig
from gateway.processes import Place, reserve, supervise
from gateway.trace import KEY_BYTES
from lbcore import log
from lbcore.clock import MonotonicClock
from lbcore.config import command_line, load

PROG = "lb-gateway"


def main() -> None:
    """The console script."""
    with command_line(PROG):
        config = load(GatewayConfig, PROG, sys.argv[1:], os.environ, description=__doc__ or "")
        log.setup(PROG, config.log_level)
        trace_key = SystemRandom().randbytes(KEY_BYTES)
        if config.processes == 1:
            asyncio.run(run(config, MonotonicClock(), trace_key))
            return
        with reserve(config.host, config.port) as held:
            child = partial(_child, replace(config, port=held.getsockname()[1]), trace_key)
            sys.exit(supervise(config.processes, child))


def _child(config: GatewayConfig, trace_key: bytes, place: Place) -> None:
    with command_line(PROG):
        log.setup(PROG, config.log_level)
        asyncio.run(run(config, MonotonicClock(), trace_key, place))
