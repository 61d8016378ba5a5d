"""`ssehub bench`: load-test a hub."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import config_option, control_key_option, load, secret_file_option, secret_option, signing_tokens

if TYPE_CHECKING:
    from ..bench import Plan, Progress, Report
    from ..tokens import Tokens

COUNT = click.IntRange(1)
COUNT_OR_NONE = click.IntRange(0)
RATE = click.FloatRange(0, min_open=True)


@click.command()
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="URL where browsers connect")
@click.option("--control-url", default="http://127.0.0.1:8001", show_default=True, help="URL of the control app")
@click.option("--subscribers", type=COUNT_OR_NONE, default=1_000, show_default=True, help="streams to open")
@click.option("--events", type=COUNT_OR_NONE, default=1_000, show_default=True, help="events to publish")
@click.option("--rate", type=RATE, help="events per second; if not given, as many as the hub accepts")
@click.option(
    "--publishers", type=click.IntRange(1, 999), default=1, show_default=True, help="connections that publish"
)
@click.option("--batch", type=COUNT, default=1, show_default=True, help="events per request")
@click.option("--size", type=click.IntRange(35), default=100, show_default=True, help="bytes of data per event")
@click.option(
    "--users",
    type=COUNT,
    default=1,
    show_default=True,
    help="users; with more than one, each event is for one of them, in turn, else for everyone",
)
@click.option("--channels", type=COUNT, default=1, show_default=True, help="channels, used in turn")
@click.option(
    "--token",
    help="token of all subscribers; if not given, tokens are signed with --secret or requested from the hub",
)
@secret_option
@secret_file_option
@control_key_option
@click.option("--processes", type=COUNT, default=1, show_default=True, help="processes that subscribe")
@click.option("--server-pid", type=COUNT, help="process of the hub, to report its CPU time and memory too")
@click.option(
    "--body",
    type=click.Choice(["json", "form", "raw"]),
    default="json",
    show_default=True,
    help="format in which events are published; raw is the data alone, for other kinds of servers",
)
@click.option(
    "--patience",
    "patience_seconds",
    type=RATE,
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="how long to wait while nothing arrives before giving up",
)
@click.option("--json", "as_json", is_flag=True, help="print the report as JSON")
@config_option
def bench(
    config_file: Path | None,
    token: str | None,
    secret: str | None,
    secret_file: str | None,
    control_key: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Load-test a hub and count lost, repeated and reordered events."""
    from ..bench import BenchError, Plan, measure, table

    config = load(config_file, {"secret": secret, "secret_file": secret_file, "control_key": control_key})
    key = config.control_key.get_secret_value() if config.control_key is not None else None
    signing = signing_tokens(config)
    plan = Plan(control_key=key, **options)
    if plan.batch > 1 and plan.body != "json":
        raise click.UsageError("--batch needs --body json")
    if token is not None and plan.audience_count > 1:
        raise click.UsageError("--token is for one user on one channel: remove --users and --channels, or --token")

    async def run() -> Report:
        tokens = [token] if token is not None else await _tokens(plan, signing)
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
