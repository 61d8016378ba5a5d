"""`ssehub log`: print the newest events of a log."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..config import Config, variable_of
from ..errors import BrokerUnavailable
from ..event import Event
from ..publication import Command, Disconnect
from ..settings import RedisOptions
from .help import command, note, option
from .options import config_option, load
from .table import printable_json

if TYPE_CHECKING:
    from ..brokers import Entry
    from ..position import Position

FOLLOW_SECONDS = 0.5
"""How often `--follow` looks for new events."""


@command()
@option("--broker", default=None, help=f"broker of the log, such as sqlite:///events.db{note(variable_of('broker'))}")
@option("--last", "count", type=click.IntRange(0), default=20, show_default=True, help="number of events")
@option("--channel", help="print only events on this channel")
@option("--follow", "-f", is_flag=True, help="then print new events as they come, until Ctrl-C")
@config_option
def log(config_file: Path | None, count: int, channel: str | None, follow: bool, **settings: object) -> None:
    """Print the newest events of a log, oldest first.

    Each event is a line of JSON. A hub may be using the log at the same time. With --follow, a log that can't be read
    at present is waited for.
    """
    config = load(config_file, settings)
    with _opened(config) as entries:
        newest = next(entries, None)
        shown = newest.position if newest is not None else None
        wanted = (entry for entry in chain([newest] if newest else [], entries) if _is_on(channel, entry))
        _print(list(islice(wanted, count)))
    while follow:
        time.sleep(FOLLOW_SECONDS)
        shown = _print_new(config, channel, shown)


def _print_new(config: Config, channel: str | None, shown: Position | None) -> Position | None:
    """Print the events after `shown`, and return the position of the newest one. A lost log is shown from its begin."""
    try:
        with _opened(config) as entries:
            new = list(takewhile(lambda entry: not _is_shown(entry, shown), entries))
    except BrokerUnavailable:
        return shown
    _print([entry for entry in new if _is_on(channel, entry)])
    return new[0].position if new else shown


def _opened(config: Config) -> AbstractContextManager[Iterator[Entry]]:
    from ..brokers import open_log

    return open_log(config.broker, config.group(RedisOptions).redis_prefix)


def _is_shown(entry: Entry, shown: Position | None) -> bool:
    return shown is not None and entry.position.log == shown.log and entry.position <= shown


def _is_on(channel: str | None, entry: Entry) -> bool:
    return channel is None or channel in _channels(entry.event)


def _print(newest_first: Sequence[Entry]) -> None:
    for entry in reversed(newest_first):
        line = {
            "position": str(entry.position),
            "time": _time(entry.position.milliseconds),
            **json.loads(entry.event.dump()),
        }
        click.echo(printable_json(line))


def _channels(event: Event | Command) -> Sequence[str]:
    return event.channels if isinstance(event, Event | Disconnect) else ()


def _time(milliseconds: int) -> str | None:
    """Return None after the year 9999: a foreign entry in Redis can make positions that large."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return None
