"""lbctl policies: which policy decides for which model and phase."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from lbcore.commands.scheduler import SchedulerOptions
from lbcore.config import load
from lbcore.types import PolicyAssignment
from lbcore.wire.admin_client import list_policies

PROG = "lbctl policies"

EVERY_MODEL = "*"
"""Stands for the models that have no policy of their own."""


def policies(argv: Sequence[str], environ: Mapping[str, str]) -> None:
    """Asks the scheduler and prints a table.

    Raises:
        ConfigError: an option makes no sense.
        NoReadyWorker: no scheduler answers there.
    """
    options = load(SchedulerOptions, PROG, argv, environ, description=__doc__ or "")
    print(table(asyncio.run(list_policies(options.scheduler))))


def table(assignments: Iterable[PolicyAssignment]) -> str:
    """A line for each, under a line of headings."""
    rows = [("model", "phase", "policy")]
    rows += [(one.model or EVERY_MODEL, one.phase.value, one.policy) for one in assignments]
    width = max(len(model) for model, _, _ in rows)
    return "\n".join(f"{model:<{width}}  {phase:<7}  {policy}" for model, phase, policy in rows)
