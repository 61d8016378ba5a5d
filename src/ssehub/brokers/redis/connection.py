"""Connections to Redis: the server behind a URL, one connection to it, and reconnecting after errors.

The only module that imports redis-py and hiredis.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from hiredis import pack_command
from redis import asyncio as redis
from redis.asyncio.connection import Connection as RedisConnection
from redis.asyncio.connection import ConnectionPool
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from ...errors import BrokerUnavailable, ConfigError
from ...position import Position
from ...publication import TakeBack
from ...revocations import EXPIRY_MARGIN_SECONDS, Revocation
from ...settings import Idempotency, LogRetention
from ..base import without_password
from ..numbering import new_log_name
from .state import Health, LogClock
from .wire import DIGEST, FULL, IS_BEHIND, LOG_IS_FULL, NOT_REDIS, SCRIPT, Keys, LogState, field_and_value

logger = logging.getLogger("ssehub.brokers.redis")

OLDEST_VERSION = (6, 2)
SENTINEL_PORT = 26_379
CONNECT_SECONDS = 1.5
PAGE_ENTRIES = 100
PAGE_REVOCATIONS = 250
"""Parsing so many takes about 4 ms."""
SENTINEL_URL = "redis+sentinel://host:26379,host:26379/NAME"
REASONS = {
    AuthenticationError: "authentication failed: wrong user name or password",
    BusyLoadingError: "Redis is still loading its data",
    MasterNotFoundError: "no Sentinel answers that knows a primary of that name",
    OutOfMemoryError: "Redis is out of memory: raise its maxmemory, or keep a shorter log (log_events)",
    ReadOnlyError: "the server is a read-only replica: use the URL of the primary, or redis+sentinel://",
}
"""Redis' most common refusals, explained."""
REFUSALS = tuple(REASONS)
"""After these errors nothing has been stored. Others may occur within a script, which is not rolled back."""
PERMISSION_ERRORS = (NoPermissionError,)
"""This user may not do that, over whichever connection."""
CONNECTION_ERRORS = (RedisError, OSError, BrokerUnavailable)
"""Errors of the server or the network; any other error is a bug."""


