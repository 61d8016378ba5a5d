"""A stream of events, followed over cuts, restarts and busy answers, as a browser follows it.

httpx-sse reads the frames. It also yields events without data, which the standard does not dispatch: they are skipped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

import click
import httpx
from httpx_sse import ServerSentEvent, SSEError, connect_sse

from ..publisher_client import Hubs
from ..trust import tls_problem

SILENCE_SECONDS = 90.0
"""Without a byte for so long, also no heartbeat, the connection is taken for lost."""
CONNECT_SECONDS = 10.0
FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 5.0
FINISHED_BEFORE = 204
"""The status with which a hub answers a client that comes back to a run that it has all of."""
TEMPORARY_STATUSES = (408, 429, 500, 502, 503, 504)
FAREWELLS = {
    "stream-busy": "the hub is full, or not ready",
    "stream-drain": "the hub is about to stop",
    "stream-lifetime": "the stream has reached its maximum lifetime",
}
"""Why a client is to come back, by the event that says so. Then the connection is cut or ends."""


def client_for(url: str, control_key: str | None = None) -> httpx.Client:
    """Return what follows streams at `url`. Raises ConfigError for a URL that can't be used."""
    (client,) = Hubs(url, control_key=control_key).clients()
    client.timeout = httpx.Timeout(CONNECT_SECONDS, read=SILENCE_SECONDS)
    return client


class Refused(Exception):
    """The hub does not open the stream, and would not the next time, either."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Follower:
    """Opens the stream at `path` of `client` again and again. `tell` is given notes for the user.

    Without a `token`, the client sends what it needs itself.

    Until it has been open once, it is tried `retries` more times; after that without end.
    """

    def __init__(
        self,
        client: httpx.Client,
        path: str,
        *,
        token: str | None = None,
        parameters: Mapping[str, str | list[str]],
        retries: int,
        tell: Callable[[str], None],
    ) -> None:
        self._client = client
        self._path = path
        self._token = token
        self._parameters = parameters
        self._retries = retries
        self._tell = tell
        self._cursor: str | None = None
        self._has_been_open = False
        self._failures = 0
        """Attempts in a row that brought no frame."""
        self._retry_seconds: float | None = None
        """How long the server has asked to wait."""
        self._farewell: str | None = None
        """Why the server has asked to come back."""

    def events(self) -> Iterator[ServerSentEvent]:
        """Yield the events, also those of the hub's own, until the hub says that there are no more.

        Raises Refused, and click.ClickException if the hub can't be reached.
        """
        while True:
            problem = "the stream has ended"
            self._retry_seconds = self._farewell = None
            try:
                with connect_sse(
                    self._client, "GET", self._path, headers=self._headers(), params=dict(self._parameters)
                ) as source:
                    if source.response.status_code == FINISHED_BEFORE:
                        return
                    if source.response.is_success:
                        yield from self._read(source.iter_sse())
                    else:
                        problem = self._problem(source.response)
            except (httpx.TransportError, SSEError) as exc:
                if isinstance(exc, SSEError):
                    self._fail(f"not a stream of events: {exc}")
                problem = tls_problem(exc) or str(exc) or type(exc).__name__
                if tls_problem(exc):
                    self._fail(problem)
            self._wait(self._farewell or problem)

    def _read(self, events: Iterator[ServerSentEvent]) -> Iterator[ServerSentEvent]:
        self._has_been_open = True
        for event in events:
            if self._failures:
                self._failures = 0
            if event.id:
                self._cursor = event.id
            if event.retry is not None:
                self._retry_seconds = event.retry / 1000
            self._farewell = FAREWELLS.get(event.event)
            if event.data:
                yield event

    def _headers(self) -> dict[str, str]:
        headers = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        if self._cursor is not None:
            headers["Last-Event-ID"] = self._cursor
        return headers

    def _problem(self, response: httpx.Response) -> str:
        """Return why the hub has not opened the stream at present. Raises Refused if it never will."""
        text = " ".join(response.read().decode(errors="replace").split())[:500]
        message = f"{self._client.base_url} responded with {response.status_code}: {text}"
        if response.status_code not in TEMPORARY_STATUSES:
            raise Refused(response.status_code, message)
        asked = response.headers.get("Retry-After", "")
        self._retry_seconds = float(asked) if asked.isascii() and asked.isdigit() else None
        return message

    def _wait(self, problem: str) -> None:
        if not self._has_been_open and self._failures >= self._retries:
            self._fail(problem)
        if not self._failures:
            self._tell(f"{problem}: reconnecting")
        wait = min(FIRST_WAIT_SECONDS * 2.0 ** min(self._failures, 10), LONGEST_WAIT_SECONDS)
        self._failures += 1
        time.sleep(max(wait, self._retry_seconds or 0.0))

    def _fail(self, problem: str) -> NoReturn:
        raise click.ClickException(f"{self._client.base_url} can't be used: {problem}")
