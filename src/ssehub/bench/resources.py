"""The CPU time and the memory that the measured server uses, read from /proc (Linux)."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import ConfigError

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU time, in user and system mode, and resident memory."""

    cpu_seconds: float
    memory_bytes: int


class ServerProcesses:
    """A process of the server and all its descendants; none if the process is not known."""

    def __init__(self, pid: int | None) -> None:
        """Raises ConfigError if there is no such process."""
        if pid is not None and _stat(PROC / str(pid)) is None:
            raise ConfigError(f"--server-pid {pid}: no such process on this machine")
        self._pids = [] if pid is None else [pid]

    def usage(self) -> Usage:
        """Return what all of them use together. Processes that have ended no longer count."""
        stats = {stat.pid: stat for stat in map(_stat, PROC.glob("[0-9]*")) if stat is not None}
        pids = list(self._pids)
        for pid in pids:
            pids += [stat.pid for stat in stats.values() if stat.parent == pid]
        found = [stats[pid] for pid in pids if pid in stats]
        return Usage(
            cpu_seconds=sum(stat.ticks for stat in found) / os.sysconf("SC_CLK_TCK"),
            memory_bytes=sum(stat.resident_pages for stat in found) * os.sysconf("SC_PAGE_SIZE"),
        )


class Meter:
    """Measures the time that passes from now on, and what the server uses in it."""

    def __init__(self, server: ServerProcesses) -> None:
        self._server = server
        self._before = server.usage()
        self._began = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def usage(self) -> Usage:
        now = self._server.usage()
        return Usage(now.cpu_seconds - self._before.cpu_seconds, now.memory_bytes - self._before.memory_bytes)


class _Stat(NamedTuple):
    pid: int
    parent: int
    ticks: int
    resident_pages: int


def _stat(process: Path) -> _Stat | None:
    """Return what the file `stat` of a process says (proc(5)), or None if the process has ended."""
    try:
        before, _, after = (process / "stat").read_text().rpartition(") ")  # the command's name may contain blanks
    except OSError:
        return None
    fields = after.split()
    pid = int(before.partition(" ")[0])
    return _Stat(pid, int(fields[1]), int(fields[11]) + int(fields[12]), int(fields[21]))
