"""Log lines that never hold up the event loop, and that nobody can break in two."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

MAX_WAITING_LINES = 10_000
MAX_FLUSH_SECONDS = 1.0
STDERR = 2
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class OneLineFormatter(logging.Formatter):
    """Escapes what could end a line or steer a terminal; only a traceback has lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], super().formatMessage(record))


class _QueueHandler(logging.Handler):
    """Puts lines into a queue; one that finds it full is dropped, so that a pipe nobody reads stops nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: queue.Queue[bytes | None] = queue.Queue(MAX_WAITING_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(queue.Full):
            self.lines.put_nowait(f"{self.format(record)}\n".encode(errors="backslashreplace"))

    def write_all(self) -> None:
        while (line := self.lines.get()) is not None:
            with contextlib.suppress(OSError):
                os.write(STDERR, line)


@contextmanager
def logging_to_stderr(level: str, process: str = "") -> Iterator[None]:
    """Inside, log lines of `level` and above go to stderr, written by a thread of their own, signed by `process`."""
    handler = _QueueHandler()
    handler.setFormatter(OneLineFormatter(f"%(asctime)s {process}%(levelname)s %(name)s: %(message)s"))
    # It writes to the descriptor, not through sys.stderr, whose lock it could then hold when the process ends.
    writer = threading.Thread(target=handler.write_all, name="ssehub-log", daemon=True)
    writer.start()
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(level.upper())
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        with contextlib.suppress(queue.Full):
            handler.lines.put_nowait(None)
        writer.join(MAX_FLUSH_SECONDS)
