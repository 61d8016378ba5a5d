"""Calls of commands to the control app of a running hub. They need nothing but the standard library."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import click

from ..config import Config
from ..trust import client_context, tls_problem
from ..urls import without_credentials

_TIMEOUT_SECONDS = 10.0

control_url_option = click.option(
    "--control-url", default="http://127.0.0.1:8001", show_default=True, help="URL of the hub's control app"
)


def call(config: Config, url: str, method: str, path: str, fields: Mapping[str, object], *, what: str) -> Any:
    """Send those of `fields` that are not None as JSON to the control app at `url`, and return its answer.

    `config` has the control key, if there is one. `what` is what the hub rejects if it rejects the request. Raises
    click.ClickException.
    """
    body = json.dumps({name: value for name, value in fields.items() if value is not None})
    headers = {"Content-Type": "application/json"}
    if config.control_key is not None:
        headers["Authorization"] = f"Bearer {config.control_key.get_secret_value()}"
    connection, prefix = _connection(url)
    shown = without_credentials(url)
    try:
        # A server that rejects a body before it has read all of it may close the connection after its response.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request(method, prefix + path, body.encode(errors="surrogatepass"), headers)
        response = connection.getresponse()
        text = response.read().decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as exc:
        raise click.ClickException(_failure(shown, exc)) from exc
    finally:
        connection.close()
    if response.status != 200:
        raise click.ClickException(f"{shown} rejected the {what}: {response.status} {' '.join(text.split())}")
    return json.loads(text)


def _failure(shown: str, exc: BaseException) -> str:
    problem = tls_problem(exc)
    return f"{shown} can't be used: {problem}" if problem else f"{shown} does not answer: {exc}"


def _connection(url: str) -> tuple[http.client.HTTPConnection, str]:
    """Return an unopened connection to the server of `url`, and the path of `url`. Raises click.UsageError."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or parts.scheme not in ("http", "https"):
        raise click.UsageError(f"--control-url {without_credentials(url)!r} is not a URL such as http://127.0.0.1:8001")
    prefix = parts.path.rstrip("/")
    if parts.scheme == "https":
        context = client_context()
        return http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_SECONDS, context=context), prefix
    return http.client.HTTPConnection(host, port, timeout=_TIMEOUT_SECONDS), prefix
