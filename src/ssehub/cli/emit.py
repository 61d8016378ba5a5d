"""`ssehub emit`: publish one event through the control app of a running hub."""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
from pathlib import Path
from urllib.parse import urlsplit

import click

from ..urls import without_credentials
from .options import ALIASES, config_option, control_key_file_option, control_key_option, load

_TIMEOUT_SECONDS = 10.0


@click.command()
@click.option(
    "--user-id",
    *ALIASES["user_id"],
    "user_ids",
    multiple=True,
    default=("*",),
    show_default=True,
    help="user who receives the event, * for everyone; may be repeated",
)
@click.option("--channel", "channels", multiple=True, required=True, help="channel the event goes to; may be repeated")
@click.option("--data", help="text of the event; - reads it from standard input")
@click.option("--payload", help="raw stream text instead of --data; - reads it from standard input")
@click.option("--event", help="type of the event")
@click.option("--id", help="id of the event; if not given, its position in the log")
@click.option("--retry", type=int, metavar="MILLISECONDS", help="how long browsers wait before they reconnect")
@click.option(
    "--store/--no-store",
    default=True,
    show_default=True,
    help="whether clients that reconnect later can still receive the event",
)
@click.option(
    "--ttl",
    type=float,
    metavar="SECONDS",
    help="how many seconds the event stays available to clients that reconnect",
)
@click.option(
    "--idempotency-key", metavar="KEY", help="an event that was published with this key before is not published again"
)
@click.option("--control-url", default="http://127.0.0.1:8001", show_default=True, help="URL of the hub's control app")
@control_key_option
@control_key_file_option
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
    """Publish one event to a running hub and print the event's id."""
    if (data is None) == (payload is None):
        raise click.UsageError("give either --data or --payload")
    config = load(config_file, settings)
    fields: dict[str, object] = {
        "userId": list(user_ids),
        "channel": list(channels),
        "data": _text(data),
        "payload": _text(payload),
        "event": event,
        "id": id,
        "retry": retry,
        "store": None if store else False,
        "ttl": ttl,
        "idempotencyKey": idempotency_key,
    }
    body = json.dumps({name: value for name, value in fields.items() if value is not None})
    headers = {"Content-Type": "application/json"}
    if config.control_key is not None:
        headers["Authorization"] = f"Bearer {config.control_key.get_secret_value()}"
    click.echo(json.loads(_post(control_url, "/emit/", body, headers))["id"])


def _text(option: str | None) -> str | None:
    return sys.stdin.read() if option == "-" else option


def _post(url: str, path: str, body: str, headers: dict[str, str]) -> str:
    """Return the response of the control app at `url`. Raises click.ClickException."""
    connection, prefix = _connection(url)
    shown = without_credentials(url)
    try:
        # A server that rejects a body before it has read all of it may close the connection after its response.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", prefix + path, body.encode(errors="surrogatepass"), headers)
        response = connection.getresponse()
        text = response.read().decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as exc:
        raise click.ClickException(f"{shown} does not answer: {exc}") from exc
    finally:
        connection.close()
    if response.status != 200:
        raise click.ClickException(f"{shown} rejected the event: {response.status} {' '.join(text.split())}")
    return text


def _connection(url: str) -> tuple[http.client.HTTPConnection, str]:
    """Return an unopened connection to the server of `url`, and the path of `url`. Raises click.UsageError."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or parts.scheme not in ("http", "https"):
        raise click.UsageError(f"--control-url {without_credentials(url)!r} is not a URL such as http://127.0.0.1:8001")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(host, port, timeout=_TIMEOUT_SECONDS), parts.path.rstrip("/")
