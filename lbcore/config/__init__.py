"""The options of a process: declared once as fields of a frozen dataclass, given by flag, environment or TOML file.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class GatewayConfig:
        port: int = option(8000, help="port to listen on", check=port_number)

is `--port`, `LB_PORT` and the key `port` of the file named by `--config`; a flag beats the environment, the
environment beats the file, the file beats the default. An empty environment variable counts as absent. Several
dataclasses can share one command line, each a `Group` under a prefix of its own. This room is pure: arguments,
environment and the reading of files are handed to it.
"""

from lbcore.config.checks import at_least, between, host_port, port_number, positive
from lbcore.config.declare import Declaration, Group, declare, option
from lbcore.config.load import Loaded, command_line, load, load_groups
from lbcore.config.sources import Asked, Source

__all__ = [
    "Asked",
    "Declaration",
    "Group",
    "Loaded",
    "Source",
    "at_least",
    "between",
    "command_line",
    "declare",
    "host_port",
    "load",
    "load_groups",
    "option",
    "port_number",
    "positive",
]
