"""`redis://`: the log in Redis or Valkey, one stream that every node of a deployment appends to and reads.

`redis.lua` is what runs there: it counts the entries without a gap and stamps each with the log's name, because a
stream itself does not say that something is missing. A node that sees the count jump, another name, or that the log
ends before what it knows, says so to its hub.

Two tasks have a connection each, and nobody else touches it: one appends what publishers bring, all that waits in one
call; the other reads. At the first error a connection is closed, so that no answer is ever taken for another's, and
nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from hashlib import sha1
from importlib.resources import files
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from redis import asyncio as redis
from redis.asyncio.connection import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from ..errors import (
    BrokerUnavailable,
    ConfigError,
    IdempotencyConflict,
    InvalidEvent,
    Overloaded,
)
from ..position import Position
from ..publication import Publication, load_entry
from .base import (
    Entry,
    Follower,
    Limits,
    without_password,
)
from .numbering import new_log_name

logger = logging.getLogger("ssehub.brokers.redis")

SCRIPT = files(__package__).joinpath("redis.lua").read_bytes()
DIGEST = sha1(SCRIPT, usedforsecurity=False).hexdigest()
OLDEST_VERSION = (6, 2)
SENTINEL_PORT = 26_379
CONNECT_SECONDS = 1.5
PUBLISH_SECONDS = 1.5
"""In which a publisher is answered, whatever Redis does."""
MAX_WAITING_BYTES = 64 * 2**20
MAX_WAITING_PUBLISHERS = 20_000
GROUP_BYTES = 4 * 2**20
GROUP_PUBLISHERS = 500
READ_COUNT = 100
OPEN_LOG_SECONDS = 5.0
MAX_PAUSE_SECONDS = 1.0
FOREIGN_LOG = "it is of another log"
WORDS = {
    AuthenticationError: "it refuses the user or the password",
    BusyLoadingError: "it is still loading its data",
    MasterNotFoundError: "no Sentinel answers that knows a primary of that name",
    OutOfMemoryError: "it is out of memory: raise its maxmemory, or keep a shorter log",
    ReadOnlyError: "it is a replica, which can't be written: name the primary, or use redis+sentinel://",
}
"""What Redis' commonest refusals mean to us."""
REFUSALS = tuple(WORDS)
"""After these nothing has been stored; another error may come in the middle of a script, which is not undone."""


class Keys(NamedTuple):
    """The names in Redis. The hash tag keeps them in one slot, so that one call may use them all."""

    stream: str
    state: str
    ages: str
    kept: str

    @classmethod
    def of(cls, prefix: str) -> Keys:
        return cls(*(f"{{{prefix}}}:{name}" for name in ("log", "state", "key-ages", "keys")))


class LogState(NamedTuple):
    """Where the log stands: `entries` so far, the last one at `head`; it was made at `born`."""

    entries: int
    head: Position
    born: Position

    @classmethod
    def read(cls, answer: Sequence[Any]) -> LogState:
        try:
            log = answer[0].decode()
            n, ms, seq, born_ms, born_seq = map(int, answer[1:])
        except (AttributeError, TypeError, ValueError, IndexError):
            raise BrokerUnavailable("it is no Redis: it answers something else") from None
        return cls(n, Position(ms, seq, log), Position(born_ms, born_seq, log))


