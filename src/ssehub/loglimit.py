"""A limit on the rate of log lines, so that nobody can fill a disk by causing them.

Each *kind* of line has a budget of its own, so that a flood of one kind hides no line of another. Lines are of one kind
if they have the same logger, level and message template. A template without arguments may contain numbers, such as the
address of an object; these do not make another kind.

A kind may write `BURST` lines at once, and then `LINES_PER_SECOND`. What was left out is counted: a summary follows at
most once per `SUMMARY_SECONDS`, also when the flood is over.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

BURST = 200
LINES_PER_SECOND = 10.0
SUMMARY_SECONDS = 10.0
MAX_KINDS = 200
"""Kinds with a budget of their own. Further ones share one budget for each logger and level."""
MAX_TEMPLATE = 200
SUMMARY = "%d more lines like this were left out in %.0f s: %s"
_NUMBER = re.compile(r"(?:0x)?[0-9a-f]*[0-9][0-9a-f]*")
_OTHERS = "lines of various kinds"
_PASSED = "_ssehub_passed_limit"
"""The attribute of a record that has passed a limit: on its way to a handler it may meet a second one."""
_ADMITTED = {_PASSED: True}


class Kind(NamedTuple):
    """What lines have in common that share a budget."""

    logger: str
    level: int
    template: str


class _Budget:
    """How many lines of one kind may still be written, and how many were left out since the last summary."""

    __slots__ = ("left", "left_out", "since", "updated_at")

    def __init__(self, now: float) -> None:
        self.left = float(BURST)
        self.updated_at = now
        self.left_out = 0
        self.since = now
        """When the first line was left out since the last summary."""

    def refill(self, now: float) -> None:
        left = self.left + (now - self.updated_at) * LINES_PER_SECOND
        self.left = left if left < BURST else float(BURST)
        self.updated_at = now

    def spend(self, now: float) -> bool:
        """Return True if a line may be written."""
        self.refill(now)
        if self.left >= 1:
            self.left -= 1
            return True
        if not self.left_out:
            self.since = now
        self.left_out += 1
        return False


class LineLimit(logging.Filter):
    """A filter, for a handler, that lets each kind of line pass at a limited rate.

    It writes the summaries through the logger of the lines they are about. May be used in any thread.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._budgets: dict[Kind, _Budget] = {}
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if _PASSED in record.__dict__:
            return True
        if not self.admits(record.name, record.levelno, record.msg, has_arguments=bool(record.args)):
            return False
        record.__dict__[_PASSED] = True
        return True

    def admits(self, name: str, level: int, message: object, *, has_arguments: bool) -> bool:
        """Return True if such a line may be written now, which it then counts as."""
        if has_arguments and isinstance(message, str):
            kind = _kind_of_template(name, level, message)
        else:
            kind = _kind(name, level, message, has_arguments)
        now = self._now()
        with self._lock:
            if (self._budgets.get(kind) or self._budget(kind, now)).spend(now):
                return True
            if self._timer is None:
                self._start_timer()
        return False

    def summarize(self) -> None:
        """Log, for each kind, how many lines were left out since the last summary, if any were."""
        now = self._now()
        with self._lock:
            timer, self._timer = self._timer, None
            if timer is not None:
                timer.cancel()
            due = [
                (kind, budget.left_out, now - budget.since) for kind, budget in self._budgets.items() if budget.left_out
            ]
            for kind, _, _ in due:
                self._budgets[kind].left_out = 0
        for kind, left_out, seconds in due:
            logger = logging.getLogger(kind.logger)
            logger.log(kind.level, SUMMARY, left_out, max(1.0, seconds), kind.template, extra=_ADMITTED)

    def start_over(self) -> None:
        """Write the summaries now, and give every kind its whole budget again."""
        self.summarize()
        with self._lock:
            self._budgets.clear()

    def _start_timer(self) -> None:
        timer = threading.Timer(SUMMARY_SECONDS, self.summarize)
        timer.daemon = True
        with contextlib.suppress(RuntimeError):  # no thread can be started now: a later line tries again
            timer.start()
            self._timer = timer

    def _budget(self, kind: Kind, now: float) -> _Budget:
        budget = self._budgets.get(kind)
        if budget is None and len(self._budgets) >= MAX_KINDS:
            self._forget_idle(now)
            if len(self._budgets) >= MAX_KINDS:
                kind = kind._replace(template=_OTHERS)
                budget = self._budgets.get(kind)
        if budget is None:
            budget = self._budgets[kind] = _Budget(now)
        return budget

    def _forget_idle(self, now: float) -> None:
        """Forget the kinds whose budget is full again: they begin with a full one anyway."""
        for kind, budget in list(self._budgets.items()):
            budget.refill(now)
            if budget.left == BURST and not budget.left_out:
                del self._budgets[kind]


def _kind(name: str, level: int, message: object, has_arguments: bool) -> Kind:
    template = message if isinstance(message, str) else type(message).__name__
    template = template.partition("\n")[0][:MAX_TEMPLATE]
    return Kind(name, level, template if has_arguments else _NUMBER.sub("#", template))


@lru_cache(MAX_KINDS)
def _kind_of_template(name: str, level: int, template: str) -> Kind:
    """Return the kind of a line with arguments: it says the same for each of thousands of streams that open."""
    return Kind(name, level, template.partition("\n")[0][:MAX_TEMPLATE])


LIMIT = LineLimit()
"""Shared by all loggers and handlers of this process."""


class LimitedLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger with a limit on its lines wherever they go.

    No record is made of a line that is left out, which a filter of the logger would need.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        if self.logger.isEnabledFor(level) and LIMIT.admits(self.logger.name, level, msg, has_arguments=bool(args)):
            self.logger.log(level, msg, *args, extra=_ADMITTED, stacklevel=2, **kwargs)


def limited_logger(name: str) -> LimitedLogger:
    """Return the logger `name` with a limit on its lines: for lines that a client can cause."""
    return LimitedLogger(logging.getLogger(name))
