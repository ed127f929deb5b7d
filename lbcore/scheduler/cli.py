"""lb-scheduler: knows the workers and their load, and decides where each request goes."""

from __future__ import annotations

import asyncio
import os
import sys

from lbcore import log
from lbcore.clock import MonotonicClock
from lbcore.config import command_line, load
from lbcore.scheduler.app import run
from lbcore.scheduler.config import SchedulerConfig

PROG = "lb-scheduler"


def main() -> None:
    """The console script."""
    with command_line(PROG):
        config = load(SchedulerConfig, PROG, sys.argv[1:], os.environ, description=__doc__ or "")
        log.setup(PROG, config.log_level)
        asyncio.run(run(config, MonotonicClock()))
