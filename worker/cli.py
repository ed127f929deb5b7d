"""lb-worker: hosts one engine, serves it over gRPC, and keeps a scheduler informed of its load."""

from __future__ import annotations

import asyncio
import os
import sys

from lbcore import log
from lbcore.clock import MonotonicClock
from lbcore.config import Group, command_line, load_groups
from worker.app import Worker
from worker.config import WorkerConfig
from worker.engines import ENGINES, Assignment, model_name

PROG = "lb-worker"


def groups() -> list[Group]:
    """Everything that can be said on lb-worker's command line: its own options, then each engine's."""
    engines = [
        Group(kind.options, prefix=kind.prefix(name), title=f"engine {name}", only_with=("engine", name))
        for name, kind in ENGINES.items()
    ]
    return [Group(WorkerConfig), *engines]


def main() -> None:
    """The console script."""
    with command_line(PROG):
        loaded = load_groups(groups(), PROG, sys.argv[1:], os.environ, description=__doc__ or "")
        config = loaded[WorkerConfig]
        log.setup(PROG, config.log_level)
        kind = ENGINES[config.engine]
        clock = MonotonicClock()
        assignment = Assignment(config.model, config.served_model_name or (model_name(config.model),))
        engine = kind.create(assignment, loaded[kind.options], clock)
        sys.exit(asyncio.run(Worker(config, engine, assignment.names, clock).run()))
