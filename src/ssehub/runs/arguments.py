"""The arguments with which Python code creates a run, and the items that it may append."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Required, TypedDict, Unpack

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


def make_order(name: str, **arguments: Unpack[RunArguments]) -> Order:
    """Return the order with these arguments. Raises InvalidRequest, and TypeError for arguments that no run has."""
    for argument in arguments:
        if argument not in RunArguments.__annotations__:
            expected = ", ".join(RunArguments.__annotations__)
            raise TypeError(f"a run got an unexpected keyword argument {argument!r}: expected {expected}")
    for argument in ("channel", "user_id"):
        if argument not in arguments:
            raise TypeError(f"a run needs the keyword argument {argument!r}: it says who may watch the run")
    restart, takeover = arguments.get("restart", False), arguments.get("takeover", False)
    if restart and takeover:
        raise InvalidRequest("restart drops the events of an open run, and takeover keeps them: give one of them")
    options = RunOptions(
        one_or_many(arguments["channel"]),
        one_or_many(arguments["user_id"]),
        arguments.get("keep", DEFAULT_KEEP_SECONDS),
        arguments.get("idle", PRODUCED_IDLE_SECONDS),
        arguments.get("announce"),
        arguments.get("stoppable", False),
    )
    mode = CreateMode.RESTART if restart else CreateMode.TAKEOVER if takeover else CreateMode.NEW
    return Order(check_run_name(name), options, mode)


def event_of(item: object) -> RunEvent:
    """Return the event for one item of an iterator: a RunEvent, or data as in `append`. Raises InvalidEvent."""
    return make_event(*item) if isinstance(item, RunEvent) else make_event(item)
