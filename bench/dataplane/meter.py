"""CPU time and memory of processes by role, read from the kernel.

A process's CPU time is its own clock (clock_getcpuclockid): nanoseconds, all threads, those that have ended too. Where
the kernel refuses that, it is utime+stime of /proc/PID/stat, in ticks. A role is its processes and their descendants;
what a descendant used that has ended meanwhile is in the cutime+cstime of its parent. `schedstat` is not used: of a
process it shows the main thread alone, and of the threads those that still live.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_CPUCLOCK_SCHED = 2
_RESET_PEAK = "5"
_SPIN = 200_000
"""Some 10 ms."""

Pids = Mapping[str, tuple[int, ...]]
"""Process ids by role."""


class Gone(Exception):
    """A measured process has ended: what was measured of it is no figure."""


@dataclass(frozen=True, slots=True)
class Memory:
    """In bytes, over all processes of a role."""

    rss: int
    """Pages that two processes share count twice."""
    pss: int | None
    """Shared pages divided among those that share them; None where the kernel does not tell."""
    peak_rss: int
    """The sum of each process's highest RSS since `Meter.reset_peaks`, or since its start."""


@dataclass(slots=True)
class Spent:
    """What was used between two moments. Filled when the block ends."""

    cpu_s: dict[str, float] = field(default_factory=dict)
    """By role."""
    wall_s: float = 0.0
    neighbour_cores: float = 0.0
    """Cores busy with what is neither in a role, nor this process, nor a child of it that ended in the block."""
    spin_ms: float = 0.0
    """CPU time of a fixed piece of Python, the mean of before and after: how fast cores were that may be shared."""


class Meter:
    """Reads the processes of each role. Remembers nothing but their ids."""

    def __init__(self, roles: Pids) -> None:
        self._roles = dict(roles)

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds by role since the processes began. Raises Gone."""
        return {role: sum(map(_family_cpu_s, self._families(pids))) for role, pids in self._roles.items()}

    def memory(self) -> dict[str, Memory]:
        """Memory by role, now. Raises Gone."""
        return {role: _memory(self._families(pids)) for role, pids in self._roles.items()}

    def reset_peaks(self) -> None:
        """Lets the peaks begin anew, where the kernel allows it."""
        for pids in self._roles.values():
            for pid in self._families(pids):
                with contextlib.suppress(OSError):
                    Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK)

    @contextlib.contextmanager
    def spent(self) -> Iterator[Spent]:
        """What the block uses. Raises Gone at its end when a process of a role has ended in it."""
        spent, spin_ms = Spent(), _spin_ms()
        busy, own, wall, before = machine_busy_s(), _own_cpu_s(), time.perf_counter(), self.cpu_s()
        yield spent
        after = self.cpu_s()
        spent.wall_s = time.perf_counter() - wall
        spent.cpu_s = {role: after[role] - before[role] for role in after}
        known_s = sum(spent.cpu_s.values()) + _own_cpu_s() - own
        spent.neighbour_cores = max(0.0, machine_busy_s() - busy - known_s) / spent.wall_s
        spent.spin_ms = (spin_ms + _spin_ms()) / 2

    def _families(self, pids: Iterable[int]) -> list[int]:
        """The processes and their descendants, without those that another role names."""
        named = {pid for role in self._roles.values() for pid in role}
        family, waiting = [], list(pids)
        while waiting:
            pid = waiting.pop()
            family.append(pid)
            waiting += [child for child in _children(pid) if child not in named]
        return family


def machine_busy_s() -> float:
    """CPU seconds of the whole machine since its start that were neither idle nor stolen."""
    first = Path("/proc/stat").read_text().partition("\n")[0]
    user, nice, system, _, _, irq, softirq = map(int, first.split()[1:8])
    return (user + nice + system + irq + softirq) * _TICK_S


def ended_children_cpu_s() -> float:
    """User and system seconds of this process's children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def process_cpu_s(pid: int) -> float:
    """User and system seconds of one process, of all its threads, without its children. Raises Gone."""
    try:
        return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError:
        utime, stime, _, _ = _ticks(pid)
        return (utime + stime) * _TICK_S


def _spin_ms() -> float:
    start, total = time.thread_time(), 0
    for number in range(_SPIN):
        total += number
    return (time.thread_time() - start) * 1e3


def _own_cpu_s() -> float:
    return time.process_time() + ended_children_cpu_s()


def _family_cpu_s(pid: int) -> float:
    """The process and those children that have ended."""
    _, _, cutime, cstime = _ticks(pid)
    return process_cpu_s(pid) + (cutime + cstime) * _TICK_S


def _ticks(pid: int) -> list[int]:
    """utime, stime, cutime and cstime. The name before them may hold blanks and brackets."""
    return [int(number) for number in _read(pid, "stat").rpartition(")")[2].split()[11:15]]


def _children(pid: int) -> list[int]:
    children: list[int] = []
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        raise Gone(f"process {pid} has ended") from None
    for thread in threads:
        # A thread may end between the listing and the reading.
        with contextlib.suppress(OSError):
            children += map(int, (thread / "children").read_text().split())
    return children


def _memory(pids: Iterable[int]) -> Memory:
    rss = peak = 0
    pss: int | None = 0
    for pid in pids:
        status = _kilobytes(_read(pid, "status"))
        rss += status["VmRSS"] * 1024
        peak += status["VmHWM"] * 1024
        try:
            pss = None if pss is None else pss + _kilobytes(_read(pid, "smaps_rollup"))["Pss"] * 1024
        except (Gone, KeyError):
            pss = None
    return Memory(rss, pss, peak)


def _kilobytes(text: str) -> dict[str, int]:
    """Lines like `VmRSS:  123 kB`."""
    pairs = (line.split() for line in text.splitlines() if line.endswith(" kB"))
    return {words[0].rstrip(":"): int(words[1]) for words in pairs}


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        raise Gone(f"process {pid} has ended") from None
