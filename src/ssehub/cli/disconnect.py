"""`ssehub disconnect`: end open streams through the control app of a running hub."""

from __future__ import annotations

import click

from .help import command, option
from .hub import ControlApp, uses_hub
from .options import user_option


@command()
@user_option("user whose streams end, with --channel also * for everyone; may be repeated", multiple=True)
@option("--channel", "channels", multiple=True, help="channel whose streams end; may be repeated")
@option(
    "--retry",
    type=click.IntRange(0),
    metavar="MILLISECONDS",
    help="how long browsers wait before they reconnect  [default: 600000]",
)
@uses_hub
def disconnect(hub: ControlApp, user_id: tuple[str, ...], channels: tuple[str, ...], retry: int | None) -> None:
    """End the open streams of a user, of a channel, or of a user on a channel, on every node.

    Tokens stay valid: `ssehub revoke` refuses them, too. Prints the position of the command in the log.
    """
    if not user_id and not channels:
        raise click.UsageError("give --user-id, --channel or both")
    fields: dict[str, object] = {"userId": list(user_id) or None, "channel": list(channels) or None, "retry": retry}
    click.echo(hub.call("POST", "/disconnect/", fields)["id"])
