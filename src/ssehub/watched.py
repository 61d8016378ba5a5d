"""Watched files: small files, such as secrets, keys and certificates, that are read again when they change.

    first read   in the constructor. A file that can't be used raises ConfigError.
    look         every `LOOK_SECONDS`. A file that has changed is read when it has not changed again for
                 `SETTLE_SECONDS`: a file that is written in place may be half there, and half a secret passes every
                 check that a whole one passes.
    reload       at once, for SIGHUP.

All or nothing: if the file is missing, or its content is refused, the content that was read before stays in use. One
line says so, until the file changes again.

A change is a change of what the path leads to: a file that is replaced by rename, rewritten in place, or reached by
another symbolic link (as Kubernetes mounts secrets) has another inode, size or time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .errors import ConfigError

if TYPE_CHECKING:
    from .fanout.statistics import Statistics

logger = logging.getLogger("ssehub.watched")

LastGood = Mapping[str, str]
"""What files contained when they could last be used, by the settings that name them, for a process that begins at a
moment at which they may not be usable.
"""
NOTHING_YET: LastGood = {}

LOOK_SECONDS = 5.0
SETTLE_SECONDS = 1.0
MAX_FILE_BYTES = 2**20
_TRIES = 5
_PAUSE_SECONDS = 0.05


class Signature(NamedTuple):
    """What differs between two versions of a file."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    """Differs also if somebody has set the time of modification back, as `cp -p` and `rsync -t` do."""

    @classmethod
    def of(cls, status: os.stat_result) -> Signature:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class WatchedFiles:
    """Files that are read and judged together, by the settings that name them, such as a certificate and its key.

    `apply` puts their contents (UTF-8) to use and returns a summary of them for the log. It runs in the event loop,
    whenever one of them is new. For contents that can't be used it raises ConfigError and changes nothing; when the
    other file of a pair has been replaced, too, both are read again. `contents` are what another process has read last:
    they are used in place of a first read, so that a file that is broken at this moment does no harm.

    If a path is no regular file, such as a pipe of the shell, the files are read once and not watched. Raises
    ConfigError.
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        apply: Callable[[Mapping[str, str]], str],
        *,
        contents: Mapping[str, str] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = " and ".join(paths)
        self.failures = 0
        """How often the files could not be used when they were read again."""
        self.problem: str | None = None
        """Why the files could not be used when they were last read. The contents before it are in use."""
        self._paths = paths
        self._described = " and ".join([f"{name} {path}" for name, path in paths.items()])
        self._apply = apply
        self._monotonic = monotonic
        self._is_watched = not any([_is_special(path) for path in paths.values()])
        self.contents = self._first_read() if contents is None else contents
        """What is in use."""
        try:
            apply(self.contents)
        except ConfigError as exc:
            raise ConfigError(f"{self._described}: {exc}") from None
        self._settled: list[Signature | str] | None = None
        """What the latest look found and read, or why it could not. None after any other read: a file may have been
        changed once more within the same tick of its clock.
        """
        self._pending: tuple[list[Signature | str], float] | None = None
        """What a look has found that differs, and when it was first found."""
        self._reads = self._applied = 0
        self._failed: tuple[str, Mapping[str, str] | None] | None = None
        """What a log line has said: why the files can't be used, and their contents if they could be read."""

    def _first_read(self) -> Mapping[str, str]:
        try:
            return self._read()
        except _Unreadable as exc:
            raise ConfigError(str(exc)) from None

    def _read(self) -> Mapping[str, str]:
        """Return the contents. Raises _Unreadable. Two settings may name one file, which is read once."""
        contents: dict[Path, str] = {}
        for name, path in self._paths.items():
            try:
                if path not in contents:
                    contents[path] = _read(path, may_wait=not self._is_watched)
            except _Unreadable as exc:
                raise _Unreadable(f"{name} {path} {exc}") from None
        return {name: contents[path] for name, path in self._paths.items()}

    def _look(self) -> list[Signature | str]:
        return [_look(path) for path in self._paths.values()]

    def measure(self, statistics: Statistics) -> None:
        """Write how often the files could not be used, and whether that is so now, under the first of the settings."""
        name = next(iter(self._paths))
        statistics.reload_failures[name] = self.failures
        statistics.reload_failed[name] = self.problem is not None

    async def look(self) -> float:
        """Read the files if one has changed and settled. Return in how many seconds to look again."""
        if not self._is_watched:
            return LOOK_SECONDS
        found = await asyncio.to_thread(self._look)
        now = self._monotonic()
        if found == self._settled:
            self._pending = None
            return LOOK_SECONDS
        if self._pending is None or self._pending[0] != found:
            self._pending = found, now
            return SETTLE_SECONDS
        if now - self._pending[1] < SETTLE_SECONDS:
            return SETTLE_SECONDS
        self._pending, self._settled = None, found
        await self._read_again(is_asked_for=False)
        return LOOK_SECONDS

    async def reload(self) -> None:
        """Read the files now, whether or not they have changed."""
        if self._is_watched:
            self._settled = None
            await self._read_again(is_asked_for=True)

    async def _read_again(self, *, is_asked_for: bool) -> None:
        self._reads += 1
        number = self._reads
        contents: Mapping[str, str] | None = None
        try:
            contents = await asyncio.to_thread(self._read)
        except _Unreadable as exc:
            problem: str | None = str(exc)
        else:
            problem = self._use(contents, number, is_asked_for)
        if problem is None or number <= self._applied:
            return
        self._applied = number
        failed = problem, contents
        if failed != self._failed or is_asked_for:  # else the look after a reload has found what the reload has
            self._failed = failed
            self.failures += 1
            self.problem = problem
            logger.error("%s; what was read before stays in use", problem)

    def _use(self, contents: Mapping[str, str], number: int, is_asked_for: bool) -> str | None:
        """Put `contents` to use, unless a later read has been. Return what is wrong with them."""
        if number < self._applied:
            return None
        verb = "has" if len(self._paths) == 1 else "have"
        if contents == self.contents:
            if self.problem is not None or is_asked_for:
                logger.info("%s %s been read again: no change", self._described, verb)
        else:
            try:
                summary = self._apply(contents)
            except ConfigError as exc:
                return f"{self._described}: {exc}"
            except Exception as exc:  # a bug must not end the watch; the text of the exception may show the contents
                return f"{self._described}: unexpected {type(exc).__name__}"
            self.contents = contents
            logger.info("%s %s been read again: %s", self._described, verb, summary)
        self._applied = number
        self.problem = self._failed = None
        return None


