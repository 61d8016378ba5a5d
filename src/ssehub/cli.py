"""The command: click parses, config checks, the other rooms do the work."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import click

from .config import PREFIX, Config, load_config
from .errors import (
    AddressError,
    BrokerUnavailable,
    ConfigError,
    SSEHubError,
)
from .settings import RedisOptions

if TYPE_CHECKING:
    from .bench import Progress, Report

EVERYDAY = ("bind", "control_bind", "secret", "secret_file", "control_key", "control_key_file", "broker")
ALIASES = {"control_bind": ("--bindctl",), "user_id": ("--userId",)}
HELP = ["--help", "-h"]
GO_FLAGS = re.compile(r"-(bind|bindctl|secret|userId|channel|exp|help)(=.*)?", re.DOTALL)
DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)", re.ASCII)
UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
TIMEOUT_SECONDS = 10.0
COUNT = click.IntRange(1)
RATE = click.FloatRange(0, min_open=True)


class Group(click.Group):
    """`ssehub` alone, or with options only, is `ssehub serve`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in (*HELP, "--version")):
            args = ["serve", *args]
        return super().parse_args(ctx, args)


@click.group(cls=Group, context_settings={"help_option_names": HELP, "max_content_width": 100})
@click.version_option(version("ssehub"), message="ssehub %(version)s")
def ssehub() -> None:
    """A Server-Sent Events hub: backends publish events, browsers receive them at once.

    Without a command it serves. Flags may be written -bind X, -bind=X, --bind X or --bind=X.
    """


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option for every setting, the everyday ones first."""
    rest = [name for name in Config.model_fields if name not in EVERYDAY]
    for name in reversed([*EVERYDAY, *rest]):
        command = _setting_option(name)(command)
    return command


def _setting_option(name: str) -> Callable[..., Any]:
    setting = Config.model_fields[name]
    flag = f"--{name.replace('_', '-')}"
    help = f"{setting.description}  [{PREFIX}{name.upper()}{_default(setting.default)}]"
    if setting.annotation is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=help)
    return click.option(flag, *ALIASES.get(name, ()), name, default=None, metavar=_metavar(name), help=help)


def _default(value: object) -> str:
    return "" if value is None or value == [] else f"; default {value}"


def _metavar(name: str) -> str:
    unit = name.rpartition("_")[2]
    return {"bind": "ADDRESS", "file": "FILE", "seconds": "SECONDS", "bytes": "BYTES"}.get(unit, unit.upper())


config_option = click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help=f"a TOML file of settings  [{PREFIX}CONFIG]"
)


@ssehub.command()
@setting_options
@config_option
def serve(config_file: Path | None, **settings: object) -> None:
    """Run the hub until SIGTERM or Ctrl-C."""
    config = _load(config_file, settings)
    # The other commands start quicker without these.
    if config.workers > 1:
        from .server.workers import serve_by_workers as run
    else:
        from .server.process import serve as run
    sys.exit(run(config))


@ssehub.command()
@click.option("--user-id", *ALIASES["user_id"], "user_id", required=True, help="who it is for; * is an ordinary name")
@click.option("--channel", "channels", multiple=True, required=True, help="a channel it grants; may be repeated")
@click.option("--exp", type=float, help="when it ends, as a Unix time")
@click.option("--expires-in", default=None, help="how long it lasts: 3600, 15m, 24h, 7d  [default: 24h]")
@click.option("--secret", default=None, help=f"what signs it (shown by ps: prefer a file)  [{PREFIX}SECRET]")
@click.option("--secret-file", default=None, help=f"the file that holds the secret  [{PREFIX}SECRET_FILE]")
@config_option
def token(
    user_id: str,
    channels: tuple[str, ...],
    exp: float | None,
    expires_in: str | None,
    config_file: Path | None,
    **settings: object,
) -> None:
    """Print a token, made here: the hub is not asked."""
    from .tokens import Tokens

    config = _load(config_file, settings)
    if config.secret is None:
        raise ConfigError("a secret is needed to sign a token: give --secret-file, or set SSEHUB_SECRET")
    made = Tokens(config.secret.get_secret_value()).issue(user_id, channels, expires_at=_expires_at(exp, expires_in))
    click.echo(made)


@ssehub.command()
@click.option(
    "--user-id",
    *ALIASES["user_id"],
    "user_ids",
    multiple=True,
    default=("*",),
    show_default=True,
    help="who it is for; may be repeated",
)
@click.option("--channel", "channels", multiple=True, required=True, help="where it goes; may be repeated")
@click.option("--data", help="the text of the event; - reads it from standard input")
@click.option("--payload", help="raw stream text instead of data; - reads it from standard input")
@click.option("--event", help="the type of the event")
@click.option("--id", help="its id instead of its position in the log")
@click.option("--retry", type=int, metavar="MILLISECONDS", help="how long browsers wait before they reconnect")
@click.option("--store/--no-store", default=True, help="keep it for those who come back  [default: store]")
@click.option("--ttl", type=float, metavar="SECONDS", help="how long it is kept for them")
@click.option("--idempotency-key", metavar="KEY", help="sent again with this key, it is not published again")
@click.option(
    "--control-url", default="http://127.0.0.1:8001", show_default=True, help="where the hub's control app is"
)
@click.option(
    "--control-key", default=None, help=f"the control key (shown by ps: prefer a file)  [{PREFIX}CONTROL_KEY]"
)
@click.option("--control-key-file", default=None, help=f"the file that holds it  [{PREFIX}CONTROL_KEY_FILE]")
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
    """Send one event to a running hub, and print the id it got."""
    if (data is None) == (payload is None):
        raise click.UsageError("give --data or --payload, one of them")
    config = _load(config_file, settings)
    fields: dict[str, object] = {
        "userId": list(user_ids),
        "channel": list(channels),
        "event": event,
        "id": id,
        "retry": retry,
    }
    fields |= {"data": _input(data), "payload": _input(payload), "ttl": ttl, "idempotencyKey": idempotency_key}
    if not store:
        fields["store"] = False
    body = json.dumps({name: value for name, value in fields.items() if value is not None})
    headers = {"Content-Type": "application/json"}
    if config.control_key is not None:
        headers["Authorization"] = f"Bearer {config.control_key.get_secret_value()}"
    click.echo(json.loads(_post(control_url, "/emit/", body, headers))["id"])


@ssehub.command()
@click.option("--broker", default=None, help=f"whose log, such as sqlite:///events.db  [{PREFIX}BROKER]")
@click.option("--last", "count", type=COUNT, default=20, help="how many events, the newest ones  [default: 20]")
@click.option("--channel", help="of this channel only")
@config_option
def log(config_file: Path | None, count: int, channel: str | None, **settings: object) -> None:
    """Print the newest events of a log, a line of JSON each, in their order; a hub may be running on it."""
    from .brokers import open_log

    config = _load(config_file, settings)
    with open_log(config.broker, config.group(RedisOptions).redis_prefix) as entries:
        wanted = (entry for entry in entries if channel is None or channel in entry.event.channels)
        newest = list(islice(wanted, count))
    for entry in reversed(newest):
        time = datetime.fromtimestamp(entry.position.milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
        line = {"position": str(entry.position), "time": time, **json.loads(entry.event.dump())}
        click.echo(json.dumps(line, ensure_ascii=False))


@ssehub.command()
@click.option("--url", default="http://127.0.0.1:8000", help="where browsers listen  [default: http://127.0.0.1:8000]")
@click.option(
    "--control-url", default="http://127.0.0.1:8001", help="where it publishes  [default: http://127.0.0.1:8001]"
)
@click.option("--subscribers", type=click.IntRange(0), default=1_000, help="streams that are opened  [default: 1000]")
@click.option("--events", type=click.IntRange(0), default=1_000, help="events that are published  [default: 1000]")
@click.option("--rate", type=RATE, help="events a second; as many as the hub answers if left out")
@click.option("--publishers", type=click.IntRange(1, 999), default=1, help="connections that publish  [default: 1]")
@click.option("--batch", type=COUNT, default=1, help="events in one request  [default: 1]")
@click.option("--size", type=click.IntRange(35), default=100, help="bytes of data in an event  [default: 100]")
@click.option("--users", type=COUNT, default=1, help="more than one: each event is for one of them  [default: 1]")
@click.option("--channels", type=COUNT, default=1, help="channels, in turn  [default: 1]")
@click.option("--token", help="what all subscribers bring; asked of the hub if left out, or made with --secret")
@click.option("--secret", default=None, help=f"what signs tokens (shown by ps: prefer a file)  [{PREFIX}SECRET]")
@click.option("--secret-file", default=None, help=f"the file that holds the secret  [{PREFIX}SECRET_FILE]")
@click.option("--control-key", default=None, help=f"the control key, if the hub asks for one  [{PREFIX}CONTROL_KEY]")
@click.option("--processes", type=COUNT, default=1, help="processes that listen  [default: 1]")
@click.option("--server-pid", type=COUNT, help="the hub's process, whose CPU time and memory are then told, too")
@click.option(
    "--body", type=click.Choice(["json", "form", "raw"]), default="json", help="how it publishes  [default: json]"
)
@click.option(
    "--patience",
    "patience_seconds",
    type=RATE,
    default=10.0,
    metavar="SECONDS",
    help="how long nothing may come before it gives up  [default: 10]",
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
    """Load-test a hub, this one or any other, and count every event that is lost, doubled or out of order."""
    from .bench import (
        BenchError,
        Plan,
        measure,
        table,
        tokens_from_hub,
    )

    config = _load(config_file, {"secret": secret, "secret_file": secret_file, "control_key": control_key})
    key = config.control_key.get_secret_value() if config.control_key is not None else None
    plan = Plan(control_key=key, **options)
    if plan.batch > 1 and plan.body != "json":
        raise click.UsageError("--batch needs --body json")
    if token is not None and plan.audience_count > 1:
        raise click.UsageError("--token is for one user on one channel: leave out --users and --channels, or --token")

    async def run() -> Report:
        if token is not None:
            tokens = [token]
        elif config.secret is not None:
            tokens = _tokens(config, plan.audiences)
        else:
            tokens = await tokens_from_hub(plan)
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


def _tokens(config: Config, audiences: list[tuple[str, str]]) -> list[str]:
    from .tokens import Tokens

    assert config.secret is not None
    tokens = Tokens(config.secret.get_secret_value())
    return [tokens.issue(user, [channel], expires_at=time.time() + 86_400) for channel, user in audiences]


@contextlib.contextmanager
def _progress(is_shown: bool) -> Iterator[Progress]:
    try:
        from rich.console import Console
        from rich.progress import Progress as Bar
    except ImportError:
        raise click.ClickException("bench needs rich: pip install 'ssehub[cli]'") from None
    with Bar(console=Console(stderr=True), transient=True, disable=not is_shown) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield show


def _load(config_file: Path | None, settings: dict[str, object]) -> Config:
    given = {name: value for name, value in settings.items() if value is not None}
    return load_config(given, config_file=config_file)


def _input(text: str | None) -> str | None:
    return sys.stdin.read() if text == "-" else text


def _expires_at(exp: float | None, expires_in: str | None) -> float:
    if exp is not None and expires_in is not None:
        raise click.UsageError("give --exp or --expires-in, one of them")
    if exp is not None:
        if not (math.isfinite(exp) and exp > time.time()):
            raise click.UsageError(f"--exp {exp:g} is not in the future: it is a Unix time, now is {int(time.time())}")
        return exp
    match = DURATION.fullmatch(expires_in or "24h")
    if match is None or not float(match[1]):
        raise click.UsageError(f"--expires-in {expires_in!r} is no duration: write 3600, 15m, 24h or 7d")
    return time.time() + float(match[1]) * UNIT_SECONDS[match[2]]


def _post(url: str, path: str, body: str, headers: dict[str, str]) -> str:
    """The text that the control app at `url` answers; raises click.ClickException in one line."""
    connection, prefix = _connection(url)
    try:
        # Whoever refuses the body before it has all of it may close the connection, but not without an answer.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", prefix + path, body.encode(errors="surrogatepass"), headers)
        response = connection.getresponse()
        text = response.read().decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as exc:
        raise click.ClickException(f"{url} does not answer: {exc}") from exc
    finally:
        connection.close()
    if response.status != 200:
        raise click.ClickException(f"{url} refused it: {response.status} {' '.join(text.split())}")
    return text


def _connection(url: str) -> tuple[http.client.HTTPConnection, str]:
    """A connection to the control app at `url`, not yet made, and what its paths begin with."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or parts.scheme not in ("http", "https"):
        raise click.UsageError(f"--control-url {url!r} is no URL such as http://127.0.0.1:8001")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(host, port, timeout=TIMEOUT_SECONDS), parts.path.rstrip("/")


def normal_flags(arguments: Sequence[str]) -> list[str]:
    """`arguments` with the original's flags, which Go spells with one dash, spelt with two; values stay as they are."""
    with_value = {
        flag
        for command in ssehub.commands.values()
        for option in command.params
        if isinstance(option, click.Option) and not option.is_flag
        for flag in option.opts
    }
    normal: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            return [*normal, argument, *rest]
        flag = f"-{argument}" if GO_FLAGS.fullmatch(argument) else argument
        normal += [flag, *islice(rest, 1)] if flag in with_value else [flag]
    return normal


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command; exits 2 for what was asked wrongly, 3 for an address or log that can't be had, else 1."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = ssehub.main(normal_flags(given), prog_name="ssehub", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except click.ClickException as exc:
        _fail(exc.format_message(), exc.exit_code)
    except (AddressError, BrokerUnavailable) as exc:
        _fail(str(exc), 3)
    except SSEHubError as exc:
        _fail(str(exc), 2)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"ssehub: {' '.join(message.split())}", err=True)
    sys.exit(code)
