"""The file of measurements: every single one, and the machine, versions and commands that they came from."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

_ROOT = Path(__file__).parents[2]
_SOURCES = ("lbcore", "gateway", "worker")
_DIGITS = 6
"""Significant digits that are kept: a microsecond in a second."""


class Mismatch(Exception):
    """Measurements of another machine or version are not to stand in one file."""


@dataclass(slots=True)
class Record:
    """What is in the file."""

    machine: dict[str, Any]
    systems: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name: kind, version, flags, or the reason why it could not be installed."""
    invocations: list[dict[str, Any]] = field(default_factory=list)
    measurements: list[dict[str, Any]] = field(default_factory=list)
    """Each with invocation, round, system, scenario, is_valid, and figures or a reason."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a file that `save` wrote."""
        return cls(**json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        """Writes the file so that it is there whole or as it was."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": self.machine, "systems": self.systems, "invocations": self.invocations}
        lines = ",\n".join(json.dumps(_short(one)) for one in self.measurements)
        text = json.dumps(content, indent=1)[:-2] + f',\n "measurements": [\n{lines}\n ]\n}}\n'
        part = path.with_suffix(".part")
        part.write_text(text)
        part.replace(path)

    def begin(self, arguments: list[str], seconds: float, rounds: int) -> int:
        """Notes a command that measures; the number of it."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        begun = {"date": now, "arguments": arguments, "seconds": seconds, "rounds": rounds, "load": os.getloadavg()[0]}
        self.invocations.append(begun)
        return len(self.invocations) - 1

    def add_system(self, name: str, facts: dict[str, Any]) -> None:
        """Raises Mismatch when it was measured in another version."""
        known = self.systems.get(name, {}).get("version")
        if known is not None and known != facts.get("version"):
            raise Mismatch(f"{name} was {known} and is {facts.get('version')}")
        self.systems[name] = {**self.systems.get(name, {}), **facts}

    def check_machine(self, here: dict[str, Any]) -> None:
        """Raises Mismatch unless the file is of this machine."""
        different = sorted(name for name in {*here, *self.machine} if here.get(name) != self.machine.get(name))
        if different:
            raise Mismatch(f"the file is of another machine or source: {', '.join(different)}")


def this_machine() -> dict[str, Any]:
    """What the figures depend on beside the systems' versions."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cores": os.cpu_count(),
        "cpu": cpu[1] if cpu else platform.machine(),
        "memory_gb": round(int(memory[1]) / 1e6) if memory else None,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "wrk": _first_line("wrk", "-v"),
        "sources": _sources(),
    }


def _first_line(*words: str) -> str | None:
    """The beginning of what a command says of itself; None where there is no such command."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout or done.stderr).partition("\n")[0].partition(" [")[0]


def _sources() -> str:
    """A digest of our three packages: their version alone does not tell one commit from the next."""
    digest = hashlib.sha256()
    for path in sorted(path for name in _SOURCES for path in (_ROOT / name).rglob("*.py")):
        digest.update(str(path.relative_to(_ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _short(value: Any) -> Any:
    """The same with fewer digits, and null for what is no number."""
    match value:
        case float():
            return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
        case dict():
            return {name: _short(one) for name, one in value.items()}
        case list():
            return [_short(one) for one in value]
        case _:
            return value