class Link:
    """One connection, for one task at a time."""

    def __init__(self, connection: Connection, keys: Keys, timeout_seconds: float) -> None:
        self._connection = connection
        self._timeout_seconds = timeout_seconds
        self.keys = keys

    async def command(self, *parts: str | bytes | int) -> Any:
        """What Redis answers, as bytes; raises what it refuses, RedisError or OSError."""
        async with asyncio.timeout(self._timeout_seconds):
            await self._connection.send_command(*parts)
            return await self._connection.read_response(disable_decoding=True)

    async def check(self) -> None:
        """Raises ConnectionError if it has ended meanwhile: then nothing has to be sent to find that out."""
        if await self._connection.can_read():
            raise ConnectionError("it has closed the connection")

    async def script(self, verb: str, *arguments: str | bytes | int) -> Any:
        call = (len(self.keys), *self.keys, verb, new_log_name(), *arguments)
        try:
            return await self.command("EVALSHA", DIGEST, *call)
        except NoScriptError:  # nothing has run
            return await self.command("EVAL", SCRIPT, *call)

    async def page(self, end: bytes) -> Any:
        """The entries up to `end`, the newest first, as many as are read at once."""
        return await self.command("XREVRANGE", self.keys.stream, end, "-", "COUNT", READ_COUNT)

    async def look(self, known: Position | None = None, *, is_writer: bool = False) -> LogState:
        """The log's state; it is made, or gets a new name, if it is not the one that was `known`."""
        log, ms, seq = ("", 0, 0) if known is None else (known.log, known.milliseconds, known.sequence)
        return LogState.read(await self.script("look", log, ms, seq, int(is_writer)))


class Server:
    """A Redis, or whoever Sentinel says is the primary now, by its URL. Raises ConfigError."""

    def __init__(self, url: str, prefix: str) -> None:
        self.shown = without_password(url)
        self._url = url
        self._keys = Keys.of(prefix)
        # A wrong option shows when a connection is made of it.
        try:
            if "@" in "".join(urlsplit(url)[2:]):
                raise ValueError("in a user or a password, write / as %2F, ? as %3F, # as %23 and @ as %40")
            self.pool().make_connection()  # type: ignore[no-untyped-call]  # redis-py has no types here
        except (TypeError, ValueError) as exc:
            reason = "it is no URL" if "netloc" in str(exc) else exc  # the netloc holds the password
            raise ConfigError(f"broker {self.shown} can't be used: {reason}") from None

    def pool(self) -> ConnectionPool:
        options: dict[str, Any] = {
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),  # a command that is sent again may be stored again
            "socket_timeout": None,  # with one, a task is made for each command
            "socket_connect_timeout": CONNECT_SECONDS,
            "driver_info": None,
        }
        scheme, _, rest = self._url.partition("://")
        if scheme == "redis+sentinel":
            return _sentinel_pool(self._url, options)
        parts = urlsplit(f"//{rest}")
        if scheme != "redis+unix" and parts.path.strip("/") and not parts.path.strip("/").isdigit():
            raise ValueError(f"{parts.path[1:]!r} is no number of a database")
        return ConnectionPool.from_url(f"{scheme.removeprefix('redis+')}://{rest}", **options)

    @asynccontextmanager
    async def link(self, timeout_seconds: float) -> AsyncIterator[Link]:
        """A connection of its own, on which each answer comes within `timeout_seconds`."""
        pool = self.pool()
        try:
            async with asyncio.timeout(2 * CONNECT_SECONDS):
                connection = await pool.get_connection()  # type: ignore[no-untyped-call]  # as above
                await _leave_sentinels(pool)
            yield Link(connection, self._keys, timeout_seconds)
        finally:
            await _leave_sentinels(pool)
            await pool.disconnect()


def _sentinel_pool(url: str, options: dict[str, Any]) -> ConnectionPool:
    """`redis+sentinel://[user:password@]host[:port],host[:port]/name[?db=0&sentinel_password=…]`."""
    parts = urlsplit(url)
    name = parts.path.strip("/")
    credentials, _, hosts = parts.netloc.rpartition("@")
    sentinels = [_host_and_port(host) for host in hosts.split(",")]
    if not name:
        raise ValueError("the name of the primary is missing: redis+sentinel://host:26379,host:26379/NAME")
    given = dict(parse_qsl(parts.query))
    user, _, password = credentials.partition(":")
    if user:
        options["username"] = unquote(user)
    if password:
        options["password"] = unquote(password)
    options["db"] = int(given.pop("db", "0"))
    sentinel_options = {name.removeprefix("sentinel_"): value for name, value in given.items()}
    if unknown := sentinel_options.keys() - {"username", "password"}:
        raise ValueError(f"{unknown.pop()!r} is no option: use db, sentinel_username, sentinel_password")
    timeouts = {"socket_timeout": CONNECT_SECONDS, "socket_connect_timeout": CONNECT_SECONDS, "retry": options["retry"]}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]  # as above
        sentinels, sentinel_kwargs={**timeouts, **sentinel_options}, **options
    )
    pool: ConnectionPool = sentinel.master_for(name, redis.Redis).connection_pool
    return pool


