"""`ssehub explain`: say why a client of a running hub would get a stream, or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from .bearer import NO_TOKEN, given_token, token_file_option, token_of_environment, token_option
from .help import command, option
from .hub import ControlApp, uses_hub
from .options import user_option
from .table import cell, printable_json

_STATES = {True: "ok", False: "FAILED", None: "-"}
_WOULD = {
    "open": "the stream would open",
    "refuse": "the client would be refused with {status}",
    "come-back": "the client would be told to come back later",
}
_WIDTH = 1_000
"""Messages are not shortened: that would hide what to do."""


@command()
@option(
    "--channel",
    "channels",
    multiple=True,
    help="channel that the client requests or, without a token, would be granted; may be repeated",
)
@option("--pattern", "patterns", multiple=True, help="without a token: pattern that would be granted; may be repeated")
@user_option("without a token: the user of the client")
@option("--last-event-id", help="id of the last event that the client has received")
@option("--since", metavar="START", help="where the stream is to begin: earliest, last:N or a position")
@option("--origin", help="origin of the page, such as https://app.example, to check CORS, too")
@option("--address", help="IP address of the client, to check the limits of addresses, too")
@option("--json", "as_json", is_flag=True, help="print the answer of the hub as JSON")
@token_option
@token_file_option
@uses_hub
def explain(
    hub: ControlApp,
    channels: tuple[str, ...],
    patterns: tuple[str, ...],
    user_id: str | None,
    last_event_id: str | None,
    since: str | None,
    origin: str | None,
    address: str | None,
    as_json: bool,
    token: str | None,
    token_file: str | None,
) -> int:
    """Say why a client would get a stream or not, and what it would begin with.

    The client is one with a token, or a user with channels. Exit code 1 if the stream would not open.
    """
    used = given_token(token, token_file)
    if used is not None and (patterns or user_id is not None):
        raise click.UsageError("--user-id and --pattern are for a client without a token: remove them, or the token")
    used = used or (token_of_environment() if user_id is None else None)
    if used is None and user_id is None:
        raise click.UsageError(f"{NO_TOKEN}; or give --user-id with --channel or --pattern")
    fields: dict[str, object] = {
        "token": used,
        "userId": user_id,
        "channels": list(channels) or None,
        "patterns": list(patterns) or None,
        "lastEventId": last_event_id,
        "since": since,
        "origin": origin,
        "address": address,
    }
    answer = hub.call("POST", "/explain/", fields)
    for line in [printable_json(answer, indent=2)] if as_json else _lines(answer):
        click.echo(line)
    return 0 if answer["would"] == "open" else 1


def _lines(answer: Mapping[str, Any]) -> Iterator[str]:
    for check in answer["checks"]:
        yield f"{_STATES[check['passed']]:<6}  {check['check']:<10}  {cell(check['message'], _WIDTH)}"
        if check["remedy"] is not None:
            yield f"{'':<20}to do: {cell(check['remedy'], _WIDTH)}"
    yield ""
    yield f"{_WOULD[answer['would']].format(status=answer['status'])}{_begins(answer['begins'])}"
    if len(set(answer["workers"].values())) > 1:
        yield "workers differ: " + ", ".join(f"{name} {would}" for name, would in answer["workers"].items())
    for worker in answer["missing"]:
        yield f"worker {worker} did not answer"


def _begins(begins: Mapping[str, Any] | None) -> str:
    """Return how the stream would go on, after the statement that it would open."""
    if begins is None:
        return ""
    if begins["at"] == "live":
        return ", with the next event"
    replayed = f"{begins['events']} events of the past"
    return f", with a reset ({begins['reason']}) and {replayed}" if begins["at"] == "reset" else f", with {replayed}"
