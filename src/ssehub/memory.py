"""How much memory this process uses, and how much it may use, as the operating system says. Linux only.

Three figures can be limited: resident memory, by the machine and by the cgroup; address space (`ulimit -v`) and data
(`ulimit -d`), by the shell or the service manager. Near one of these limits, allocations fail in places that cannot
handle it, such as the event loop's C code. So each is watched, with a fifth left as reserve.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

SHARE = 0.8
"""The part of the memory that a process may use by default."""
STATM = Path("/proc/self/statm")
_RESIDENT, _ADDRESS_SPACE, _DATA = 1, 0, 5
"""Places in `/proc/self/statm`, which counts pages."""


class Reading(NamedTuple):
    """The memory in use, and the limit that applies to it, in bytes."""

    used: int
    limit: int

    @property
    def excess(self) -> int:
        """How far `used` is above the limit; negative below it."""
        return self.used - self.limit


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory of the machine or, if that is less, the limit of this process' cgroup. None if unknown."""
    try:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    return min([machine, *_cgroup_limits(root)])


def _cgroup_limits(root: Path) -> Iterator[int]:
    """Yield the limits of this process' cgroups and of those that contain them, of version 1 and 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _limits_upwards(root / "sys/fs/cgroup", path, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _limits_upwards(root / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes")


def _limits_upwards(mount: Path, path: str, name: str) -> Iterator[int]:
    # In a container the path is often that of the host, while only the container's own part is mounted, at its root.
    folder = mount / path.lstrip("/")
    for each in (folder, *folder.parents):
        with contextlib.suppress(OSError, ValueError):  # no such file, or `max`
            yield int((each / name).read_text())
        if each == mount:
            return


class MemoryMeter:
    """Reads the memory that is used. `max_bytes` limits resident memory; the limits of the shell are read here."""

    @classmethod
    def for_limit(cls, max_bytes: int | None) -> Self | None:
        """Return a meter with this limit, or None if there is no limit (None, 0) or the memory cannot be read."""
        return cls(max_bytes) if max_bytes and STATM.exists() else None

    def __init__(self, max_bytes: int) -> None:
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._limits = [(_RESIDENT, max_bytes), *_shell_limits()]
        self._pages = b"0 0 0 0 0 0 0".split()
        self._allocator = _Allocator()

    def read(self) -> Reading:
        """Return the figure that is nearest to its limit, or furthest above it. Takes about 20 µs."""
        return self._nearest(0)

    def read_closely(self) -> Reading:
        """Return memory that was freed to the operating system, and do not count what can be used again.

        Takes about a millisecond for each thousand pieces of memory that were freed.
        """
        self._allocator.trim()
        return self._nearest(self._allocator.free_bytes())

    def _nearest(self, free_bytes: int) -> Reading:
        """Return the figure nearest to its limit; `free_bytes` of address space and data do not count."""
        with contextlib.suppress(OSError):  # no descriptor is free: the previous figures will do
            self._pages = STATM.read_bytes().split()
        readings = []
        for place, limit in self._limits:
            used = int(self._pages[place]) * self._page_bytes
            # Address space is rarely returned, but the process does not need more of it as long as some of it is free.
            readings.append(Reading(used if place == _RESIDENT else used - free_bytes, limit))
        return max(readings, key=lambda reading: reading.used / reading.limit)


def _shell_limits() -> Iterator[tuple[int, int]]:
    import resource  # does not exist on Windows, which has no statm either

    for place, kind in ((_ADDRESS_SPACE, resource.RLIMIT_AS), (_DATA, resource.RLIMIT_DATA)):
        soft = resource.getrlimit(kind)[0]
        if soft not in (resource.RLIM_INFINITY, 0):
            yield place, int(soft * SHARE)


class _MallocInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc 2.33 and newer; `fordblks` is the total size of all free blocks."""

    _fields_ = (
        *[(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks")],
        *[(name, ctypes.c_size_t) for name in ("fsmblks", "uordblks", "fordblks", "keepcost")],
    )


class _Allocator:
    """The C library's allocator: glibc's can say what is free in it, and return that. With others this does nothing."""

    def __init__(self) -> None:
        self._trim: Callable[[int], int] | None = None
        self._info: Callable[[], _MallocInfo] | None = None
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            self._trim = library.malloc_trim
            library.mallinfo2.restype = _MallocInfo
            self._info = library.mallinfo2

    def trim(self) -> None:
        if self._trim is not None:
            self._trim(0)

    def free_bytes(self) -> int:
        return int(self._info().fordblks) if self._info is not None else 0