async def _leave_sentinels(pool: ConnectionPool) -> None:
    """End the connections that have found the primary."""
    if isinstance(pool, SentinelConnectionPool):
        for sentinel in pool.sentinel_manager.sentinels:
            await sentinel.aclose()


def _host_and_port(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("the address of a Sentinel is missing: redis+sentinel://host:26379,host:26379/NAME")
    return parts.hostname, parts.port or SENTINEL_PORT


class _Request:
    """What one publisher waits for; `answer` may be cancelled before it is sent."""

    __slots__ = ("answer", "is_sent", "parts", "size")

    def __init__(self, publications: Sequence[Publication], answer: asyncio.Future[list[str]]) -> None:
        self.parts: list[str | bytes | int] = [len(publications)]
        self.size = 0
        self.answer = answer
        self.is_sent = False
        for events, key in publications:
            self.parts += (key.name, key.body) if key is not None else ("", "-")
            self.parts.append(len(events))
            for event in events:
                dumped = event.dump().encode()
                self.parts.append(dumped)
                self.size += len(dumped)

    def refuse(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)

    def resolve(self, log: str, places: Any) -> Position | None:
        """Answer the publisher; returns the newest position that it is told, if any."""
        if places == b"conflict":
            self.refuse(
                IdempotencyConflict("this idempotency key was used for something else: take a new one for a new event")
            )
            return None
        runs = list(zip(*[iter(places)] * 3, strict=True))
        if not self.answer.done():
            self.answer.set_result([f"{ms}-{seq + n}.{log}" for ms, seq, length in runs for n in range(length)])
        return max((Position(ms, seq + length - 1, log) for ms, seq, length in runs), default=None)


class _Knowledge:
    """What this node knows of the log, whichever of its tasks has heard it."""

    def __init__(self) -> None:
        self.newest: Position | None = None
        """The newest position that was read here, or answered to a publisher."""
        self.skipped = 0

    def hears_of(self, position: Position) -> None:
        newest = self.newest
        if newest is None or newest.log != position.log or newest < position:
            self.newest = position


class RedisBroker:
    """The log in the Redis at `url`, under keys that begin with `prefix`.

    With `waits` it starts without Redis, too, and connects when it can. A connection that has been silent for
    `probe_seconds` is given up.
    """

    def __init__(
        self,
        url: str,
        limits: Limits | None = None,
        *,
        prefix: str = "ssehub",
        waits: bool = False,
        probe_seconds: float = 5.0,
    ) -> None:
        self._server = Server(url, prefix)
        self._limits = limits or Limits()
        self._waits = waits
        self._probe_seconds = probe_seconds
        self._problems: dict[str, str] = {}
        self._knowledge = _Knowledge()
        self._is_running = False
        self._waiting: deque[_Request] = deque()
        self._waiting_bytes = 0
        self._asking: list[asyncio.Future[str | None]] = []
        self._wake = asyncio.Event()
        self._broken_at: float | None = None

    @property
    def problem(self) -> str | None:
        return next(iter(self._problems.values()), None)

    @property
    def skipped(self) -> int:
        return self._knowledge.skipped

    def _has_problem(self, task: str, exc: BaseException) -> None:
        text = f"the log at {self._server.shown} can't be used: {explain(exc)}"
        if self._problems.get(task) != text:
            logger.warning("%s (%s)", text, task)
            self._problems[task] = text

    def _is_well(self, task: str) -> None:
        if self._problems.pop(task, None):
            logger.info("the log at %s can be used again (%s)", self._server.shown, task)

    # Publishing

    async def publish(self, publications: Sequence[Publication]) -> list[str]:
        loop = asyncio.get_running_loop()
        self._check_can_publish(loop.time())
        request = _Request(publications, loop.create_future())
        if self._waiting_bytes + request.size > MAX_WAITING_BYTES or len(self._waiting) >= MAX_WAITING_PUBLISHERS:
            raise Overloaded("too much waits for Redis already: nothing was stored, try again in a second")
        self._waiting.append(request)
        self._waiting_bytes += request.size
        self._wake.set()
        try:
            async with asyncio.timeout(PUBLISH_SECONDS):
                return await request.answer
        except TimeoutError:
            if request.is_sent:
                raise BrokerUnavailable("Redis gives no answer: the event may or may not be stored") from None
            raise BrokerUnavailable(f"{self.problem or 'Redis gives no answer'}; nothing was stored") from None

    def _check_can_publish(self, now: float) -> None:
        if not self._is_running:
            raise BrokerUnavailable("the Redis broker is not running: use it inside `async with hub`")
        if self._broken_at is not None and now - self._broken_at > PUBLISH_SECONDS:
            raise BrokerUnavailable(f"{self.problem or 'Redis gives no answer'}; nothing was stored")

    async def head(self) -> str | None:
        self._check_can_publish(asyncio.get_running_loop().time())
        asking: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._asking.append(asking)
        self._wake.set()
        try:
            async with asyncio.timeout(PUBLISH_SECONDS):
                return await asking
        except TimeoutError:
            raise BrokerUnavailable(self.problem or "Redis gives no answer") from None

    async def _write_forever(self) -> None:
        pauses = Pauses()
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with self._server.link(PUBLISH_SECONDS) as link:
                    await link.look(self._knowledge.newest, is_writer=True)
                    self._broken_at = None
                    self._is_well("writing")
                    pauses.start_over()
                    await self._write(link)
            except (RedisError, OSError) as exc:
                self._has_problem("writing", exc)
            except Exception as exc:
                logger.exception("appending to the log failed; it is tried again")
                self._has_problem("writing", exc)
            if self._broken_at is None:
                self._broken_at = loop.time()
            await asyncio.sleep(pauses.next())

    async def _write(self, link: Link) -> None:
        loop = asyncio.get_running_loop()
        tidied_at = loop.time() - self._probe_seconds
        while True:
            if loop.time() - tidied_at >= self._probe_seconds:
                await self._tidy(link)
                tidied_at = loop.time()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._probe_seconds):
                    await self._wake.wait()
            self._wake.clear()
            await link.check()
            while group := self._take_group():
                await self._append(link, group)
            if self._asking:
                await self._answer_asking(link)

    def _take_group(self) -> list[_Request]:
        """The next requests for one call, without those whose publishers have gone."""
        group: list[_Request] = []
        size = 0
        while self._waiting and len(group) < GROUP_PUBLISHERS:
            if group and size + self._waiting[0].size > GROUP_BYTES:
                break
            request = self._waiting.popleft()
            self._waiting_bytes -= request.size
            if not request.answer.done():
                group.append(request)
                size += request.size
        return group

    async def _append(self, link: Link, group: list[_Request]) -> None:
        for request in group:
            request.is_sent = True
        parts = [part for request in group for part in request.parts]
        limits = self._limits
        window = int(limits.idempotency_seconds * 1000), limits.idempotency_keys
        try:
            log, *answers = await link.script("append", *window, limits.log_events, len(group), *parts)
        except BaseException as exc:
            is_refusal = isinstance(exc, REFUSALS)
            what = "nothing was stored" if is_refusal else "the event may or may not be stored"
            for request in group:
                request.refuse(BrokerUnavailable(f"the log at {self._server.shown}: {explain(exc)}; {what}"))
            raise
        for request, places in zip(group, answers, strict=True):
            if last := request.resolve(log.decode(), places):
                self._knowledge.hears_of(last)

    async def _tidy(self, link: Link) -> None:
        limits = self._limits
        window = int(limits.idempotency_seconds * 1000), limits.idempotency_keys
        await link.script("tidy", *window, int(limits.log_seconds * 1000))

    async def _try(self, link: Link) -> None:
        """Raises what keeps this user from reading and writing here."""
        await link.look(self._knowledge.newest, is_writer=True)
        await link.command("XREAD", "COUNT", 1, "STREAMS", link.keys.stream, "$")
        await self._tidy(link)

    async def _answer_asking(self, link: Link) -> None:
        asking, self._asking = self._asking, []
        try:
            state = await link.look()
        except BaseException:
            self._asking = [*asking, *self._asking]
            raise
        for one in asking:
            if not one.done():
                one.set_result(str(state.head) if state.entries else None)

    # Running

    @asynccontextmanager
    async def run(self, follower: Follower) -> AsyncIterator[None]:
        self._wake = asyncio.Event()
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._waits:
            self._problems["reading"] = f"the log at {self._server.shown} has not been read yet"
            started.set_result(None)
        reading = asyncio.create_task(self._read_forever(follower, started))
        tasks = [reading]
        try:
            await started
            self._is_running = True
            tasks.append(asyncio.create_task(self._write_forever()))
            yield
        finally:
            self._is_running = False
            await _end(tasks)
            self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
        asking, self._asking = self._asking, []
        ended = BrokerUnavailable("the hub has ended; nothing was stored")
        for request in waiting:
            request.refuse(ended)
        for answer in asking:
            if not answer.done():
                answer.set_exception(ended)
        self._problems.clear()
        self._broken_at = None

    async def _read_forever(self, follower: Follower, started: asyncio.Future[None]) -> None:
        """Read, and when that fails, connect again and go on; the first failure is whoever started this's to know."""
        pauses = Pauses()
        reader = _Reader(follower, self._limits, self._knowledge)
        while True:
            try:
                async with self._server.link(self._probe_seconds) as link:
                    await _check_version(link)
                    await reader.catch_up(link)
                    if not started.done():
                        await self._try(link)
                        started.set_result(None)
                    self._is_well("reading")
                    pauses.start_over()
                    while True:
                        await reader.read_on(link, int(self._probe_seconds * 500))
            except Exception as exc:
                if not started.done():
                    reason = f"the log at {self._server.shown} can't be used: {explain(exc)}"
                    started.set_exception(BrokerUnavailable(reason))
                    return
                if not isinstance(exc, RedisError | OSError | BrokerUnavailable):
                    logger.exception("reading the log failed; it is read from its tail again")
                    reader.forget()
                self._has_problem("reading", exc)
            await asyncio.sleep(pauses.next())