class Connection:
    """One connection, for one task. Close it after the first error: a late reply would answer the wrong command."""

    def __init__(self, connection: RedisConnection, keys: Keys, clock: LogClock, timeout_seconds: float) -> None:
        self._connection = connection
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self.keys = keys

    @property
    def database(self) -> int:
        """The number of the database that this connection uses."""
        return int(self._connection.db or 0)

    async def command(self, *parts: str | bytes | int) -> Any:
        """Send a command and return the reply, with strings as bytes. Raises RedisError or OSError."""
        # redis-py would pack them in Python: twenty parts take 12 us.
        packed = pack_command(parts)  # type: ignore[arg-type]  # its annotation is of a tuple with one part
        async with asyncio.timeout(self._timeout_seconds):
            await self._connection.send_packed_command(packed)
            return await self._connection.read_response(disable_decoding=True)

    async def commands(self, *commands: tuple[str | bytes | int, ...]) -> list[Any]:
        """Send several commands in one piece, and return their replies. Raises the first error among these."""
        packed = b"".join([pack_command(parts) for parts in commands])  # type: ignore[arg-type]  # as above
        replies: list[Any] = []
        errors: list[ResponseError] = []
        async with asyncio.timeout(self._timeout_seconds):
            await self._connection.send_packed_command(packed)
            for _ in commands:  # all of them: a reply that is left would answer the next command
                try:
                    replies.append(await self._connection.read_response(disable_decoding=True))
                except ResponseError as exc:
                    errors.append(exc)
        if errors:
            raise errors[0]
        return replies

    async def send(self, *parts: str | bytes | int) -> None:
        """Send a command whose replies `receive` returns. Only one task may send, and only one receive."""
        if not self._connection.is_connected:  # otherwise redis-py would connect again
            raise ConnectionError("connection closed")
        await self._connection.send_command(*parts)

    async def receive(self) -> Any:
        """Return what the server sends next, however long that takes. Raises RedisError or OSError."""
        return await self._connection.read_response(disable_decoding=True)

    async def check_open(self) -> None:
        """Raise ConnectionError if the server has closed the connection: nothing then has to be sent to find out."""
        if await self._connection.can_read():
            raise ConnectionError("connection closed by the server")

    async def check_version(self) -> str:
        """Raise BrokerUnavailable if the server is too old. A user without access to INFO is not refused.

        Returns an id that is new when the server may have lost data: when it has started, or has become a primary. For
        such a user, each connection has its own.
        """
        try:
            info = await self.command("INFO")
        except ResponseError:
            return secrets.token_hex(20)
        if not isinstance(info, bytes):
            raise BrokerUnavailable(NOT_REDIS)
        lines = dict(line.partition(":")[::2] for line in info.decode(errors="replace").split("\r\n"))
        version = lines.get("redis_version", "")
        if version and tuple(int(part) for part in version.split(".")[:2]) < OLDEST_VERSION:
            raise BrokerUnavailable(f"Redis {version} is too old: Redis 6.2 or later, or Valkey, is required")
        if "run_id" not in lines:
            return secrets.token_hex(20)
        return f"{lines['run_id']}:{lines.get('master_replid', '')}"

    async def evaluate(self, script: bytes, digest: str, *arguments: str | bytes | int) -> Any:
        """Run `script`, which has this SHA-1 digest, and return the reply; send it only if Redis lacks it."""
        try:
            return await self.command("EVALSHA", digest, *arguments)
        except NoScriptError:  # nothing has run
            return await self.command("EVAL", script, *arguments)

    async def script(self, verb: str, *arguments: str | bytes | int) -> list[Any]:
        """Run `verb` of `log.lua` and return its reply, which begins with the log's name. Its time sets the clock."""
        sent_at = time.monotonic()
        reply = await self.evaluate(SCRIPT, DIGEST, len(self.keys), *self.keys, verb, new_log_name(), *arguments)
        try:
            milliseconds, log = reply[0].split()
            self._clock.adjust(int(milliseconds) / 1000, sent_at)
        except (AttributeError, TypeError, ValueError, LookupError):
            raise BrokerUnavailable(NOT_REDIS) from None
        reply[0] = log
        return cast(list[Any], reply)

    async def log_state(self, known: Position | None = None, *, is_writer: bool = False) -> LogState:
        """Return the log's state, creating the log if there is none.

        A log that has lost the position `known` gets a new name. With `is_writer`, raises the refusal if this user may
        not append, and BrokerUnavailable if nobody can.
        """
        log, ms, seq = ("", 0, 0) if known is None else (known.log, known.milliseconds, known.sequence)
        reply = await self.script("state", log, ms, seq, int(is_writer))
        if reply[1:] == [LOG_IS_FULL]:
            raise self.full()
        return LogState.parse(reply)

    def full(self) -> BrokerUnavailable:
        """Return the error that says what to do when the script has replied LOG_IS_FULL."""
        return BrokerUnavailable(FULL % self.keys.stream)

    async def tidy(self, idempotency: Idempotency, log: LogRetention) -> int:
        """Delete expired idempotency keys, events and revocations; return the number of revocations left."""
        window = int(idempotency.idempotency_seconds * 1000), idempotency.idempotency_keys
        _, count = await self.script("tidy", *window, int(log.log_seconds * 1000), int(EXPIRY_MARGIN_SECONDS))
        return int(count)

    async def page(self, end: bytes) -> Any:
        """Return up to PAGE_ENTRIES entries with their fields, newest first, from the stream id `end` back."""
        return await self.command("XREVRANGE", self.keys.stream, end, "-", "COUNT", PAGE_ENTRIES)

    async def revocations(self, cursor: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """Return some of the table's fields and values, and the cursor for the next ones; it begins and ends with 0."""
        cursor, page = await self.command("HSCAN", self.keys.revocations, cursor, "COUNT", PAGE_REVOCATIONS)
        return cursor, list(zip(page[::2], page[1::2], strict=True))

    async def restore(self, revocations: Iterable[Revocation], read_to: Position, log: LogRetention) -> int | None:
        """Put back what the table lacks of `revocations`, and return how many it lacked.

        Returns None, and changes nothing, if revocations have been taken back after `read_to` or Redis has no memory.
        """
        fields = [part for revocation in revocations for part in field_and_value(revocation)]
        known = (read_to.log, read_to.milliseconds, read_to.sequence)
        try:
            _, reply = await self.script(
                "restore", log.log_events, int(EXPIRY_MARGIN_SECONDS), *known, TakeBack(()).dump(), *fields
            )
        except OutOfMemoryError:
            return None
        return None if reply == IS_BEHIND else int(reply)


class Server:
    """The Redis server at a URL, or the primary that Sentinel names at present. Raises ConfigError for a bad URL."""

    def __init__(self, url: str, prefix: str, now: Callable[[], float] = time.time) -> None:
        self.shown = without_password(url)
        self.prefix = prefix
        self.clock = LogClock(self.shown, now)
        self._url = url
        self._keys = Keys.of(prefix)
        # redis-py checks the options only when it creates a connection.
        try:
            if "@" in "".join(urlsplit(url)[2:]):
                raise ValueError("in the user name and the password, write / as %2F, ? as %3F, # as %23 and @ as %40")
            self._pool().make_connection()  # type: ignore[no-untyped-call]  # redis-py has no annotations here
        except (TypeError, ValueError) as exc:
            reason = "not a valid URL" if "netloc" in str(exc) else exc  # the netloc contains the password
            raise ConfigError(f"cannot use broker {self.shown}: {reason}") from None

    @asynccontextmanager
    async def connect(self, timeout_seconds: float) -> AsyncIterator[Connection]:
        """Open a connection on which every reply must arrive within `timeout_seconds`, and close it at the end."""
        pool = self._pool()
        connection = pool.make_connection()  # type: ignore[no-untyped-call]  # as above
        try:
            async with asyncio.timeout(2 * CONNECT_SECONDS):
                await connection.connect()
                await _disconnect_sentinels(pool)
            yield Connection(connection, self._keys, self.clock, timeout_seconds)
        finally:
            try:
                # Not by the pool, which closes its connections in tasks: a cancellation may end them before they start.
                await connection.disconnect()
            finally:
                await asyncio.shield(_disconnect_sentinels(pool))

    def _pool(self) -> ConnectionPool:
        options: dict[str, Any] = {
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),  # a command sent twice may be executed twice
            "socket_timeout": None,  # with a timeout, redis-py creates a task for each command
            "socket_connect_timeout": CONNECT_SECONDS,
            "driver_info": None,
        }
        scheme, _, rest = self._url.partition("://")
        if scheme == "redis+sentinel":
            return _sentinel_pool(self._url, options)
        database = urlsplit(f"//{rest}").path.strip("/")
        if scheme != "redis+unix" and database and not database.isdigit():
            raise ValueError(f"database {database!r} is not a number")
        return ConnectionPool.from_url(f"{scheme.removeprefix('redis+')}://{rest}", **options)


