"""lbctl: the operator's tool."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence

from lbcore.commands.explain import explain_route_of
from lbcore.commands.policies import policies
from lbcore.commands.rerun import rerun_log
from lbcore.commands.set_policy import set_policy_of
from lbcore.config import command_line
from lbcore.errors import ConfigError, LoadBalancerError
from lbcore.simulator.cli import simulate

Command = Callable[[Sequence[str], Mapping[str, str]], None]

COMMANDS: Mapping[str, Command] = {
    "explain": explain_route_of,
    "policies": policies,
    "rerun": rerun_log,
    "set-policy": set_policy_of,
    "simulate": simulate,
}
"""What lbctl can do, by name; each takes the words behind its name, and the environment."""


def main() -> None:
    """The console script."""
    with command_line("lbctl"):
        words = sys.argv[1:]
        command = COMMANDS.get(words[0]) if words else None
        if command is None:
            given = f"there is no {words[0]!r}" if words else "a command must be given"
            raise ConfigError(f"{given}; there is: {', '.join(COMMANDS)}")
        try:
            command(words[1:], os.environ)
        except ConfigError:
            raise
        except LoadBalancerError as error:
            print(f"lbctl {words[0]}: {error.message}", file=sys.stderr)
            sys.exit(1)
