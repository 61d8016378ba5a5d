"""`ssehub trace`: print what happens to the streams of a running hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from .help import command, option
from .hub import ControlApp, explained_status, uses_hub
from .options import user_option
from .table import cell, printable_json


@command()
@user_option("only streams of this user")
@option("--channel", help="only streams that hear this channel, by its name or by a pattern")
@option("--address", help="only clients at this address, or in a network such as 10.0.0.0/8, or unix")
@option("--json", "as_json", is_flag=True, help="print each step as a line of JSON, with all that the hub says")
@uses_hub
def trace(hub: ControlApp, user_id: str | None, channel: str | None, address: str | None, as_json: bool) -> int:
    """Print what happens to streams from now on, until Ctrl-C: opened, refused, replayed, reset, delivered, ended.

    Deliveries are counted each second. A client that is refused before its token was verified has no user: look for it
    by its address. While the hub is away, it is waited for.
    """
    from .stream import Follower, Refused, client_for

    parameters = {"userId": user_id, "channel": channel, "address": address}
    given = {name: value for name, value in parameters.items() if value is not None}
    with client_for(hub.url, hub.control_key) as client:
        follower = Follower(client, "/trace/", parameters=given, retries=hub.retries, tell=_tell)
        try:
            for event in follower.events():
                record = json.loads(event.data)
                click.echo(event_line(event.event, record) if not as_json else _as_json(event.event, record))
        except Refused as exc:
            raise click.ClickException(explained_status(exc.status, str(exc))) from exc
    return 0


def event_line(step: str, record: Mapping[str, Any]) -> str:
    """Return a record for a terminal: its time, its step, the stream, who, where from, and what came of it."""
    parts = [f"{record['at']}  " if "at" in record else "", f"{step:<9}"]
    if "number" in record:
        parts.append(f"  {record['worker']}-{record['number']}")
    if "userId" in record:
        parts.append(f"  user {cell(record['userId'])}")
    hears = [*(f"run {name}" for name in [record.get("run")] if name), *_names(record)]
    if hears:
        parts.append(f"  on {cell(', '.join(hears))}")
    if "address" in record:
        parts.append(f"  from {cell(record['address'])}")
    if record.get("client"):
        parts.append(f"  {cell(record['client'])}")
    facts = [_FACTS[name].format(record[name]) for name in _FACTS if name in record]
    if "number" not in record and "worker" in record and "at" not in record:
        facts.insert(0, f"worker {record['worker']}")
    return "".join(parts) + (f"  {', '.join(map(_shown, facts))}" if facts else "")


_FACTS = {
    "reason": "{}",
    "streams": "{} streams",
    "seconds": "{} s",
    "events": "{} events",
    "bytes": "{} bytes",
    "records": "{} steps were dropped, because they were not read in time",
}


def _names(record: Mapping[str, Any]) -> list[str]:
    return [*record.get("channels", []), *record.get("patterns", [])]


def _shown(fact: str) -> str:
    return cell(fact, 100)


def _as_json(step: str, record: Mapping[str, Any]) -> str:
    return printable_json({"step": step, **record})


def _tell(message: str) -> None:
    click.echo(f"ssehub: {message}", err=True)
