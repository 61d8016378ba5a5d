"""Fetching the keys of an identity provider: a JWKS behind a URL (RFC 7517, 5). The only room here that uses httpx.

    refresh      in the background, as often as `Cache-Control` of the answer says, within bounds; sooner if it failed
    ask          for a token that names an unknown key: one fetch for all who wait, and at most one a minute

A set that can't be fetched or used changes nothing: the last good one stays in use. One line says so when fetching
begins to fail, and another one when it works again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..address import is_loopback_host
from ..errors import ConfigError, KeysUnavailable
from ..trust import causes, client_context, tls_problem
from ..urls import without_credentials

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger("ssehub.tokens")

REFRESH_SECONDS = 600.0
MIN_REFRESH_SECONDS, MAX_REFRESH_SECONDS = 60.0, 3_600.0
"""The bounds of what `Cache-Control: max-age` may ask for."""
FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 60.0
CONNECT_SECONDS, READ_SECONDS, TOTAL_SECONDS = 3.0, 5.0, 10.0
MAX_BYTES = 2**20
ASK_SECONDS = 60.0
"""The least time between two fetches that tokens with unknown keys cause."""
WAIT_SECONDS = 2.0
"""How long a request with such a token waits."""
_MAX_AGE = re.compile(r"(?:^|[\s,])max-age=\"?(\d{1,10})", re.IGNORECASE)
_HEADERS = {"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"}
"""Not compressed: a megabyte of gzip can become a gigabyte."""


class FetchFailed(Exception):
    """Why the set could not be fetched."""


class FetchedKeys:
    """The set at `url`. `apply` puts its text to use, and returns a summary of it for the log.

    `apply` raises ConfigError for a text that can't be used, and then changes nothing. `content` is what another
    process has fetched last. Raises ConfigError if the URL can't be used.
    """

    def __init__(
        self,
        url: str,
        apply: Callable[[str], str],
        *,
        content: str | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_local = _check_url(url)
        self._url = url
        self._apply = apply
        self._monotonic = monotonic
        import httpx  # a hub without a URL need not load it

        self._httpx = httpx
        self.failures = 0
        self.content: str | None = None
        """The last good set."""
        self._fetched_at = monotonic()
        """When a good set was last fetched, or the object made."""
        self._failing: str | None = None
        """Why the last fetch failed."""
        self._due = self._may_ask_at = monotonic()
        self._pause = FIRST_RETRY_SECONDS
        self._task: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        """Set when `_due` has changed. Replaced by each wait, as an event belongs to one event loop."""
        if content is not None:
            apply(content)
            self.content = content

    @property
    def problem(self) -> str | None:
        """Why there are no keys yet. None once there is a set, however old."""
        if self.content is not None:
            return None
        return self._failing or f"the keys at {self._name} have not been fetched yet"

    @property
    def age_seconds(self) -> float:
        """How long ago a good set was fetched; if none has been, how long ago fetching began."""
        return self._monotonic() - self._fetched_at

    @property
    def due_in_seconds(self) -> float:
        """In how many seconds the set is to be fetched again."""
        return self._due - self._monotonic()

    @property
    def _name(self) -> str:
        return without_credentials(self._url)

    async def run(self) -> None:
        """Fetch whenever it is due, until cancelled."""
        try:
            while True:
                woken = self._woken = asyncio.Event()
                if (wait := self.due_in_seconds) <= 0:
                    await asyncio.shield(self._fetching())
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await woken.wait()
        finally:
            if (task := self._task_of_this_loop()) is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def reload(self) -> None:
        """Fetch now."""
        await asyncio.shield(self._fetching())

    async def ask(self) -> None:
        """Fetch, because a token names a key that is not known, and wait for that, but at most 2 s.

        Returns if the set that is in use is the newest. Raises KeysUnavailable if it may not be.
        """
        task = self._task_of_this_loop()
        if task is None and self._monotonic() >= (self._due if self.content is None else self._may_ask_at):
            self._may_ask_at = self._monotonic() + ASK_SECONDS
            task = self._fetching()
        if task is not None:
            await asyncio.wait({task}, timeout=WAIT_SECONDS)
            if not task.done() or task.cancelled():
                raise KeysUnavailable(f"the keys at {self._name} have not been fetched within {WAIT_SECONDS:g} s")
        if self._failing is not None:
            raise KeysUnavailable(self._failing)

    def _task_of_this_loop(self) -> asyncio.Task[None] | None:
        task = self._task
        is_usable = task is not None and not task.done() and task.get_loop() is asyncio.get_running_loop()
        return task if is_usable else None

    def _fetching(self) -> asyncio.Task[None]:
        """Return the fetch that is going on, or begin one. It ends within `TOTAL_SECONDS`."""
        task = self._task_of_this_loop()
        if task is None:
            task = self._task = asyncio.create_task(self._fetch())
        return task

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(TOTAL_SECONDS):
                text, max_age = await self._get()
            self._use(text)
        except FetchFailed as exc:
            self._fail(str(exc))
        except TimeoutError:
            self._fail(f"no complete answer within {TOTAL_SECONDS:g} s")
        except ConfigError as exc:
            self._fail(str(exc))
        except Exception as exc:
            self._fail(_reason(exc))
        else:
            self._fetch_again_in(min(max_age, MAX_REFRESH_SECONDS), MIN_REFRESH_SECONDS)

    def _fetch_again_in(self, seconds: float, least: float = 0) -> None:
        """The time is up to a fifth shorter, at random, so that not all nodes fetch at once."""
        self._due = self._monotonic() + max(least, seconds * random.uniform(0.8, 1))
        self._woken.set()

    async def _get(self) -> tuple[str, float]:
        """Return the text, and for how many seconds it may be used."""
        context = await asyncio.to_thread(client_context)  # reads files
        timeout = self._httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        async with (
            self._httpx.AsyncClient(verify=context, timeout=timeout, trust_env=not self._is_local) as client,
            client.stream("GET", self._url, headers=_HEADERS) as response,
        ):
            return (await _body(response)), _max_age(response.headers.get("cache-control", ""))

    def _use(self, text: str) -> None:
        if text != self.content:
            summary = self._apply(text)
            logger.info("jwks %s: %s", self._name, summary)
        elif self._failing is not None:
            logger.info("jwks %s: it can be fetched again", self._name)
        self.content = text
        self._fetched_at = self._monotonic()
        self._failing = None
        self._pause = FIRST_RETRY_SECONDS

    def _fail(self, reason: str) -> None:
        self.failures += 1
        is_news = self._failing is None
        self._failing = f"jwks {self._name}: {reason}"
        self._fetch_again_in(self._pause)
        self._pause = min(2 * self._pause, MAX_RETRY_SECONDS)
        if is_news:
            kept = "there are no keys yet" if self.content is None else "the keys fetched before stay in use"
            logger.error("%s; %s", self._failing, kept)


def is_url(text: str) -> bool:
    """True if `text` is meant as a URL, not as a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def _check_url(url: str) -> bool:
    """Return True if the URL leads to this machine. Raises ConfigError if it can't be used."""
    shown = without_credentials(url)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as exc:
        raise ConfigError(f"jwks {shown}: not a valid URL ({exc})") from None
    if parts.scheme.lower() not in ("https", "http") or not host:
        raise ConfigError(f"jwks {shown}: must be a file or a URL such as https://login.example/jwks.json")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"jwks {shown}: must not contain a user name or password")
    is_local = is_loopback_host(host)
    if parts.scheme.lower() == "http" and not is_local:
        raise ConfigError(f"jwks {shown}: anybody on the way could replace keys sent over http://, so use https://")
    return is_local


async def _body(response: httpx.Response) -> str:
    """Return the text of the response. Stops reading at `MAX_BYTES`. Raises FetchFailed."""
    status = response.status_code
    if response.is_redirect:
        raise FetchFailed(f"the answer is a redirect ({status}), which is not followed: give the URL that it leads to")
    if status != 200:
        raise FetchFailed(f"the answer has status {status} instead of 200")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise FetchFailed("the answer is compressed, although it was asked for without compression")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_BYTES:
            raise FetchFailed(f"the answer has more than {MAX_BYTES} bytes")
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise FetchFailed("the answer is not UTF-8") from None


def _max_age(cache_control: str) -> float:
    found = _MAX_AGE.search(cache_control)
    return float(found[1]) if found else REFRESH_SECONDS


def _reason(exc: BaseException) -> str:
    """Return in a few words why a request failed. httpx says little; the exceptions below it know."""
    if problem := tls_problem(exc):
        return problem
    name = type(exc).__name__
    if "Timeout" in name:
        return f"no answer in time ({name})"
    for below in causes(exc):
        if isinstance(below, OSError) and below.strerror:
            return f"can't be reached: {below.strerror}"
    return f"can't be fetched: {str(exc)[:200] or name} ({name})"
