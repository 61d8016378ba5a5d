"""The limit on the rate of log lines: each kind has a budget of its own, and what is left out is counted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import product

import pytest

from conftest import wait_until
from ssehub import loglimit
from ssehub.loglimit import BURST, LINES_PER_SECOND, MAX_KINDS, LineLimit

NAMES = list(map("".join, product("ghijklmnop", repeat=3)))
"""A thousand messages without digits."""


class Log:
    """A logger with a limit whose clock stands still, and what has been logged."""

    def __init__(self) -> None:
        self.now = 0.0
        self.limit = LineLimit(lambda: self.now)
        self.lines: list[str] = []
        self.logger = logging.getLogger("ssehub.test-loglimit")
        self.logger.setLevel(logging.DEBUG)
        self.logger.propagate = False
        self.logger.addFilter(self.limit)
        self.handler = logging.Handler()
        self.handler.emit = lambda record: self.lines.append(record.getMessage())  # type: ignore[method-assign]
        self.logger.addHandler(self.handler)

    def close(self) -> None:
        self.limit.summarize()
        self.logger.removeFilter(self.limit)
        self.logger.removeHandler(self.handler)


@pytest.fixture
def log() -> Iterator[Log]:
    made = Log()
    yield made
    made.close()


def test_flood_is_cut_to_its_budget_and_counted(log: Log) -> None:
    for number in range(12_345 + BURST):
        log.logger.info("request %d refused", number)
    log.now += 10
    log.limit.summarize()
    log.limit.summarize()

    assert log.lines[:2] == ["request 0 refused", "request 1 refused"]
    assert log.lines[BURST:] == ["12345 more lines like this were left out in 10 s: request %d refused"]


def test_lines_are_written_again_as_time_passes(log: Log) -> None:
    for _ in range(BURST + 5):
        log.logger.info("refused")
    log.now += 1
    for _ in range(100):
        log.logger.info("refused")

    assert len(log.lines) == BURST + LINES_PER_SECOND


def test_flood_of_one_kind_hides_no_line_of_another(log: Log) -> None:
    for number in range(BURST * 5):
        log.logger.warning("request %d refused", number)
    log.logger.error("request %d refused", 1)
    log.logger.warning("the disk is full")

    assert log.lines[BURST:] == ["request 1 refused", "the disk is full"]


def test_numbers_in_a_finished_message_make_no_new_kind(log: Log) -> None:
    for number in range(BURST * 2):
        log.logger.error(f"Exception in callback <function at 0x7f{number:06x}>\nhandle: {number}")  # noqa: G004

    assert len(log.lines) == BURST


def test_exceptions_are_one_kind(log: Log) -> None:
    for number in range(BURST * 2):
        try:
            raise ValueError(number)
        except ValueError as exc:
            log.logger.exception(exc)

    assert len(log.lines) == BURST


def test_number_of_kinds_is_bounded(log: Log) -> None:
    for name in NAMES:
        log.logger.info(name)
    log.limit.summarize()

    assert MAX_KINDS < len(log.lines) <= MAX_KINDS + BURST + 1
    assert log.lines[-1].endswith("s: lines of various kinds")


def test_kinds_that_were_quiet_for_long_are_forgotten(log: Log) -> None:
    for name in NAMES:
        log.now += 1
        log.logger.info(name)

    assert log.lines == NAMES


def test_line_that_meets_two_limits_is_counted_once(log: Log) -> None:
    log.handler.addFilter(log.limit)
    for number in range(BURST):
        log.logger.info("request %d", number)

    assert len(log.lines) == BURST


def test_summary_follows_by_itself_when_the_flood_is_over(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loglimit, "SUMMARY_SECONDS", 0.05)
    for _ in range(BURST + 3):
        log.logger.info("refused")
    wait_until(lambda: len(log.lines) == BURST + 1)

    assert log.lines[-1] == "3 more lines like this were left out in 1 s: refused"


def test_limit_that_starts_over_writes_its_summaries_and_lets_lines_pass_again(log: Log) -> None:
    for _ in range(BURST + 3):
        log.logger.info("flood")
    log.lines.clear()

    log.limit.start_over()
    log.logger.info("flood")

    assert log.lines == ["3 more lines like this were left out in 1 s: flood", "flood"]