def _sentinel_pool(url: str, options: dict[str, Any]) -> ConnectionPool:
    """Parse `redis+sentinel://[user:password@]host[:port],host[:port]/name[?db=0&sentinel_password=…]`."""
    parts = urlsplit(url)
    name = parts.path.strip("/")
    credentials, _, hosts = parts.netloc.rpartition("@")
    sentinels = [_host_and_port(host) for host in hosts.split(",")]
    if not name:
        raise ValueError(f"the name of the primary is missing: write {SENTINEL_URL}")
    given = dict(parse_qsl(parts.query))
    user, _, password = credentials.partition(":")
    if user:
        options["username"] = unquote(user)
    if password:
        options["password"] = unquote(password)
    options["db"] = int(given.pop("db", "0"))
    sentinel_options = {name.removeprefix("sentinel_"): value for name, value in given.items()}
    if unknown := sentinel_options.keys() - {"username", "password"}:
        raise ValueError(f"unknown option {unknown.pop()!r}: use db, sentinel_username, sentinel_password")
    timeouts = {"socket_timeout": CONNECT_SECONDS, "socket_connect_timeout": CONNECT_SECONDS, "retry": options["retry"]}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]  # as above
        sentinels, sentinel_kwargs={**timeouts, **sentinel_options}, **options
    )
    pool: ConnectionPool = sentinel.master_for(name, redis.Redis).connection_pool
    return pool


def _host_and_port(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(f"the address of a Sentinel is missing: write {SENTINEL_URL}")
    return parts.hostname, parts.port or SENTINEL_PORT


async def _disconnect_sentinels(pool: ConnectionPool) -> None:
    """Close the connections that were used to find the primary."""
    if isinstance(pool, SentinelConnectionPool):
        for sentinel in pool.sentinel_manager.sentinels:
            await sentinel.aclose()


async def keep_connected(
    server: Server, timeout_seconds: float, health: Health, use: Callable[[Connection], Awaitable[None]]
) -> None:
    """Run `use` with a connection, and after each error again with a new one, until cancelled.

    `use` calls `health.clear()` once the connection works.
    """
    while True:
        try:
            async with server.connect(timeout_seconds) as connection:
                await use(connection)
        except CONNECTION_ERRORS as exc:
            health.report(explain(exc))
        except Exception as exc:
            logger.exception("unexpected error while using the log at %s: connecting again", server.shown)
            health.report(explain(exc))
        await asyncio.sleep(health.next_pause())


def explain(exc: BaseException) -> str:
    """Return in one line what went wrong. It never contains a password."""
    if isinstance(exc, TimeoutError) or (isinstance(exc, RedisError) and "imeout" in type(exc).__name__):
        return "no reply in time"
    for kind, reason in REASONS.items():
        if isinstance(exc, kind):
            return reason
    return " ".join(str(exc).split()) or type(exc).__name__
