"""`ssehub listen`: print the events of a stream as they come."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from .bearer import (
    NO_ACCESS,
    NO_TOKEN,
    given_token,
    new_token,
    token_file_option,
    token_of_environment,
    token_option,
)
from .help import command, option
from .hub import ControlApp, client_url_option, uses_hub
from .options import secret_file_option, secret_option, user_option
from .table import printable_json

if TYPE_CHECKING:
    import httpx
    from httpx_sse import ServerSentEvent

_USER = "ssehub-listen"
_QUIET = ("stream-hello", "stream-position", "stream-busy", "stream-drain", "stream-lifetime")
"""Events of the hub's own that matter to nobody who reads along; `Follower` does what they ask."""


@command()
@option("--since", metavar="START", help="where to begin: earliest, last:N or a position  [default: now]")
@option("--run", "run", metavar="NAME", help="the run of this name, from its first event to its end")
@option("--json", "as_json", is_flag=True, help="print each event as a line of JSON, with its id and type")
@option(
    "--channel",
    "channels",
    multiple=True,
    help="channel of a new token; with a token that is given, the channels of it to listen to; may be repeated",
)
@option("--pattern", "patterns", multiple=True, help="pattern of a new token, such as 'orders.*'; may be repeated")
@user_option(f"user of a new token  [default: {_USER}]")
@token_option
@token_file_option
@secret_option
@secret_file_option
@client_url_option
@uses_hub
def listen(
    hub: ControlApp,
    url: str | None,
    since: str | None,
    run: str | None,
    as_json: bool,
    channels: tuple[str, ...],
    patterns: tuple[str, ...],
    user_id: str | None,
    token: str | None,
    token_file: str | None,
) -> int:
    """Print the data of events as they come, until the stream ends or Ctrl-C.

    The token is one that is given, or a new one for --channel and --pattern. That is signed with the secret or, without
    one, requested from the hub.

    After a cut, a restart of the hub or a busy answer, it goes on with the next event. It ends when a run is done (exit
    code 0) or has failed or was stopped (1), and when the token is refused, has expired or was revoked (4).
    """
    given = given_token(token, token_file)
    is_new = bool(patterns or user_id is not None)
    if given is not None and is_new:
        raise click.UsageError("--user-id and --pattern are for a new token: remove them, or the token")
    given = given or (None if is_new else token_of_environment())
    if given is None and not channels and not patterns:
        raise click.UsageError(f"{NO_TOKEN}; or give --channel or --pattern for a new one")
    parameters: dict[str, str | list[str]] = {}
    if given is not None and channels:
        parameters["channel"] = list(channels)
    if since is not None:
        parameters["since"] = since
    if run is not None:
        parameters["run"] = run
    used = given or new_token(hub, user_id or _USER, channels, patterns)
    from .stream import client_for

    with client_for(hub.client_url(url)) as client:
        return _print_all(client, used, parameters, hub.retries, as_json=as_json)


def _print_all(client: httpx.Client, token: str, parameters: dict[str, Any], retries: int, *, as_json: bool) -> int:
    """Print the events; return the exit code."""
    from .stream import Follower, Refused

    follower = Follower(client, "/events/", token=token, parameters=parameters, retries=retries, tell=_tell)
    try:
        return _print(follower.events(), as_json=as_json)
    except Refused as exc:
        _tell(str(exc))
        return NO_ACCESS if exc.status in (401, 403) else 1


def _print(events: Iterable[ServerSentEvent], *, as_json: bool) -> int:
    for event in events:
        name = event.event or "message"
        if name in _QUIET:
            continue
        is_own = name.startswith("stream-")
        if is_own:
            _tell(f"{name} {event.data}")
        if as_json:  # stream-reset and the end of a run matter to programs, too
            click.echo(_as_json(event))
        elif not is_own:
            click.echo(event.data)
        if name in _NO_ACCESS_ANY_MORE:
            return NO_ACCESS
        if name == "stream-finished":
            return 0 if json.loads(event.data).get("reason") == "done" else 1
    return 0


_NO_ACCESS_ANY_MORE = ("stream-expired", "stream-revoked")


def _as_json(event: ServerSentEvent) -> str:
    fields = {"id": event.id or None, "event": event.event or "message", "data": event.data}
    return printable_json(fields)


def _tell(message: str) -> None:
    click.echo(f"ssehub: {message}", err=True)
