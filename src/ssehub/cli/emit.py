"""`ssehub emit`: publish one event through the control app of a running hub."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .control import call, control_url_option
from .options import ALIASES, config_option, control_key_file_option, control_key_option, load


@click.command()
@click.option(
    "--user-id",
    *ALIASES["user_id"],
    "user_ids",
    multiple=True,
    default=("*",),
    show_default=True,
    help="user who receives the event, * for everyone; may be repeated",
)
@click.option("--channel", "channels", multiple=True, required=True, help="channel the event goes to; may be repeated")
@click.option("--data", help="text of the event; - reads it from standard input")
@click.option("--payload", help="raw stream text instead of --data; - reads it from standard input")
@click.option("--event", help="type of the event")
@click.option("--id", help="id of the event; if not given, its position in the log")
@click.option("--retry", type=int, metavar="MILLISECONDS", help="how long browsers wait before they reconnect")
@click.option(
    "--store/--no-store",
    default=True,
    show_default=True,
    help="whether clients that reconnect later can still receive the event",
)
@click.option(
    "--ttl",
    type=float,
    metavar="SECONDS",
    help="how many seconds the event stays available to clients that reconnect",
)
@click.option(
    "--idempotency-key", metavar="KEY", help="an event that was published with this key before is not published again"
)
@control_url_option
@control_key_option
@control_key_file_option
@config_option
def emit(
    user_ids: tuple[str, ...],
    channels: tuple[str, ...],
    data: str | None,
    payload: str | None,
    event: str | None,
    id: str | None,
    retry: int | None,
    store: bool,
    ttl: float | None,
    idempotency_key: str | None,
    control_url: str,
    config_file: Path | None,
    **settings: object,
) -> None:
    """Publish one event to a running hub and print the event's id."""
    if (data is None) == (payload is None):
        raise click.UsageError("give either --data or --payload")
    config = load(config_file, settings)
    fields: dict[str, object] = {
        "userId": list(user_ids),
        "channel": list(channels),
        "data": _text(data),
        "payload": _text(payload),
        "event": event,
        "id": id,
        "retry": retry,
        "store": None if store else False,
        "ttl": ttl,
        "idempotencyKey": idempotency_key,
    }
    click.echo(call(config, control_url, "POST", "/emit/", fields, what="event")["id"])


def _text(option: str | None) -> str | None:
    return sys.stdin.read() if option == "-" else option
