"""The arguments with which Python code creates a run, and the items that it may append."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Required, TypedDict

from ..errors import InvalidRequest
from ..fields import one_or_many
from .entries import RunEvent
from .model import DEFAULT_KEEP_SECONDS, RunOptions, check_run_name
from .producer import make_event
from .store import CreateMode

PRODUCED_IDLE_SECONDS = 60.0
"""Seconds without a sign of life after which a run fails. Its producer sends one every 15 s."""


class RunArguments(TypedDict, total=False):
    """The keyword arguments that create a run; see `Hub.run`."""

    channel: Required[str | Sequence[str]]
    user_id: Required[str | Sequence[str]]
    keep: float
    idle: float
    announce: str | None
    stoppable: bool
    restart: bool
    takeover: bool


class Order(NamedTuple):
    """A run that is to be created."""

    name: str
    options: RunOptions
    mode: CreateMode


def make_order(
    name: str,
    *,
    channel: str | Sequence[str],
    user_id: str | Sequence[str],
    keep: float = DEFAULT_KEEP_SECONDS,
    idle: float = PRODUCED_IDLE_SECONDS,
    announce: str | None = None,
    stoppable: bool = False,
    restart: bool = False,
    takeover: bool = False,
) -> Order:
    """Return the order with these arguments. Raises InvalidRequest."""
    if restart and takeover:
        raise InvalidRequest("restart drops the events of an open run, and takeover keeps them: give one of them")
    options = RunOptions(one_or_many(channel), one_or_many(user_id), keep, idle, announce, stoppable)
    mode = CreateMode.RESTART if restart else CreateMode.TAKEOVER if takeover else CreateMode.NEW
    return Order(check_run_name(name), options, mode)


def event_of(item: object) -> RunEvent:
    """Return the event for one item of an iterator: a RunEvent, or data as in `append`. Raises InvalidEvent."""
    return make_event(*item) if isinstance(item, RunEvent) else make_event(item)
