"""An HTTP client of the control app: publishes to a hub in another process, and gets tokens from it.

Needs httpx: `pip install 'ssehub[cli]'`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Required, Self, TypedDict, Unpack
from uuid import uuid4

try:
    import httpx
except ImportError as exc:
    raise ImportError("ssehub.Publisher needs httpx: pip install 'ssehub[cli]'") from exc

from .errors import ConfigError, InvalidRequest, Unavailable, WrongEventLoop
from .fields import one_or_many
from .publisher_http import TEMPORARY_STATUSES, Node, refusal
from .publisher_route import Patience
from .publisher_run import HttpRuns
from .publisher_thread import LoopThread
from .runs.arguments import RunArguments, make_order
from .runs.producer import ProducedRun
from .runs.threads import SyncProducedRun
from .trust import client_context, tls_problem
from .urls import without_credentials

DEFAULT_URL = "http://127.0.0.1:8001"
DEFAULT_TIMEOUT_SECONDS = 10.0
RETRY_SECONDS = (0.2, 1.0)
"""How long to wait before each further attempt."""
_NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout)
_Outcome = httpx.Response | httpx.HTTPError


class EventFields(TypedDict, total=False):
    """One event, with the field names of `Hub.publish`. `payload` is raw stream text that replaces the other fields."""

    channel: Required[str | Sequence[str]]
    user_id: Required[str | Sequence[str]]
    data: object
    type: str | None
    id: str | None
    retry: int | None
    payload: str | None
    store: bool
    ttl: float | None


class _Call(NamedTuple):
    """One POST request. With an idempotency key in its headers, it is safe to send it again."""

    path: str
    body: bytes
    headers: Mapping[str, str]

    def may_be_repeated(self, outcome: _Outcome) -> bool:
        """True if another attempt may succeed, and can't do anything twice."""
        has_key = bool(self.headers)
        if isinstance(outcome, httpx.HTTPError):
            return (has_key or isinstance(outcome, _NOT_CONNECTED)) and tls_problem(outcome) is None
        return has_key and outcome.status_code in TEMPORARY_STATUSES


class _Client:
    """What both publishers share: the options of their httpx clients, and how responses are read."""

    def __init__(self, url: str | Sequence[str], control_key: str | None, timeout_seconds: float) -> None:
        urls = [_parsed(each) for each in one_or_many(url)]
        if not urls:
            raise ConfigError(f"no URL is given: expected one such as {DEFAULT_URL}")
        # httpx logs the URL of each request, and an exception refers to its request: neither may show the password.
        logins = {(each.username, each.password) if each.userinfo else None for each in urls}
        bare_urls = [each.copy_with(userinfo=b"") for each in urls]
        self._bases = [str(each).rstrip("/") for each in bare_urls]
        self._url = ", ".join(map(without_credentials, self._bases))
        if len(logins) > 1:
            raise ConfigError(f"{self._url}: the URLs of one publisher must have the same user name and password")
        (login,) = logins
        key_header = {}
        if control_key is not None:
            if login is not None:
                raise ConfigError(
                    f"{self._url}: a user name in the URL and control_key can't both be sent: remove one of them"
                )
            key_header["Authorization"] = f"Bearer {_header_value('control_key', control_key)}"
        # The publishers add a transport of their own: httpx then ignores proxies that the environment names.
        is_tls = any(each.scheme == "https" for each in urls)
        self._tls = client_context() if is_tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # this one trusts nobody
        self._options: dict[str, Any] = {
            "auth": login,
            "headers": {"Content-Type": "application/json", **key_header},
            "timeout": timeout_seconds,
        }
        run_header = key_header if login is None else {"Authorization": _basic(*login)}
        nodes = [_node(each, self._tls, run_header) for each in bare_urls]
        self._runs = HttpRuns(nodes, Patience(answer_seconds=timeout_seconds))

    def _address(self, call: _Call, attempt: int) -> str:
        """Return where to send `call`, at the given attempt, counted from 0."""
        return self._bases[attempt % len(self._bases)] + call.path

    def _read(self, outcome: _Outcome) -> dict[str, Any]:
        if isinstance(outcome, _NOT_CONNECTED):
            reason = tls_problem(outcome) or outcome
            raise Unavailable(f"{self._url} can't be reached ({reason}): nothing was sent") from outcome
        if isinstance(outcome, httpx.HTTPError):
            kind = type(outcome).__name__
            raise Unavailable(f"no response from {self._url} ({kind}): the event may or may not be stored") from outcome
        if outcome.status_code != 200:
            raise refusal(self._url, outcome.status_code, _reason(outcome))
        try:
            return _Fields(outcome.json())
        except (TypeError, ValueError):
            raise Unavailable(f"{self._url} is not a hub: unexpected response {outcome.text[:80]!r}") from None


