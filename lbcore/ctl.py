"""lbctl: the operator's tool."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence

from lbcore.config import command_line
from lbcore.errors import ConfigError
from lbcore.simulator.cli import simulate

Command = Callable[[Sequence[str], Mapping[str, str]], None]

COMMANDS: Mapping[str, Command] = {
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
        command(words[1:], os.environ)
