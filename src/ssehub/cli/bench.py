"""`ssehub bench`: load-test a hub."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from .bearer import given_token, token_file_option, token_of_environment, token_option
from .help import command, option
from .hub import ControlApp, client_url_option, uses_hub
from .options import secret_file_option, secret_option, signing_tokens

if TYPE_CHECKING:
    from ..bench import Plan, Progress, Report
    from ..tokens import Tokens

COUNT = click.IntRange(1)
COUNT_OR_NONE = click.IntRange(0)
RATE = click.FloatRange(0, min_open=True)


@command()
@option("--subscribers", type=COUNT_OR_NONE, default=1_000, show_default=True, help="streams to open")
@option("--events", type=COUNT_OR_NONE, default=1_000, show_default=True, help="events to publish")
@option("--rate", type=RATE, help="events per second; if not given, as many as the hub accepts")
@option("--publishers", type=click.IntRange(1, 999), default=1, show_default=True, help="connections that publish")
@option("--batch", type=COUNT, default=1, show_default=True, help="events per request")
@option("--size", type=click.IntRange(35), default=100, show_default=True, help="bytes of data per event")
@option(
    "--users",
    type=COUNT,
    default=1,
    show_default=True,
    help="users; with more than one, each event is for one of them, in turn, else for everyone",
)
@option("--channels", type=COUNT, default=1, show_default=True, help="channels, used in turn")
@token_option
@token_file_option
@secret_option
@secret_file_option
@option("--processes", type=COUNT, default=1, show_default=True, help="processes that subscribe")
@option("--server-pid", type=COUNT, help="process of the hub, to report its CPU time and memory too")
@option(
    "--body",
    type=click.Choice(["json", "form", "raw"]),
    default="json",
    show_default=True,
    help="format in which events are published; raw is the data alone, for other kinds of servers",
)
@option(
    "--patience",
    "patience_seconds",
    type=RATE,
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="how long to wait while nothing arrives before giving up",
)
@option("--json", "as_json", is_flag=True, help="print the report as JSON")
@client_url_option
@uses_hub
def bench(
    hub: ControlApp, url: str | None, token: str | None, token_file: str | None, as_json: bool, **options: Any
) -> None:
    """Load-test a hub and count lost, repeated and reordered events.

    All subscribers have the same token if one is given. Else tokens are signed with the secret, or requested from the
    hub.
    """
    from ..bench import BenchError, Plan, measure, table

    signing = signing_tokens(hub.config)
    given = given_token(token, token_file) or token_of_environment()
    plan = Plan(url=hub.client_url(url), control_url=hub.url, control_key=hub.control_key, **options)
    if plan.batch > 1 and plan.body != "json":
        raise click.UsageError("--batch needs --body json")
    if given is not None and plan.audience_count > 1:
        raise click.UsageError("a token is for one user on one channel: remove --users and --channels, or the token")

    async def run() -> Report:
        tokens = [given] if given is not None else await _tokens(plan, signing)
        with _progress(not as_json) as progress:
            return await measure(plan, tokens, progress)

    try:
        report = asyncio.run(run())
    except BenchError as exc:
        raise click.ClickException(str(exc)) from exc
    if as_json:
        click.echo(report.as_json())
    else:
        for name, value in table(report):
            click.echo(f"{name:32} {value}")
    sys.exit(0 if report.is_good else 1)


async def _tokens(plan: Plan, tokens: Tokens | None) -> list[str]:
    """Return a token for each audience, issued by `tokens` or, without them, by the hub."""
    if tokens is None:
        from ..bench import tokens_from_hub

        return await tokens_from_hub(plan)
    expires_at = time.time() + 86_400
    return [tokens.issue(user, [channel], expires_at=expires_at) for channel, user in plan.audiences]


@contextlib.contextmanager
def _progress(is_shown: bool) -> Iterator[Progress]:
    try:
        from rich.console import Console
        from rich.progress import Progress as Bar
    except ImportError:
        raise click.ClickException("bench needs rich: pip install 'ssehub[cli]'") from None
    console = Console(stderr=True)
    if not (is_shown and console.is_terminal):  # rich before 15 prints an empty line even for a disabled bar
        yield lambda what, done, total: None
        return
    with Bar(console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield show