def _node(url: httpx.URL, tls: ssl.SSLContext, headers: Mapping[str, str]) -> Node:
    is_tls = url.scheme == "https"
    return Node(
        without_credentials(str(url)).rstrip("/"),
        url.raw_host.decode(),
        url.port or (443 if is_tls else 80),
        url.raw_path.decode().rstrip("/"),
        tls if is_tls else None,
        {"Host": url.netloc.decode(), **headers},
    )


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _parsed(url: str) -> httpx.URL:
    """Raises ConfigError, which does not show a password in `url`."""
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        parts = httpx.URL("")
    if parts.scheme not in ("http", "https") or not parts.host or parts.query or parts.fragment:
        shown = without_credentials(url) if isinstance(url, str) else url
        raise ConfigError(f"{shown!r} is not a URL such as {DEFAULT_URL}")
    return parts


class _Fields(dict[str, Any]):
    """The JSON object that a hub responds with. A missing field raises Unavailable."""

    def __missing__(self, name: str) -> Any:
        raise Unavailable(f"not a hub: the response has no field {name}")


class Publisher(_Client):
    """Publishes over HTTP and blocks meanwhile. Use it in `with`, or call `close`. Threads may share one.

    It makes up to two further attempts if it can't connect (unless the hub's certificate can't be verified) and, for
    events, if there is no response or if it is 502, 503 or 504. An idempotency key makes sure that nothing is published
    twice. The key is random, unless you give `idempotency_key` so that your program can safely publish again after a
    restart. `timeout_seconds` applies to connecting, and to each wait for the response. With an `https://` URL, the
    certificate is checked against the CAs of this machine, or those in the file that SSL_CERT_FILE names.

    `url` may be a sequence: the nodes of one deployment, each of which is tried if the one before it fails.

    Raises InvalidRequest if the hub refuses the request, ControlKeyError or Forbidden if it refuses the caller, and
    Unavailable if the hub can't be reached or asks to try again later.
    """

    def __init__(
        self,
        url: str | Sequence[str] = DEFAULT_URL,
        *,
        control_key: str | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        super().__init__(url, control_key, timeout_seconds)
        self._http = httpx.Client(transport=httpx.HTTPTransport(verify=self._tls), **self._options)
        self._thread = LoopThread()

    def emit(self, *, idempotency_key: str | None = None, **event: Unpack[EventFields]) -> str:
        """Publish one event and return its id."""
        return str(self._post(_emit(_wire(event), idempotency_key))["id"])

    def emit_many(self, events: Sequence[EventFields], *, idempotency_key: str | None = None) -> list[str]:
        """Publish a batch, all of it or nothing, and return the ids."""
        ids: list[str] = self._post(_emit([_wire(event) for event in events], idempotency_key))["ids"]
        return ids

    def token(
        self,
        user_id: str,
        channel: str | Sequence[str] = (),
        *,
        patterns: Sequence[str] = (),
        expires_in_seconds: int | None = None,
    ) -> str:
        """Return a token for `user_id` on one channel or several, on patterns such as `orders.*`, or both."""
        return str(self._post(_issue_token(user_id, channel, patterns, expires_in_seconds))["token"])

    def run(self, name: str, **arguments: Unpack[RunArguments]) -> SyncProducedRun:
        """Produce a run: see `Hub.run`. Enter it with `with`; then `append`, which waits only if the hub is slow.

        The events are sent by a thread, over one connection, as they come. What is not known to be stored is kept, up
        to about 1 MiB (beyond that, `append` waits), and sent again to the hub after its restart, or to another node,
        whichever of the URLs and of their addresses works. Leaving the block waits until the end of the run is stored.

        Raises what `Hub.run` does, also ControlKeyError and Forbidden; and Unavailable after 60 s without a hub that
        works. A run that the hub has lost (one in memory, after a restart) raises RunLost.
        """
        _check_open(self._http)
        return self._runs.produce_sync(make_order(name, **arguments), self._thread.call)

    def _post(self, call: _Call) -> dict[str, Any]:
        _check_open(self._http)
        outcome = self._attempt(call)
        for attempt, wait in enumerate(RETRY_SECONDS, 1):
            if not call.may_be_repeated(outcome):
                break
            time.sleep(wait)
            outcome = self._attempt(call, attempt)
        return self._read(outcome)

    def _attempt(self, call: _Call, attempt: int = 0) -> _Outcome:
        try:
            return self._http.post(self._address(call, attempt), content=call.body, headers=call.headers)
        except httpx.HTTPError as exc:
            return exc

    def close(self) -> None:
        """Close the connections. A run that has not ended is given up: leave its block first."""
        self._http.close()
        self._thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncPublisher(_Client):
    """`Publisher` for code in an event loop. Use it in `async with`, or call `aclose`.

    If its event loop has been closed, it continues in a new one. While the first loop still exists, calls from another
    one raise WrongEventLoop.
    """

    def __init__(
        self,
        url: str | Sequence[str] = DEFAULT_URL,
        *,
        control_key: str | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        super().__init__(url, control_key, timeout_seconds)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._http = self._new_client()

    def _new_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(verify=self._tls), **self._options)

    async def emit(self, *, idempotency_key: str | None = None, **event: Unpack[EventFields]) -> str:
        """Publish one event and return its id."""
        return str((await self._post(_emit(_wire(event), idempotency_key)))["id"])

    async def emit_many(self, events: Sequence[EventFields], *, idempotency_key: str | None = None) -> list[str]:
        """Publish a batch, all of it or nothing, and return the ids."""
        ids: list[str] = (await self._post(_emit([_wire(event) for event in events], idempotency_key)))["ids"]
        return ids

    async def token(
        self,
        user_id: str,
        channel: str | Sequence[str] = (),
        *,
        patterns: Sequence[str] = (),
        expires_in_seconds: int | None = None,
    ) -> str:
        """Return a token for `user_id` on one channel or several, on patterns such as `orders.*`, or both."""
        return str((await self._post(_issue_token(user_id, channel, patterns, expires_in_seconds)))["token"])

    def run(self, name: str, **arguments: Unpack[RunArguments]) -> ProducedRun:
        """Produce a run: see `Publisher.run`. Enter it with `async with`; the block is interrupted as in `Hub.run`."""
        _check_open(self._http)
        return self._runs.produce(make_order(name, **arguments))

    async def _post(self, call: _Call) -> dict[str, Any]:
        _check_open(self._http)
        self._enter_loop(asyncio.get_running_loop())
        outcome = await self._attempt(call)
        for attempt, wait in enumerate(RETRY_SECONDS, 1):
            if not call.may_be_repeated(outcome):
                break
            await asyncio.sleep(wait)
            outcome = await self._attempt(call, attempt)
        return self._read(outcome)

    def _enter_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is loop:
            return
        if self._loop is not None:
            if not self._loop.is_closed():
                raise WrongEventLoop("the publisher is in use in another event loop: make one for each loop")
            self._http = self._new_client()  # the connections of the old client ended with their loop
        self._loop = loop

    async def _attempt(self, call: _Call, attempt: int = 0) -> _Outcome:
        try:
            return await self._http.post(self._address(call, attempt), content=call.body, headers=call.headers)
        except httpx.HTTPError as exc:
            return exc

    async def aclose(self) -> None:
        """Close the connections. A run that has not ended is given up: leave its block first."""
        await self._http.aclose()
        await self._runs.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _emit(event_or_batch: object, idempotency_key: str | None) -> _Call:
    key = _header_value("idempotency_key", idempotency_key) if idempotency_key else uuid4().hex
    return _Call("/emit/", _json(event_or_batch), {"Idempotency-Key": key})


_WIRE_NAMES = {"user_id": "userId", "type": "event"}


def _wire(event: EventFields) -> dict[str, object]:
    """Return the fields of `event` with the names of `POST /emit/`."""
    wire = {_WIRE_NAMES.get(name, name): value for name, value in event.items() if value is not None}
    if "data" in event and event["data"] is None:
        wire["data"] = "null"  # as `Hub.publish` writes it
    return wire


def _issue_token(
    user_id: str, channel: str | Sequence[str], patterns: Sequence[str], expires_in_seconds: int | None
) -> _Call:
    name = "channel" if isinstance(channel, str) else "channels"
    fields: dict[str, Any] = {"userId": user_id, name: channel if isinstance(channel, str) else list(channel)}
    if patterns:
        fields["patterns"] = [patterns] if isinstance(patterns, str) else list(patterns)
    if expires_in_seconds is not None:
        fields["exp"] = expires_in_seconds
    return _Call("/token/", _json(fields), {})


def _json(value: object) -> bytes:
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidRequest(f"the event can't be written as JSON ({exc}): use values that JSON supports") from exc


def _header_value(name: str, value: object) -> str:
    if not (isinstance(value, str) and value.isascii() and value.isprintable()):
        raise InvalidRequest(f"{name} can't be sent in a header: use printable ASCII characters")
    return value


def _check_open(client: httpx.Client | httpx.AsyncClient) -> None:
    if client.is_closed:
        raise Unavailable("the publisher is closed: make a new one; nothing was sent")


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return " ".join(response.text.split())[:500]
