"""`ssehub runs`: list, show, stop and delete the runs of a running hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import click

from .help import command, option
from .hub import ControlApp, uses_hub
from .options import user_option
from .table import printable_json

_PAGE = 1_000


@click.group()
def runs() -> None:
    """Runs: streams with an end. Each is printed as a line of JSON."""


@command("list")
@user_option("only runs of this user")
@option("--channel", help="only runs on this channel")
@option("--state", help="only runs in these states, separated by commas: open, stopping, done, failed, stopped")
@uses_hub
def list_runs(hub: ControlApp, user_id: str | None, channel: str | None, state: str | None) -> None:
    """Print the runs, in the order of their names."""
    after: str | None = None
    while True:
        query = {"userId": user_id, "channel": channel, "state": state, "after": after, "limit": _PAGE}
        page = hub.call("GET", "/runs/", query=query)
        for run in page["runs"]:
            _print(run)
        after = page["next"]
        if after is None:
            return


@command()
@click.argument("name")
@uses_hub
def show(hub: ControlApp, name: str) -> None:
    """Print the run NAME."""
    _print(hub.call("GET", _path(name)))


@command()
@click.argument("name")
@option("--generation", type=click.IntRange(0), help="only if the run has this generation, and was not begun anew")
@uses_hub
def stop(hub: ControlApp, name: str, generation: int | None) -> None:
    """Ask the producer of the run NAME to stop."""
    _print(hub.call("POST", f"{_path(name)}/stop", {"generation": generation}))


@command()
@click.argument("name")
@uses_hub
def delete(hub: ControlApp, name: str) -> None:
    """Delete the run NAME with its events, and print it as it was at last."""
    _print(hub.call("DELETE", _path(name), is_repeatable=False))


for _command in (list_runs, show, stop, delete):
    runs.add_command(_command)


def _path(name: str) -> str:
    return f"/runs/{quote(name, safe='')}"


def _print(run: Mapping[str, Any]) -> None:
    click.echo(printable_json(run))
