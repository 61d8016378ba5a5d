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
from datetime import UTC, datetime
from typing import Any

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from ..loglimit import LIMIT

MAX_WAITING_LINES = 10_000
MAX_FLUSH_SECONDS = 1.0
STDERR = 2
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class OneLineFormatter(logging.Formatter):
    """Escapes characters that end a line or control a terminal. Only a traceback still takes several lines."""

    def __init__(self, worker: int | None) -> None:
        prefix = "" if worker is None else f"[worker {worker}] "
        super().__init__(f"%(asctime)s {prefix}%(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], super().formatMessage(record))


class JsonLineFormatter(JsonFormatter):
    """One JSON object in ASCII for each record, without lone surrogates, which some parsers refuse."""

    def __init__(self, worker: int | None) -> None:
        names = {"asctime": "time", "levelname": "level", "name": "logger", "message": "message", "process": "process"}
        super().__init__(
            " ".join([f"%({name})s" for name in names]),
            rename_fields={**names, "exc_info": "exception", "stack_info": "stack"},
            static_fields={} if worker is None else {"worker": str(worker)},
            reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # uvicorn's message once more, for a terminal
        )

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        return {name: _encodable(value) for name, value in log_data.items()}


def _encodable(value: Any) -> Any:
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


class _QueueHandler(logging.Handler):
    """Queues lines for `write_all`. Lines are dropped while the queue is full: a pipe that nobody reads blocks nothing.

    That is why these are not the QueueHandler and QueueListener of `logging.handlers`. With such a pipe as stderr, the
    process never exits, as `QueueListener.stop` waits for its thread, and a full queue is reported to stderr, which
    blocks the event loop.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: queue.Queue[bytes | None] = queue.Queue(MAX_WAITING_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as exc:  # a mistake in a log call of any library must not end what it is a part of
            line = self.format(_replacement(record, exc))
        with contextlib.suppress(queue.Full):
            self.lines.put_nowait(f"{line}\n".encode(errors="backslashreplace"))

    def write_all(self) -> None:
        """Write lines until there is None in the queue."""
        while (line := self.lines.get()) is not None:
            with contextlib.suppress(OSError):
                # Not through sys.stderr: this thread could hold its lock when the process exits.
                os.write(STDERR, line)


def _replacement(record: logging.LogRecord, exc: Exception) -> logging.LogRecord:
    """Return what is logged in place of `record`, which can't be formatted."""
    message = "a line can't be formatted: %r: %s"
    return logging.LogRecord(
        record.name, record.levelno, record.pathname, record.lineno, message, (record.msg, type(exc).__name__), None
    )


class StderrLog:
    """The log of a process on stderr: its level and its format may change at any time."""

    def __init__(self, logger: logging.Logger, handler: logging.Handler, worker: int | None) -> None:
        self._logger = logger
        self._handler = handler
        self._worker = worker

    def use(self, level: str, format: str) -> None:
        """Write lines of `level` and above, as `text` or `json`."""
        self._handler.setFormatter((JsonLineFormatter if format == "json" else OneLineFormatter)(self._worker))
        self._logger.setLevel(level.upper())


@contextmanager
def logging_to_stderr(
    level: str, format: str = "text", *, worker: int | None = None, name: str | None = None
) -> Iterator[StderrLog]:
    """Inside the context, a thread writes log lines of `level` and above to stderr, in `format`.

    The rate of each kind of line is limited, whoever logs it. `worker` is the number of this process among several.
    With `name`, these are only the lines of the logger of that name, and only while the root logger has no handler.
    """
    handler = _QueueHandler()
    handler.addFilter(LIMIT)
    writer = threading.Thread(target=handler.write_all, name="ssehub-log", daemon=True)
    writer.start()
    logger, root = logging.getLogger(name), logging.getLogger()
    if logger is not root:
        handler.addFilter(lambda record: not root.handlers)
    levels_before = {logger: logger.level}
    log = StderrLog(logger, handler, worker)
    log.use(level, format)
    logger.addHandler(handler)
    if logger is root:
        requests = logging.getLogger("httpx")  # it logs each request at level info: each time that keys are fetched
        levels_before[requests] = requests.level
        requests.setLevel(logging.WARNING)
    try:
        yield log
    finally:
        LIMIT.summarize()
        logger.removeHandler(handler)
        for one, level_before in levels_before.items():
            one.setLevel(level_before)
        with contextlib.suppress(queue.Full):
            handler.lines.put_nowait(None)
        writer.join(MAX_FLUSH_SECONDS)
