"""`ssehub emit`: publish one event, or a stream of them, through the control app of a running hub."""

from __future__ import annotations

import sys

import click

from .help import command, option
from .hub import ControlApp, failures_shown, uses_hub
from .options import given, user_option


@command()
@click.argument("source", required=False, metavar="[-]")
@user_option(
    "user who receives the event, * for everyone; may be repeated",
    multiple=True,
    default=("*",),
    show_default=True,
)
@option("--channel", "channels", multiple=True, help="channel the event goes to; may be repeated")
@option("--data", help="text of the event; - reads it from standard input")
@option("--payload", help="raw stream text instead of --data; - reads it from standard input")
@option("--event", help="type of the event")
@option("--id", help="id of the event; if not given, its position in the log")
@option("--retry", type=int, metavar="MILLISECONDS", help="how long browsers wait before they reconnect")
@option(
    "--store/--no-store",
    default=True,
    show_default=True,
    help="whether clients that reconnect later can still receive the event",
)
@option(
    "--ttl",
    type=float,
    metavar="SECONDS",
    help="how many seconds the event stays available to clients that reconnect",
)
@option(
    "--idempotency-key", metavar="KEY", help="an event that was published with this key before is not published again"
)
@uses_hub
def emit(
    hub: ControlApp,
    source: str | None,
    user_id: tuple[str, ...],
    channels: tuple[str, ...],
    data: str | None,
    payload: str | None,
    event: str | None,
    id: str | None,
    retry: int | None,
    store: bool,
    ttl: float | None,
    idempotency_key: str | None,
) -> int | None:
    """Publish one event to a running hub and print the event's id.

    `ssehub emit -` publishes each line of standard input, a JSON object with the fields of POST /emit/, as the lines
    come, over one connection. Fields that a line does not have are those of the options. For each line, in order, it
    prints a line of JSON: {"line": 1, "id": …} or {"line": 2, "error": …}.
    """
    if source not in (None, "-"):
        raise click.UsageError(
            f"{source!r} is not an argument: give -, to publish the lines of standard input, or --data"
        )
    fields: dict[str, object] = {
        "userId": list(user_id),
        "channel": list(channels) or None,
        "event": event,
        "retry": retry,
        "store": None if store else False,
        "ttl": ttl,
    }
    if source is not None:
        if data is not None or payload is not None or id is not None:
            raise click.UsageError("with -, each line has its own data, payload and id: remove the options")
        from .events_in import publish_lines  # it imports what other commands do not need

        return publish_lines(hub, given(fields), idempotency_key)
    if not channels:
        raise click.UsageError("Missing option '--channel'.")
    if (data is None) == (payload is None):
        raise click.UsageError("give either --data or --payload")
    fields |= {"data": _text(data), "payload": _text(payload), "id": id}
    with failures_shown():
        answer = hub.publish(given(fields), idempotency_key)
    click.echo(answer["id"])
    return None


def _text(value: str | None) -> str | None:
    return sys.stdin.read() if value == "-" else value
