"""Which hub a command is for, and its calls of the control app there.

All commands find it in the same way: by `--control-url` or SSEHUB_CONTROL_URL, else at the `control_bind` of the
settings, which are those of the hub if both are given the same `--config` and environment.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from uuid import uuid4

import click

from ..address import Address
from ..config import CONTROL_URL_VARIABLE, OFF, Config, variable_of
from ..errors import ConfigError, ControlKeyError, SSEHubError
from ..publisher_route import DEFAULT_RETRIES
from .help import HUB, note, option
from .options import config_option, given, load

if TYPE_CHECKING:
    from ..publisher_calls import Call
    from ..publisher_client import Client
    from ..publisher_links import Links

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.2, 4.0
"""Between attempts of a request that stays open, shortened at random: ten take at least 10 s."""

control_url_option = option(
    "--control-url",
    section=HUB,
    envvar=CONTROL_URL_VARIABLE,
    metavar="URL",
    help="control app of the hub: http://HOST:PORT, https://HOST:PORT or unix:PATH; if not given, control_bind of the "
    f"settings{note(CONTROL_URL_VARIABLE)}",
)
control_key_option = option(
    "--control-key",
    section=HUB,
    default=None,
    help=f"control key of the hub (visible in ps: prefer a file){note(variable_of('control_key'))}",
)
control_key_file_option = option(
    "--control-key-file",
    section=HUB,
    default=None,
    metavar="FILE",
    help=f"file that contains the control key{note(variable_of('control_key_file'))}",
)
retries_option = option(
    "--retries",
    section=HUB,
    type=click.IntRange(0),
    default=DEFAULT_RETRIES,
    show_default=True,
    help="further attempts while the hub can't be reached or is not ready; ten take at least 10 s",
)
client_url_option = option(
    "--url",
    section=HUB,
    help="URL where browsers connect, without /events/; if not given, bind of the settings",
)


class ControlApp:
    """The control app of a hub. `config` has the settings, also those that a command needs itself."""

    def __init__(self, config: Config, url: str | None, retries: int) -> None:
        self.config = config
        self.retries = retries
        self._given_url = url
        self._client: Client | None = None

    @functools.cached_property
    def url(self) -> str:
        """Raises click.UsageError if the settings do not say where it is."""
        if self._given_url is not None:
            return self._given_url
        address = self.config.control_bind
        if address is None:
            raise click.UsageError(f"control_bind is {OFF}: give --control-url, or set {CONTROL_URL_VARIABLE}")
        return url_of(address, is_tls=self.config.control_tls_cert_file is not None)

    def client_url(self, url: str | None) -> str:
        """Return `url`, or where the settings say that browsers connect."""
        if url is not None:
            return url
        return url_of(self.config.bind, is_tls=self.config.tls_cert_file is not None)

    @property
    def control_key(self) -> str | None:
        key = self.config.control_key
        return None if key is None else key.get_secret_value()

    def call(
        self,
        method: str,
        path: str,
        fields: Mapping[str, object] | None = None,
        *,
        query: Mapping[str, object] | None = None,
        headers: Mapping[str, str] = {},
        is_repeatable: bool = True,
    ) -> dict[str, Any]:
        """Send those of `fields` that are not None as JSON, those of `query` in the URL, and return the answer.

        Raises click.ClickException, or ConfigError if the URL can't be used.
        """
        from ..publisher_calls import Call, json_body

        body = b"" if fields is None else json_body(given(fields))
        wanted = given(query or {})
        target = f"{path}?{urlencode(wanted, doseq=True)}" if wanted else path
        with failures_shown():
            return self.send(Call(method, target, body, headers, is_repeatable))

    def publish(self, event_or_batch: object, idempotency_key: str | None = None) -> dict[str, Any]:
        """Publish an event, or a list of them, and return the answer. Raises SSEHubError."""
        from ..publisher_calls import Call, json_body
        from ..publisher_client import header_value

        key = uuid4().hex if idempotency_key is None else header_value("--idempotency-key", idempotency_key)
        return self.send(Call("POST", "/emit/", json_body(event_or_batch), {"Idempotency-Key": key}))

    def links(self) -> Links:
        """Return what requests that stay open need. Raises ConfigError if the URL can't be used."""
        from ..publisher_client import Hubs
        from ..publisher_links import Links
        from ..publisher_route import Patience

        patience = Patience(
            first_wait_seconds=FIRST_WAIT_SECONDS,
            longest_wait_seconds=LONGEST_WAIT_SECONDS,
            give_up_seconds=float("inf"),
            retries=self.retries,
        )
        return Links(Hubs(self.url, control_key=self.control_key).nodes(), patience)

    def send(self, call: Call) -> dict[str, Any]:
        """Send `call`, and return the answer. Raises SSEHubError. While it tries again, a line says so."""
        if self._client is None:
            from ..publisher_client import Client, Hubs

            self._client = Client(Hubs(self.url, control_key=self.control_key), self.retries)
        with retries_shown():
            return self._client.send(call)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


@contextmanager
def failures_shown() -> Iterator[None]:
    """Turn the errors of calls into those of a command."""
    try:
        yield
    except ConfigError:
        raise
    except SSEHubError as exc:
        raise click.ClickException(explained(exc)) from exc


def explained(exc: SSEHubError) -> str:
    """Return the message of a failed call, with the options of a command where it speaks of HTTP."""
    return explained_status(401 if isinstance(exc, ControlKeyError) else 0, str(exc))


def explained_status(status: int, message: str) -> str:
    """Do what `explained` does for a response with `status`."""
    if status == 401:
        url = message.partition(" responded with ")[0]
        return f"{url} responded with 401: the control key is missing or wrong: give --control-key-file, or set {_KEYS}"
    return message


_KEYS = f"{variable_of('control_key_file')} or {variable_of('control_key')}"


@contextmanager
def retries_shown() -> Iterator[None]:
    """Write the warnings of the HTTP client to stderr, as the lines of a command."""
    logger, handler = logging.getLogger("ssehub.publisher"), _Notes()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"ssehub: {record.getMessage()}", err=True)


def uses_hub(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which hub, and give the command a `ControlApp` as `hub` in their place.

    Options of the command that are named like settings become part of `hub.config`.
    """

    @functools.wraps(command)
    def run(control_url: str | None, retries: int, config_file: Path | None, **options: Any) -> Any:
        settings = {name: options.pop(name) for name in list(options) if name in Config.model_fields}
        hub = ControlApp(load(config_file, settings), control_url, retries)
        try:
            return command(hub=hub, **options)
        finally:
            hub.close()

    for add in (config_option, retries_option, control_key_file_option, control_key_option, control_url_option):
        run = add(run)
    return run


def url_of(address: Address, *, is_tls: bool) -> str:
    """Return the URL at which this machine reaches a server that listens on `address`."""
    if address.path is not None:
        if is_tls:
            raise click.UsageError(
                f"{address} is a Unix socket with TLS, which commands do not support: use curl, or a port"
            )
        return str(address)
    host = address.host or "127.0.0.1"
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{'https' if is_tls else 'http'}://{Address(reachable, address.port)}"