class _Reader:
    """How far one node has read, and what it makes of what comes next."""

    def __init__(self, follower: Follower, limits: Limits, knowledge: _Knowledge) -> None:
        self._follower = follower
        self._limits = limits
        self._knowledge = knowledge
        self._at: Position | None = None
        """The last entry that was ours, or where the log began."""
        self._entries = 0
        self._last_id: bytes = b""
        self._count = READ_COUNT
        """How many entries are asked for: few after an answer that did not come in time, however large they are."""
        self._seen: LogState | None = None
        """Where the log stood when nothing came; if nothing comes again, what it has more has been trimmed."""

    def forget(self) -> None:
        self._at = None

    async def catch_up(self, link: Link) -> None:
        """See whether this is still the log that was read, and begin with its tail if it is not."""
        self._seen = state = await link.look(self._knowledge.newest)
        if self._at is None or state.head.log != self._at.log:
            await self._start_over(link, state)

    async def read_on(self, link: Link, block_milliseconds: int) -> None:
        """Deliver what comes next; when nothing comes, see whether that is right."""
        seen, self._seen = self._seen, None
        count, self._count = self._count, 1
        answer = await link.command(
            "XREAD", "COUNT", count, "BLOCK", block_milliseconds, "STREAMS", link.keys.stream, self._last_id
        )
        self._count = min(2 * count, READ_COUNT)
        if answer:
            await self._take(link, answer[0][1])
            return
        if seen is not None and seen.entries > self._entries:
            await self._skip_to(seen)
        await self.catch_up(link)

    async def _skip_to(self, state: LogState) -> None:
        """What came up to there has been trimmed, all of it."""
        self._at, self._entries, self._last_id = state.head, state.entries, _stream_id(state.head)
        await self._follower.begin(state.head)

    async def _take(self, link: Link, answer: Sequence[Any]) -> None:
        chunk: list[Entry] = []
        for id, fields in answer:
            found = self._parse(id, fields)
            if found is None:
                continue
            n, entry = found
            if not self._is_next(n, entry.position):
                await self._deliver(chunk)
                chunk = []
                state = await link.look(self._knowledge.newest)
                if self._at is None or state.head.log != self._at.log:
                    await self._start_over(link, state)
                    return
                if entry.position.log != state.head.log:
                    self._skip(id, FOREIGN_LOG)
                    continue
                await self._follower.begin(entry.position.before)
            chunk.append(entry)
            self._at, self._entries, self._last_id = entry.position, n, id
            self._knowledge.hears_of(entry.position)
        await self._deliver(chunk)
        self._last_id = answer[-1][0]

    def _is_next(self, n: int, position: Position) -> bool:
        return self._at is not None and position.log == self._at.log and n == self._entries + 1

    async def _deliver(self, chunk: list[Entry]) -> None:
        if chunk:
            await self._follower.deliver(chunk[-1].position, chunk)

    async def _start_over(self, link: Link, state: LogState) -> None:
        """Begin with the tail of the log, as much of it as a hub keeps."""
        base, tail, last_id = await self._tail(link, state)
        self._at = None  # until all of it has been delivered
        await self._follower.begin(base)
        for start in range(0, len(tail), READ_COUNT):
            await self._deliver([entry for _, entry in tail[start : start + READ_COUNT]])
        self._entries, last = (tail[-1][0], tail[-1][1].position) if tail else (state.entries, state.head)
        self._at, self._last_id = last, last_id
        self._knowledge.hears_of(last)

    async def _tail(self, link: Link, state: LogState) -> tuple[Position, list[tuple[int, Entry]], bytes]:
        """The position before the tail, the tail with each entry's number, and the stream's last id."""
        limits = self._limits
        tail: list[tuple[int, Entry]] = []
        last_id, size = _stream_id(state.head), 0
        async with aclosing(self._backwards(link)) as entries:
            async for id, found in entries:
                last_id = max(last_id, id, key=_order)
                if found is None:
                    continue
                n, entry = found
                if tail[-1][0] == 1 if tail else state.entries == 0:
                    break  # what is older is of another log
                if entry.position.log != state.head.log:
                    self._skip(id, FOREIGN_LOG)
                    continue
                if tail and n != tail[-1][0] - 1:
                    break
                size += entry.event.size
                if len(tail) >= limits.tail_events or (tail and size > limits.tail_bytes):
                    return entry.position, tail[::-1], last_id
                tail.append((n, entry))
        if not tail:
            return state.head, [], last_id
        first, oldest = tail[-1]
        return state.born if first == 1 else oldest.position.before, tail[::-1], last_id

    async def _backwards(self, link: Link) -> AsyncGenerator[tuple[bytes, tuple[int, Entry] | None]]:
        end = b"+"
        while answer := await link.page(end):
            for id, fields in answer:
                yield id, self._parse(id, fields)
            end = b"(" + answer[-1][0]

    def _parse(self, id: bytes, fields: Sequence[bytes]) -> tuple[int, Entry] | None:
        try:
            return parse_entry(id, fields)
        except (InvalidEvent, ValueError) as exc:
            self._skip(id, str(exc))
            return None

    def _skip(self, id: bytes, why: str) -> None:
        if not self._knowledge.skipped:
            logger.warning("entry %s of the log is none of ours, or broken, and is skipped: %s", id.decode(), why)
        self._knowledge.skipped += 1


