"""HTTP clients of the control app: they send calls, and send them again if that is safe.

A hub is given by its URL: `http://`, `https://`, or `unix:PATH` for a Unix socket. With several, those of the nodes of
one deployment, each attempt of a call goes to the next one.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import httpx

from .errors import ConfigError, InvalidRequest, Unavailable, WrongEventLoop
from .fields import one_or_many
from .loglimit import limited_logger
from .publisher_calls import Attempts, Call, Outcome, problem_of, read
from .publisher_http import Node
from .trust import client_context
from .urls import without_credentials

logger = limited_logger("ssehub.publisher")

DEFAULT_URL = "http://127.0.0.1:8001"
DEFAULT_TIMEOUT_SECONDS = 10.0
UNIX = "unix:"


class _Url(NamedTuple):
    """A URL as it was given, without user name and password, and what they are."""

    url: httpx.URL
    login: tuple[str, str] | None
    socket_path: str | None
    shown: str

    @classmethod
    def parse(cls, text: str) -> _Url:
        """Raises ConfigError, which does not show a password in `text`."""
        if isinstance(text, str) and text.startswith(UNIX) and "\0" not in text and text != UNIX:
            return cls(httpx.URL("http://localhost"), None, text.removeprefix(UNIX), text)
        try:
            url = httpx.URL(text)
        except (httpx.InvalidURL, TypeError):
            url = httpx.URL("")
        # httpx accepts ports that there can't be
        is_valid = url.scheme in ("http", "https") and url.host and (url.port or 0) < 65_536
        if not is_valid or url.query or url.fragment:
            shown = without_credentials(text) if isinstance(text, str) else text
            raise ConfigError(f"{shown!r} is not a URL such as {DEFAULT_URL} or unix:/run/ssehub.sock")
        # httpx logs the URL of each request, and an exception refers to its request: neither may show the password.
        login = (url.username, url.password) if url.userinfo else None
        bare = url.copy_with(userinfo=b"")
        return cls(bare, login, None, without_credentials(str(bare)).rstrip("/"))


class Hubs:
    """The addresses of one deployment, and what is sent with every request. Raises ConfigError."""

    def __init__(
        self,
        url: str | Sequence[str] = DEFAULT_URL,
        *,
        control_key: str | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._urls = [_Url.parse(each) for each in one_or_many(url)]
        if not self._urls:
            raise ConfigError(f"no URL is given: expected one such as {DEFAULT_URL}")
        self.shown = ", ".join([each.shown for each in self._urls])
        """For messages."""
        logins = {each.login for each in self._urls}
        if len(logins) > 1:
            raise ConfigError(f"{self.shown}: the URLs of one publisher must have the same user name and password")
        (self._login,) = logins
        self._key_header = {}
        if control_key is not None:
            if self._login is not None:
                raise ConfigError(
                    f"{self.shown}: a user name in the URL and control_key can't both be sent: remove one of them"
                )
            self._key_header["Authorization"] = f"Bearer {header_value('control_key', control_key)}"
        is_tls = any(each.url.scheme == "https" for each in self._urls)
        self._tls = client_context() if is_tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # this one trusts nobody
        self._timeout_seconds = timeout_seconds

    def nodes(self) -> list[Node]:
        """Return them as the writers of runs need them."""
        header = self._key_header if self._login is None else {"Authorization": _basic(*self._login)}
        return [_node(each, self._tls, header) for each in self._urls]

    def clients(self) -> list[httpx.Client]:
        """Return a client for each of them. A transport of its own makes httpx ignore proxies in the environment."""
        return [
            httpx.Client(transport=httpx.HTTPTransport(verify=self._tls, uds=each.socket_path), **self._options(each))
            for each in self._urls
        ]

    def async_clients(self) -> list[httpx.AsyncClient]:
        return [
            httpx.AsyncClient(
                transport=httpx.AsyncHTTPTransport(verify=self._tls, uds=each.socket_path), **self._options(each)
            )
            for each in self._urls
        ]

    def _options(self, url: _Url) -> dict[str, Any]:
        return {
            "base_url": url.url,
            "auth": self._login,
            "headers": {"Content-Type": "application/json", **self._key_header},
            "timeout": self._timeout_seconds,
        }


def _node(url: _Url, tls: ssl.SSLContext, headers: Mapping[str, str]) -> Node:
    is_tls = url.url.scheme == "https"
    return Node(
        url.shown,
        url.url.raw_host.decode(),
        url.url.port or (443 if is_tls else 80),
        url.url.raw_path.decode().rstrip("/"),
        tls if is_tls else None,
        {"Host": url.url.netloc.decode(), **headers},
        url.socket_path,
    )


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def header_value(name: str, value: object) -> str:
    """Return `value`. Raises InvalidRequest if no header can have it."""
    if not (isinstance(value, str) and value.isascii() and value.isprintable()):
        raise InvalidRequest(f"{name} can't be sent in a header: use printable ASCII characters")
    return value


class Client:
    """Sends calls, and blocks meanwhile. Threads may share one."""

    def __init__(self, hubs: Hubs, retries: int) -> None:
        self._hubs = hubs
        self._retries = retries
        self._clients = hubs.clients()

    def send(self, call: Call) -> dict[str, Any]:
        """Return the fields of the response. Raises what `publisher_calls.read` does."""
        attempts = Attempts(call, self._retries)
        outcome = self._attempt(call, 0)
        while (wait := attempts.wait_after(outcome)) is not None:
            _log_retry(self._hubs.shown, attempts, outcome)
            time.sleep(wait)
            outcome = self._attempt(call, attempts.failed)
        return read(self._hubs.shown, outcome)

    def _attempt(self, call: Call, number: int) -> Outcome:
        client = self._clients[number % len(self._clients)]
        check_open(is_closed=client.is_closed)
        try:
            return client.request(call.method, call.path, content=call.body, headers=call.headers)
        except httpx.HTTPError as exc:
            return exc

    @property
    def is_closed(self) -> bool:
        return self._clients[0].is_closed

    def close(self) -> None:
        for client in self._clients:
            client.close()


class AsyncClient:
    """`Client` for code in an event loop. When that has been closed, it goes on in a new one."""

    def __init__(self, hubs: Hubs, retries: int) -> None:
        self._hubs = hubs
        self._retries = retries
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clients = hubs.async_clients()

    async def send(self, call: Call) -> dict[str, Any]:
        """Return the fields of the response. Raises what `publisher_calls.read` does, and WrongEventLoop."""
        check_open(is_closed=self.is_closed)
        self._enter_loop(asyncio.get_running_loop())
        attempts = Attempts(call, self._retries)
        outcome = await self._attempt(call, 0)
        while (wait := attempts.wait_after(outcome)) is not None:
            _log_retry(self._hubs.shown, attempts, outcome)
            await asyncio.sleep(wait)
            outcome = await self._attempt(call, attempts.failed)
        return read(self._hubs.shown, outcome)

    async def _attempt(self, call: Call, number: int) -> Outcome:
        client = self._clients[number % len(self._clients)]
        check_open(is_closed=client.is_closed)
        try:
            return await client.request(call.method, call.path, content=call.body, headers=call.headers)
        except httpx.HTTPError as exc:
            return exc

    def _enter_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is loop:
            return
        if self._loop is not None:
            if not self._loop.is_closed():
                raise WrongEventLoop("the publisher is in use in another event loop: make one for each loop")
            self._clients = self._hubs.async_clients()  # the connections of the old ones ended with their loop
        self._loop = loop

    @property
    def is_closed(self) -> bool:
        return self._clients[0].is_closed

    async def aclose(self) -> None:
        for client in self._clients:
            await client.aclose()


def check_open(*, is_closed: bool) -> None:
    """Raise Unavailable if a publisher is closed."""
    if is_closed:
        raise Unavailable("the publisher is closed: make a new one; nothing was sent")


def _log_retry(url: str, attempts: Attempts, outcome: Outcome) -> None:
    if attempts.failed == 1:  # once for each call
        logger.warning("%s can't be used at present (%s): trying again", url, problem_of(outcome))
