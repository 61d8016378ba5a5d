"""A client of the control app: publishes to a hub in another process, and asks it for tokens.

Needs httpx: `pip install 'ssehub[cli]'`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Required, Self, TypedDict, Unpack
from uuid import uuid4

try:
    import httpx
except ImportError as exc:
    raise ImportError("ssehub.Publisher needs httpx: pip install 'ssehub[cli]'") from exc

from .errors import ConfigError, ControlKeyError, Forbidden, InvalidRequest, SSEHubError, Unavailable, WrongEventLoop

DEFAULT_URL = "http://127.0.0.1:8001"
DEFAULT_TIMEOUT_SECONDS = 10.0
RETRY_SECONDS = (0.2, 1.0)
"""How long to wait before the same is sent again."""
NOT_NOW = (502, 503, 504)
_ERRORS: dict[int, type[SSEHubError]] = {401: ControlKeyError, 403: Forbidden}
_NO_CONNECTION = (httpx.ConnectError, httpx.ConnectTimeout)
_Outcome = httpx.Response | httpx.HTTPError


class _Calls:
    """What is sent and how answers are read, the same for both publishers."""

    def __init__(self, url: str, control_key: str | None, timeout_seconds: float) -> None:
        try:
            parts = httpx.URL(url)
        except (httpx.InvalidURL, TypeError) as exc:
            raise ConfigError(f"{url!r} is no URL such as {DEFAULT_URL}: {exc}") from exc
        if parts.scheme not in ("http", "https") or not parts.host:
            raise ConfigError(f"{url!r} is no URL such as {DEFAULT_URL}")
        self._url = url.rstrip("/")
        _check_header("control_key", control_key)
        headers = {"Content-Type": "application/json"}
        if control_key is not None:
            headers["Authorization"] = f"Bearer {control_key}"
        # With a transport of its own httpx asks no proxy that the environment names: a hub's private port is near.
        self._options: dict[str, Any] = {"base_url": self._url, "headers": headers, "timeout": timeout_seconds}

    @staticmethod
    def _check_open(client: httpx.Client | httpx.AsyncClient) -> None:
        if client.is_closed:
            raise Unavailable("the publisher has been closed: make a new one; nothing was sent")

    @staticmethod
    def _body(value: object) -> bytes:
        try:
            return json.dumps(value, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as exc:
            raise InvalidRequest(f"the event can't be written as JSON ({exc}): give what JSON can hold") from exc

    def _answer(self, outcome: _Outcome) -> Any:
        if isinstance(outcome, httpx.HTTPError):
            raise self._no_answer(outcome) from outcome
        if outcome.status_code == 200:
            try:
                return _Answer(outcome.json())
            except (TypeError, ValueError):
                raise Unavailable(f"{self._url} answers as no hub does: {outcome.text[:80]!r}") from None
        kind = _ERRORS.get(outcome.status_code, InvalidRequest if outcome.status_code < 500 else Unavailable)
        raise kind(f"{self._url} answered {outcome.status_code}: {_reason(outcome)}")

    @staticmethod
    def _headers(key: str | None) -> dict[str, str]:
        _check_header("idempotency_key", key)
        return {"Idempotency-Key": key or uuid4().hex}

    def _no_answer(self, exc: httpx.HTTPError) -> Unavailable:
        if isinstance(exc, _NO_CONNECTION):
            return Unavailable(f"{self._url} can't be reached ({exc}): nothing was sent")
        return Unavailable(f"{self._url} gave no answer ({type(exc).__name__}): the event may or may not be stored")


def _may_repeat(outcome: _Outcome, *, has_key: bool) -> bool:
    """Whether sending the same once more may help, and does nothing twice."""
    if isinstance(outcome, httpx.HTTPError):
        return has_key or isinstance(outcome, _NO_CONNECTION)
    return has_key and outcome.status_code in NOT_NOW


class _Answer(dict[str, Any]):
    """What a hub answers: an object, in which nothing is missed."""

    def __missing__(self, name: str) -> Any:
        raise Unavailable(f"the answer has no {name}: what answers is no hub")


def _check_header(name: str, value: str | None) -> None:
    if value is not None and not (isinstance(value, str) and value.isascii() and value.isprintable()):
        raise InvalidRequest(f"{name} can't stand in a header: write printable ASCII")


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return " ".join(response.text.split())[:500]


class EventFields(TypedDict, total=False):
    """One event, in the words of `Hub.publish`; `payload` is raw stream text in place of the rest."""

    channel: Required[str | Sequence[str]]
    user_id: Required[str | Sequence[str]]
    data: object
    type: str | None
    id: str | None
    retry: int | None
    payload: str | None
    store: bool
    ttl: float | None


_WIRE_NAMES = {"user_id": "userId", "type": "event"}


def _wire(event: EventFields) -> dict[str, object]:
    """`event` as `POST /emit/` takes it."""
    wire = {_WIRE_NAMES.get(name, name): value for name, value in event.items() if value is not None}
    if "data" in event and event["data"] is None:
        wire["data"] = "null"  # as `Hub.publish` writes it
    return wire


class Publisher(_Calls):
    """Publishes over HTTP, blocking. Use it in `with`, or `close` it; it may be shared by threads.

    It tries twice more where it can't connect, and where an event is not answered, or by 502, 503 or 504: its
    idempotency key sees to it that nothing is published twice. The key is a random one unless you give
    `idempotency_key`, to be safe across restarts of your own program, too. `timeout_seconds` is for connecting, and for
    each wait for the answer.

    Raises InvalidRequest for what the hub refuses, ControlKeyError and Forbidden for who asks, Unavailable when it
    can't be reached or says to try again later.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        control_key: str | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        super().__init__(url, control_key, timeout_seconds)
        self._http = httpx.Client(transport=httpx.HTTPTransport(), **self._options)

    def emit(self, *, idempotency_key: str | None = None, **event: Unpack[EventFields]) -> str:
        """Publish one event, and return its id."""
        return str(self._post("/emit/", _wire(event), self._headers(idempotency_key))["id"])

    def emit_many(self, events: Sequence[EventFields], *, idempotency_key: str | None = None) -> list[str]:
        """Publish a batch, all or none, and return the ids."""
        headers = self._headers(idempotency_key)
        ids: list[str] = self._post("/emit/", [_wire(event) for event in events], headers)["ids"]
        return ids

    def token(self, user_id: str, channel: str | Sequence[str], *, expires_in_seconds: int | None = None) -> str:
        """A token for `user_id` on one channel or several."""
        return str(self._post("/token/", _token_fields(user_id, channel, expires_in_seconds))["token"])

    def _post(self, path: str, value: object, headers: dict[str, str] | None = None) -> Any:
        self._check_open(self._http)
        body = self._body(value)
        outcome = self._try(path, body, headers)
        for wait in RETRY_SECONDS:
            if not _may_repeat(outcome, has_key=headers is not None):
                break
            time.sleep(wait)
            outcome = self._try(path, body, headers)
        return self._answer(outcome)

    def _try(self, path: str, body: bytes, headers: dict[str, str] | None) -> _Outcome:
        try:
            return self._http.post(path, content=body, headers=headers)
        except httpx.HTTPError as exc:
            return exc

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncPublisher(_Calls):
    """`Publisher` for code in an event loop. Use it in `async with`, or `aclose` it.

    It goes on in a new event loop when the old one has ended, and raises WrongEventLoop where that still lives.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        control_key: str | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        super().__init__(url, control_key, timeout_seconds)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._http = self._client()

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(), **self._options)

    async def emit(self, *, idempotency_key: str | None = None, **event: Unpack[EventFields]) -> str:
        """As `Publisher.emit`."""
        return str((await self._post("/emit/", _wire(event), self._headers(idempotency_key)))["id"])

    async def emit_many(self, events: Sequence[EventFields], *, idempotency_key: str | None = None) -> list[str]:
        """As `Publisher.emit_many`."""
        headers = self._headers(idempotency_key)
        ids: list[str] = (await self._post("/emit/", [_wire(event) for event in events], headers))["ids"]
        return ids

    async def token(self, user_id: str, channel: str | Sequence[str], *, expires_in_seconds: int | None = None) -> str:
        """As `Publisher.token`."""
        return str((await self._post("/token/", _token_fields(user_id, channel, expires_in_seconds)))["token"])

    async def _post(self, path: str, value: object, headers: dict[str, str] | None = None) -> Any:
        self._check_open(self._http)
        body = self._body(value)
        self._enter_loop(asyncio.get_running_loop())
        outcome = await self._try(path, body, headers)
        for wait in RETRY_SECONDS:
            if not _may_repeat(outcome, has_key=headers is not None):
                break
            await asyncio.sleep(wait)
            outcome = await self._try(path, body, headers)
        return self._answer(outcome)

    def _enter_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is loop:
            return
        if self._loop is not None:
            if not self._loop.is_closed():
                raise WrongEventLoop("the publisher is at work in another event loop: make one for each")
            self._http = self._client()  # the old one's connections ended with their loop
        self._loop = loop

    async def _try(self, path: str, body: bytes, headers: dict[str, str] | None) -> _Outcome:
        try:
            return await self._http.post(path, content=body, headers=headers)
        except httpx.HTTPError as exc:
            return exc

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _token_fields(user_id: str, channel: str | Sequence[str], expires_in_seconds: int | None) -> dict[str, Any]:
    name = "channel" if isinstance(channel, str) else "channels"
    fields: dict[str, Any] = {"userId": user_id, name: channel if isinstance(channel, str) else list(channel)}
    return fields if expires_in_seconds is None else {**fields, "exp": expires_in_seconds}
