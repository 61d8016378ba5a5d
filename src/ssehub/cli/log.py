"""`ssehub log`: print the newest events of a log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import click

from ..config import variable_of
from ..event import Event
from ..publication import Command, Disconnect
from ..settings import RedisOptions
from .options import config_option, load


@click.command()
@click.option(
    "--broker", default=None, help=f"broker of the log, such as sqlite:///events.db  [{variable_of('broker')}]"
)
@click.option("--last", "count", type=click.IntRange(1), default=20, show_default=True, help="number of events")
@click.option("--channel", help="print only events on this channel")
@config_option
def log(config_file: Path | None, count: int, channel: str | None, **settings: object) -> None:
    """Print the newest events of a log, oldest first.

    Each event is a line of JSON. A hub may be using the log at the same time.
    """
    from ..brokers import open_log

    config = load(config_file, settings)
    with open_log(config.broker, config.group(RedisOptions).redis_prefix) as entries:
        wanted = (entry for entry in entries if channel is None or channel in _channels(entry.event))
        newest = list(islice(wanted, count))
    for entry in reversed(newest):
        line = {
            "position": str(entry.position),
            "time": _time(entry.position.milliseconds),
            **json.loads(entry.event.dump()),
        }
        click.echo(json.dumps(line, ensure_ascii=False))


def _channels(event: Event | Command) -> Sequence[str]:
    return event.channels if isinstance(event, Event | Disconnect) else ()


def _time(milliseconds: int) -> str | None:
    """Return None after the year 9999: a foreign entry in Redis can make positions that large."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return None
