"""`ssehub streams`, `ssehub channels` and `ssehub statistics`: who is connected to a running hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from .help import command, option
from .hub import ControlApp, uses_hub
from .options import user_option
from .table import cell, printable_json, table

PAGE = 1_000
GROUPS = {"user": "userId", "address": "address", "channel": "channel", "pattern": "pattern", "client": "client"}
STREAM_HEADS = (
    "STREAM",
    "USER",
    "HEARS",
    "ADDRESS",
    "OPENED",
    "EVENTS",
    "BYTES",
    "BACKLOG",
    "STATE",
    "LAST ID",
    "CLIENT",
)

limit_option = option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="most lines; a note says if there are more"
)
json_option = option("--json", "as_json", is_flag=True, help="print lines of JSON, with all that the hub says")


@command()
@user_option("only streams of this user")
@option("--channel", help="only streams that hear this channel, by its name or by a pattern")
@option("--address", help="only streams from this address, or network such as 10.0.0.0/8, or unix")
@option("--sort", type=click.Choice(["backlog"]), help="those with the largest backlogs, the largest first")
@option("--by", "group", type=click.Choice([*GROUPS]), help="how many streams have each of these, most first")
@limit_option
@json_option
@uses_hub
def streams(
    hub: ControlApp,
    user_id: str | None,
    channel: str | None,
    address: str | None,
    sort: str | None,
    group: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Print the open streams of a running hub.

    Names are shortened, and characters that could control the terminal are escaped: --json prints them exactly.
    """
    if sort is not None and group is not None:
        raise click.UsageError("--sort and --by are both given: leave one out")
    query = {"userId": user_id, "channel": channel, "address": address, "sort": sort}
    if group is None:
        rows = _pages(hub, "/streams/", "streams", query, limit)
        _print(STREAM_HEADS, [_stream_cells(row) for row in rows] if not as_json else None, rows)
        return
    name = GROUPS[group]
    rows = _pages(hub, "/streams/", "groups", {**query, "group": name}, limit)
    cells = [(cell(_text(row[name]), 60), row["streams"], row["backlogBytes"]) for row in rows]
    _print((group.upper(), "STREAMS", "BACKLOG"), cells if not as_json else None, rows)


@command()
@option("--prefix", help="only channels that begin with this")
@limit_option
@json_option
@uses_hub
def channels(hub: ControlApp, prefix: str | None, limit: int, as_json: bool) -> None:
    """Print the channels that streams of a running hub have, by name.

    BY NAME is how many streams have the channel, BY PATTERN how many have a pattern that covers it.
    """
    rows = _pages(hub, "/channels/", "channels", {"prefix": prefix}, limit)
    cells = [(cell(row["channel"], 60), row["streams"], row["patternStreams"]) for row in rows]
    _print(("CHANNEL", "BY NAME", "BY PATTERN"), cells if not as_json else None, rows)


@command()
@uses_hub
def statistics(hub: ControlApp) -> None:
    """Print the numbers of a running hub as JSON: their totals, those of each worker, and the other nodes."""
    click.echo(printable_json(hub.call("GET", "/statistics"), indent=2))


def _pages(hub: ControlApp, path: str, name: str, query: Mapping[str, object], limit: int) -> list[Mapping[str, Any]]:
    """Return up to `limit` rows, and say on stderr what is missing, and where there are others."""
    rows: list[Mapping[str, Any]] = []
    missing: dict[str, None] = {}
    cursor: str | None = None
    while True:
        page = hub.call("GET", path, query={**query, "limit": min(PAGE, limit - len(rows)), "cursor": cursor})
        rows += page[name]
        missing.update(dict.fromkeys(page["missing"]))
        cursor = page.get("next")
        if cursor is None or len(rows) >= limit:
            break
    for worker in missing:
        _note(f"worker {worker} did not answer: its streams are missing")
    if cursor is not None:
        _note(f"these are the first {len(rows)}: there are more, see --limit")
    if page.get("isExact") is False:
        _note("there are very many groups: the counts may be too low")
    if page["nodes"] is None:
        _note(f"other nodes may have streams of their own: {page['nodesProblem']}")
    for node in page["nodes"] or ():
        where = f"process {node['pid']} of {node['host']}, control app at {node['control'] or 'an unknown address'}"
        _note(f"another node has streams of its own: {cell(where, 120)}")
    return rows


def _note(text: str) -> None:
    click.echo(f"ssehub: {text}", err=True)


def _print(
    heads: Sequence[str], cells: Sequence[Sequence[str | int]] | None, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Print `cells` as a table or, if there are none, `rows` as lines of JSON."""
    lines: Iterator[str] = table(heads, cells) if cells is not None else (printable_json(row) for row in rows)
    for line in lines:
        click.echo(line)


def _stream_cells(row: Mapping[str, Any]) -> Sequence[str | int]:
    run = [f"run {row['run']}"] if "run" in row else []
    return (
        f"{row['worker']}-{row['number']}",
        cell(row["userId"], 30),
        cell(", ".join([*run, *row["channels"], *row["patterns"]])),
        cell(_text(row["address"])),
        f"{row['openedAt'][:19]}Z",
        row["events"],
        row["bytes"],
        row["backlogBytes"],
        row["state"],
        row["lastId"],
        cell(_text(row["client"])),
    )


def _text(value: str | None) -> str:
    return "the hub's process" if value is None else value