class WatchedFile(WatchedFiles):
    """The file at `path`, which the setting `name` names. `apply` is called with its content, as for several files."""

    def __init__(
        self,
        path: Path,
        name: str,
        apply: Callable[[str], str],
        *,
        content: str | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        contents = None if content is None else {name: content}
        super().__init__({name: path}, lambda contents: apply(contents[name]), contents=contents, monotonic=monotonic)

    @property
    def content(self) -> str:
        """What is in use."""
        return self.contents[self.name]


class FromFile:
    """Something that depends on the content of one file, if there is one: a companion of a hub.

    In a process without a hub, such as the parent of workers, `run` has to be called. The hub is ready whatever is in
    the file, because there is always an older content to go on with.
    """

    problem = None

    def __init__(self) -> None:
        self._file: WatchedFile | None = None
        """For subclasses to set."""

    @property
    def last_good(self) -> LastGood:
        """The content of the file that is in use, by its setting."""
        return {} if self._file is None else self._file.contents

    async def run(self) -> None:
        """Look at the file until cancelled."""
        if self._file is not None:
            await watch([self._file])

    async def reload(self) -> None:
        """Read the file now. If it can't be used, that is logged, and everything stays as it was."""
        if self._file is not None:
            await self._file.reload()

    def measure(self, statistics: Statistics) -> None:
        """Write how often the file could not be used."""
        if self._file is not None:
            self._file.measure(statistics)


async def watch(files: Sequence[WatchedFiles]) -> None:
    """Look at the files until cancelled."""
    while True:
        try:
            waits = [await file.look() for file in files]
        except RuntimeError as exc:  # no thread can be started now
            waits = []
            logger.error("%s can't be looked at now: %s", " and ".join([file.name for file in files]), exc)
        await asyncio.sleep(min(waits, default=LOOK_SECONDS))


class _Unreadable(Exception):
    """The rest of a sentence that begins with the name of the file."""


def _is_special(path: Path) -> bool:
    """True if `path` exists and can't be read more than once. A folder is an error like any other."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _look(path: Path) -> Signature | str:
    """Return what identifies this version of the file, or why there is none."""
    try:
        return Signature.of(os.stat(path))
    except (OSError, ValueError) as exc:
        return str(exc)


def _read(path: Path, *, may_wait: bool = False) -> str:
    """Return the content of a file that does not change meanwhile. Raises _Unreadable.

    Without `may_wait` anything but a regular file is refused: opening a pipe can block for ever.
    """
    for _ in range(_TRIES):
        try:
            with open(path, "rb", opener=None if may_wait else _open_at_once) as file:
                before = os.fstat(file.fileno())
                if not (may_wait or stat.S_ISREG(before.st_mode)):
                    raise _Unreadable("is not a regular file")
                content = file.read(MAX_FILE_BYTES + 1)
                after = os.fstat(file.fileno())
        except (OSError, ValueError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else exc
            raise _Unreadable(f"can't be read: {reason}") from exc
        if len(content) > MAX_FILE_BYTES:
            raise _Unreadable(f"has more than {MAX_FILE_BYTES} bytes")
        if may_wait or Signature.of(before) == Signature.of(after):
            return _decode(content)
        time.sleep(_PAUSE_SECONDS)
    raise _Unreadable("changes while it is read")


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _decode(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise _Unreadable("can't be read: it is not UTF-8") from None
