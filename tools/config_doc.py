"""Writes docs/configuration.md from the declarations of the options.

python tools/config_doc.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import worker.cli
from gateway.config import GatewayConfig
from lbcore.config import Declaration, Group, declare
from lbcore.scheduler.config import SchedulerConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

INTRODUCTION = """\
# Configuration

Every option can be given as a flag, as an environment variable, or in a TOML file named by `--config FILE` or
`LB_CONFIG`. A flag beats the environment, the environment beats the file, the file beats the default. An empty
variable counts as absent. `--help` shows what stands here, `--version` the version.

A switch is `--flag` and `--no-flag`, and `true` or `false` elsewhere. A list is separated by commas; in the file it may
be an array. Texts by name are `NAME=TEXT;NAME=TEXT`; in the file they are a table, whose names stand in quotes. Lists
and texts by name may be given in parts, by the same flag again. Keys in the file may be written with `-` or `_`. An
unknown flag or key is an error, as is an option of an engine that was not chosen. Behind `--` stand words for an
engine's own command line. Environment variables of other names are left alone. `LB_PORT` and the like mean the same to
each process: what differs between processes on one machine belongs into the environment of each, or into flags.

```toml
# lb-worker --config worker.toml
model = "demo"
engine = "sim"
labels = ["zone=a"]

[sim]
step-ms = 20
```

This page is made from the declarations by `make fix`.
"""


@dataclass(frozen=True)
class Process:
    """A process and all it can be told."""

    prog: str
    groups: Callable[[], Sequence[Group]]


PROCESSES = (
    Process("lb-scheduler", lambda: [Group(SchedulerConfig)]),
    Process("lb-worker", worker.cli.groups),
    Process("lb-gateway", lambda: [Group(GatewayConfig)]),
)


def page() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *(line for process in PROCESSES for line in _section(process))])


def _section(process: Process) -> Iterator[str]:
    yield f"## {process.prog}\n"
    groups = process.groups()
    declarations = declare(groups).values()
    for group in groups:
        if group.only_with is not None:
            name, value = group.only_with
            yield f"### With `--{name} {value}`\n"
            if group.prefix:
                yield f"In the file, under `[{group.prefix}]`.\n"
        yield "| flag | variable | default | meaning |"
        yield "|---|---|---|---|"
        yield from (_row(one) for one in declarations if one.group is group)
        yield ""


def _row(option: Declaration) -> str:
    bare = option.kind is bool or option.choices
    flag = option.flag if bare else f"{option.flag} {option.metavar}"
    default = "required" if option.required else f"`{option.default_text}`" if option.default_text else "none"
    meaning = (
        f"{option.help}: {', '.join(f'`{choice}`' for choice in option.choices)}" if option.choices else option.help
    )
    also = ", ".join(f"`--{alias}`" for alias in option.facts.aliases)
    meaning += f"; also {also}" if also else ""
    cells = (f"`{flag}`", f"`{option.env}`", default, meaning)
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page())