def parse_entry(id: bytes, fields: Sequence[bytes]) -> tuple[int, Entry]:
    """The number of an entry, and what it says; raises InvalidEvent or ValueError if it is none of ours."""
    try:
        n_name, n, log_name, log, event_name, event = fields
    except ValueError:
        raise InvalidEvent(f"it has {len(fields) // 2} fields, not three") from None
    if (n_name, log_name, event_name) != (b"n", b"log", b"event"):
        raise InvalidEvent("its fields are not n, log and event")
    ms, _, seq = id.partition(b"-")
    return int(n), Entry(Position(int(ms), int(seq), log.decode()), load_entry(event.decode()))


async def _end(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel until they have ended: `wait_for` of Python 3.11, used with Sentinels, may swallow it (gh-86296)."""
    while tasks:
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=0.1)


def _order(id: bytes) -> tuple[int, int]:
    ms, _, seq = id.partition(b"-")
    return int(ms), int(seq)


def _stream_id(position: Position) -> bytes:
    return b"%d-%d" % position[:2]


async def _check_version(link: Link) -> None:
    """Raises BrokerUnavailable if this Redis can't do what we ask of it; one that won't tell is believed."""
    try:
        info = await link.command("INFO", "server")
    except ResponseError:
        return
    if not isinstance(info, bytes):
        raise BrokerUnavailable("it is no Redis: it answers something else")
    lines = dict(line.partition(":")[::2] for line in info.decode(errors="replace").split("\r\n"))
    version = lines.get("redis_version", "")
    if version and tuple(int(part) for part in version.split(".")[:2]) < OLDEST_VERSION:
        raise BrokerUnavailable(f"it is Redis {version}: 6.2 or newer is needed, or Valkey")


class Pauses:
    """How long to wait before trying again: twice as long each time, up to a second, and never all at once."""

    def __init__(self) -> None:
        self._failures = 0

    def start_over(self) -> None:
        self._failures = 0

    def next(self) -> float:
        self._failures = min(self._failures + 1, 10)
        return min(MAX_PAUSE_SECONDS, 0.025 * 2.0**self._failures) * random.uniform(0.5, 1.0)


def explain(exc: BaseException) -> str:
    """What went wrong, in one line; it never holds a password."""
    if isinstance(exc, TimeoutError) or (isinstance(exc, RedisError) and "imeout" in type(exc).__name__):
        return "it gives no answer"
    for kind, words in WORDS.items():
        if isinstance(exc, kind):
            return words
    return " ".join(str(exc).split()) or type(exc).__name__


@contextmanager
def open_log(url: str, prefix: str) -> Iterator[Iterator[Entry]]:
    """The entries of the log at `url`, the newest first; what is none of ours is left out. Raises BrokerUnavailable."""
    server = Server(url, prefix)
    stack = AsyncExitStack()
    with asyncio.Runner() as runner:
        try:
            link = runner.run(stack.enter_async_context(server.link(OPEN_LOG_SECONDS)))
            yield _read_backwards(runner, link)
        except (RedisError, OSError) as exc:
            raise BrokerUnavailable(f"the log at {server.shown} can't be used: {explain(exc)}") from exc
        finally:
            runner.run(stack.aclose())


def _read_backwards(runner: asyncio.Runner, link: Link) -> Iterator[Entry]:
    end = b"+"
    while answer := runner.run(link.page(end)):
        for id, fields in answer:
            with contextlib.suppress(InvalidEvent, ValueError):
                yield parse_entry(id, fields)[1]
        end = b"(" + answer[-1][0]
