"""lbctl set-policy: gives a model and phase another policy, until the scheduler ends."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lbcore.commands.scheduler import SchedulerOptions
from lbcore.config import Group, load_groups, option
from lbcore.types import PolicyAssignment, Role
from lbcore.wire.admin_client import set_policy

PROG = "lbctl set-policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPolicyOptions:
    """What is to decide for what.

    Not named after the options of lb-scheduler: what its environment holds would be taken for an order.
    """

    to: str = option(metavar="NAME", help="policy as --policy of lb-scheduler takes it; empty takes a model's own away")
    of: str = option("", metavar="MODEL", help="model that is to have it for itself; empty for all without their own")
    phase: Role = option(Role.MIXED, help="what it is to decide; mixed stands for whole requests")


def set_policy_of(argv: Sequence[str], environ: Mapping[str, str]) -> None:
    """Tells the scheduler and prints a line.

    Raises:
        ConfigError: an option makes no sense.
        InvalidRequest: there is no such policy, or a phase would be left without any.
        NoReadyWorker: no scheduler answers there.
    """
    groups = (Group(SetPolicyOptions), Group(SchedulerOptions))
    loaded = load_groups(groups, PROG, argv, environ, description=__doc__ or "")
    options = loaded[SetPolicyOptions]
    asyncio.run(set_policy(loaded[SchedulerOptions].scheduler, PolicyAssignment(options.of, options.phase, options.to)))
    whose = options.of or "every model without its own"
    print(f"{whose}, {options.phase}: {options.to or 'as every model without its own'}")
