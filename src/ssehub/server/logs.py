"""Logging to stderr that never blocks the event loop: one line per record, and a limited rate of each kind of line."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..loglimit import LIMIT

MAX_WAITING_LINES = 10_000
MAX_FLUSH_SECONDS = 1.0
STDERR = 2
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class OneLineFormatter(logging.Formatter):
    """Escapes characters that end a line or control a terminal. Only a traceback still takes several lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], super().formatMessage(record))


class _QueueHandler(logging.Handler):
    """Queues lines for `write_all`. Lines are dropped while the queue is full: a pipe that nobody reads blocks nothing.

    That is why this is not `logging.handlers.QueueHandler`, which queues records and reports a full queue to stderr.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: queue.Queue[bytes | None] = queue.Queue(MAX_WAITING_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(queue.Full):
            self.lines.put_nowait(f"{self.format(record)}\n".encode(errors="backslashreplace"))

    def write_all(self) -> None:
        """Write lines until there is None in the queue."""
        while (line := self.lines.get()) is not None:
            with contextlib.suppress(OSError):
                # Not through sys.stderr: this thread could hold its lock when the process exits.
                os.write(STDERR, line)


@contextmanager
def logging_to_stderr(level: str, prefix: str = "") -> Iterator[None]:
    """Inside the context, a thread writes log lines of `level` and above to stderr, with `prefix` before the level.

    The rate of each kind of line is limited, whoever logs it.
    """
    handler = _QueueHandler()
    handler.addFilter(LIMIT)
    handler.setFormatter(OneLineFormatter(f"%(asctime)s {prefix}%(levelname)s %(name)s: %(message)s"))
    writer = threading.Thread(target=handler.write_all, name="ssehub-log", daemon=True)
    writer.start()
    root = logging.getLogger()
    level_before = root.level
    root.addHandler(handler)
    root.setLevel(level.upper())
    requests = logging.getLogger("httpx")  # it logs each request at level info: each time that keys are fetched
    requests_level_before = requests.level
    requests.setLevel(logging.WARNING)
    try:
        yield
    finally:
        LIMIT.summarize()
        root.removeHandler(handler)
        root.setLevel(level_before)
        requests.setLevel(requests_level_before)
        with contextlib.suppress(queue.Full):
            handler.lines.put_nowait(None)
        writer.join(MAX_FLUSH_SECONDS)
