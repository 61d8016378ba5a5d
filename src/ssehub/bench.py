"""The load test: subscribers and publishers against any hub, and what became of every event.

Subscribers are raw asyncio protocols in processes of their own. Each event carries its publisher, a sequence number
and the time it was to be sent, so that every gap, duplicate and swap is seen, by each subscriber.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import urlencode, urlsplit

from .errors import ConfigError, SSEHubError

STAMP = re.compile(rb"\ndata: (\d{10})\.(\d{3})\.(\d{19})\.")
MARK = b"\ndata: "
STAMP_BYTES = 35
LONGEST_TAIL = len(MARK) + STAMP_BYTES
MAX_CACHED = 64
"""Reads whose content is remembered: subscribers of one channel get the same bytes."""
MAX_SAMPLES = 4
"""Events of one read whose latency is taken; each then stands for its share of them."""
PORTS_PER_ADDRESS = 25_000
CONNECTING_AT_ONCE = 500
REPORT_SECONDS = 0.2
RECEIVE_BUFFER_BYTES = 256 * 2**10
BUSY_SHARE = 0.9
MAX_MISSING = 100_000
KINDS = {"json": "application/json", "form": "application/x-www-form-urlencoded", "raw": "text/plain"}


class BenchError(SSEHubError):
    """The load can't be made: nobody answers, or says no."""


class Latencies:
    """A histogram of nanoseconds with a relative error under 2 %."""

    def __init__(self, counts: dict[int, int] | None = None) -> None:
        self.counts: Counter[int] = Counter(counts or {})

    def add(self, nanoseconds: int, weight: int = 1) -> None:
        shift = max(0, nanoseconds.bit_length() - 6)
        self.counts[shift << 6 | nanoseconds >> shift] += weight

    def milliseconds(self, share: float) -> float:
        """What `share` of all are not above."""
        left = share * self.counts.total()
        bucket = 0
        for bucket in sorted(self.counts):
            left -= self.counts[bucket]
            if left <= 0:
                break
        return ((bucket & 63) << (bucket >> 6)) / 1e6


@dataclass(frozen=True)
class Plan:
    """One run. `rate` is events a second, None for as fast as the hub answers; `size` is bytes of data."""

    url: str
    control_url: str
    subscribers: int
    events: int
    rate: float | None = None
    publishers: int = 1
    batch: int = 1
    size: int = 100
    users: int = 1
    channels: int = 1
    processes: int = 1
    server_pid: int | None = None
    control_key: str | None = None
    body: str = "json"
    patience_seconds: float = 10.0

    @property
    def audiences(self) -> list[tuple[str, str]]:
        """The channel and user of each audience: everyone on a channel, or each of its users."""
        return [(f"bench-{number % self.channels}", self._user(number)) for number in range(self.audience_count)]

    @property
    def audience_count(self) -> int:
        return self.channels * self.users

    def _user(self, audience: int) -> str:
        return f"user-{audience // self.channels}"

    def events_of(self, publisher: int) -> int:
        return self.events // self.publishers + (publisher < self.events % self.publishers)

    def expected(self, audience: int) -> int:
        """How many events a subscriber in `audience` is to get."""
        return sum(
            len(range(audience, self.events_of(publisher), self.audience_count)) for publisher in range(self.publishers)
        )


class Run(NamedTuple):
    """What one publisher's events in a read were: an unbroken sequence, or nothing that can be told at once."""

    publisher: int
    first: int
    last: int


class Content(NamedTuple):
    """What one read held."""

    events: int
    runs: list[Run]
    odd: list[tuple[int, int]]
    """Publisher and sequence number of each event, where they are no unbroken sequences."""
    stamps: list[int]


def content_of(data: bytes) -> Content:
    found = [(int(publisher), int(number), int(stamp)) for number, publisher, stamp in STAMP.findall(data)]
    by_publisher: dict[int, list[int]] = {}
    for publisher, number, _ in found:
        by_publisher.setdefault(publisher, []).append(number)
    step = max(1, len(found) // MAX_SAMPLES)
    stamps = [stamp for _, _, stamp in found[::step]]
    if all(b == a + 1 for numbers in by_publisher.values() for a, b in pairwise(numbers)):
        runs = [Run(publisher, numbers[0], numbers[-1]) for publisher, numbers in by_publisher.items()]
        return Content(len(found), runs, [], stamps)
    return Content(len(found), [], [(publisher, number) for publisher, number, _ in found], stamps)


class Group:
    """The subscribers of one process, and what they have had so far."""

    def __init__(self) -> None:
        self.opened = 0
        self.events = 0
        self.reads = 0
        """Those in which an event was."""
        self.gaps = 0
        self.duplicates = 0
        self.reordered = 0
        self.closed = 0
        self.refused: Counter[str] = Counter()
        self.latencies = Latencies()
        self.finished_at = 0.0
        self.whole: dict[bytes, Content] = {}
        """What reads held that began and ended between two events, chunk headers and all."""
        self._cache: dict[bytes, Content] = {}

    def content(self, data: bytes) -> Content:
        content = self._cache.get(data)
        if content is None:
            content = content_of(data)
            _remember(self._cache, data, content)
        return content

    def report(self) -> dict[str, Any]:
        names = ("opened", "events", "reads", "gaps", "duplicates", "reordered", "closed", "finished_at")
        report = {name: getattr(self, name) for name in names}
        return report | {"refused": dict(self.refused), "cpu_seconds": time.process_time()}


def _remember(cache: dict[bytes, Content], data: bytes, content: Content) -> None:
    if len(cache) >= MAX_CACHED:
        cache.clear()
    cache[data] = content


class Listener(asyncio.Protocol):
    """One subscriber."""

    def __init__(self, request: bytes, group: Group, opened: Callable[[], None]) -> None:
        self._request = request
        self._group = group
        self._opened = opened
        self._head: bytes | None = b""
        self._is_chunked = False
        self._left = 0
        self._line = b""
        self._tail = b"\n"
        self._is_between = False
        """Whether the last read ended with an event, so that the next one can be told without looking into it."""
        self._next: dict[int, int] = {}
        self._missing: set[tuple[int, int]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Left to itself the kernel takes up to 6 MB for each, until it has none left and drops what comes.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        cast(asyncio.Transport, transport).write(self._request)  # uvloop's are of no class of asyncio

    def data_received(self, data: bytes) -> None:
        was_between = self._is_between
        if was_between and (known := self._group.whole.get(data)) is not None:
            self._count(known)
            return
        body = data if self._head is None else self._read_head(data)
        if not body:
            return
        content = self._scan(self._unchunk(body) if self._is_chunked else body)
        self._is_between = not self._left and not self._line and self._tail.endswith(b"\n\n")
        if content is not None:
            self._count(content)
            if was_between and self._is_between:
                _remember(self._group.whole, data, content)

    def _read_head(self, data: bytes) -> bytes:
        """The body's beginning, once the response's head is complete."""
        assert self._head is not None
        head, end, rest = (self._head + data).partition(b"\r\n\r\n")
        if not end:
            self._head = head
            return b""
        self._head = None
        status = head.partition(b"\r\n")[0].split(b" ", 1)[-1].decode(errors="replace")
        if not status.startswith("200"):
            self._group.refused[status] += 1
        else:
            self._group.opened += 1
        self._is_chunked = b"transfer-encoding: chunked" in head.lower()
        self._opened()
        return rest if status.startswith("200") else b""

    def _unchunk(self, data: bytes) -> bytes:
        """What the chunks in `data` carry (RFC 9112, 7.1)."""
        if self._left >= len(data):
            self._left -= len(data)
            return data
        parts = []
        at = 0
        while at < len(data):
            if self._left:
                parts.append(data[at : at + self._left])
                at += len(parts[-1])
                self._left -= len(parts[-1])
                continue
            end = data.find(b"\n", at)
            if end < 0:
                self._line += data[at:]
                break
            line = (self._line + data[at:end]).strip()
            self._line = b""
            at = end + 1
            if line:
                self._left = _chunk_size(line)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _scan(self, data: bytes) -> Content | None:
        data = self._tail + data
        at = data.rfind(MARK)
        # An event whose stamp is not all there yet is left for the next read.
        if at >= 0 and len(data) - at < LONGEST_TAIL:
            data, self._tail = data[:at], data[at:]
        else:
            self._tail = data[-len(MARK) + 1 :]
        return self._group.content(data) if MARK in data else None

    def _count(self, content: Content) -> None:
        group = self._group
        now = time.monotonic_ns()
        weight = content.events // max(1, len(content.stamps))
        for stamp in content.stamps:
            group.latencies.add(max(0, now - stamp), weight)
        group.events += content.events
        group.reads += 1
        group.finished_at = now / 1e9
        for run in content.runs:
            if self._next.get(run.publisher, 0) == run.first:
                self._next[run.publisher] = run.last + 1
            else:
                for number in range(run.first, run.last + 1):
                    self._take(run.publisher, number)
        for publisher, number in content.odd:
            self._take(publisher, number)

    def _take(self, publisher: int, number: int) -> None:
        """One event that may not be the next one."""
        wanted = self._next.get(publisher, 0)
        if number >= wanted:
            self._group.gaps += number - wanted
            if len(self._missing) < MAX_MISSING:
                self._missing.update((publisher, missing) for missing in range(wanted, number))
            self._next[publisher] = number + 1
        elif (publisher, number) in self._missing:
            self._missing.discard((publisher, number))
            self._group.gaps -= 1
            self._group.reordered += 1
        else:
            self._group.duplicates += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._group.closed += 1
        self._opened()


async def listen(url: str, requests: list[bytes], first: int) -> None:
    """A process of subscribers: opens one for each request, reports to stdout, ends when stdin says so."""
    loop = asyncio.get_running_loop()
    host, port = address_of(url)
    group = Group()
    free = asyncio.Semaphore(CONNECTING_AT_ONCE)
    stop = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), stop.set)

    async def open_one(number: int, request: bytes) -> None:
        opened = asyncio.Event()
        async with free:
            source = source_of(host, first + number)
            try:
                await loop.create_connection(
                    lambda: Listener(request, group, opened.set), host, port, local_addr=source
                )
                await opened.wait()
            except OSError as exc:
                group.refused[exc.strerror or str(exc)] += 1

    opening = asyncio.gather(*[open_one(number, request) for number, request in enumerate(requests)])
    while not stop.is_set():
        say(group.report())
        with suppress(TimeoutError):
            async with asyncio.timeout(REPORT_SECONDS):
                await stop.wait()
    opening.cancel()
    with suppress(asyncio.CancelledError):
        await opening
    say(group.report() | {"latencies": dict(group.latencies.counts)})


def say(report: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()


def address_of(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        host = None
    if host is None or parts.scheme != "http":
        raise ConfigError(f"{url!r} is no URL such as http://127.0.0.1:8000")
    return host, port


def source_of(host: str, number: int) -> tuple[str, int] | None:
    """The address to connect from: on loopback there are many, and each has only so many ports."""
    if not host.startswith("127.") or number < PORTS_PER_ADDRESS:
        return None
    return str(ipaddress.IPv4Address("127.0.0.1") + number // PORTS_PER_ADDRESS), 0


class Poster:
    """One publisher's connection."""

    def __init__(self, plan: Plan, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        key = f"Authorization: Bearer {plan.control_key}\r\n" if plan.control_key else ""
        self._url = plan.control_url
        parts = urlsplit(plan.control_url)
        self._prefix = parts.path.rstrip("/")
        self._head = f"HTTP/1.1\r\nHost: {parts.netloc}\r\n{key}"

    @classmethod
    @asynccontextmanager
    async def connected(cls, plan: Plan) -> Any:
        host, port = address_of(plan.control_url)
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except OSError as exc:
            raise BenchError(f"nobody answers at {plan.control_url}: {exc.strerror or exc}") from exc
        try:
            yield cls(plan, reader, writer)
        finally:
            writer.close()

    async def post(self, path: str, body: bytes, kind: str = "json") -> bytes:
        """The answer's body; raises BenchError for any status but 2xx."""
        head = (
            f"POST {self._prefix}{path} {self._head}Content-Type: {KINDS[kind]}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        try:
            answer = await self._reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/"):
                raise ValueError
            status = answer.partition(b"\r\n")[0].split(b" ", 1)[-1].decode(errors="replace")
            text = await self._read_body(answer)
        except (OSError, asyncio.IncompleteReadError) as exc:
            raise BenchError("the hub ended a publisher's connection without an answer") from exc
        except (ValueError, asyncio.LimitOverrunError) as exc:
            raise BenchError(f"{self._url} answers {path} with what is no HTTP") from exc
        if not status.startswith("2"):
            raise BenchError(f"the hub refused {path}: {status}: {' '.join(text.decode(errors='replace').split())}")
        return text

    async def _read_body(self, head: bytes) -> bytes:
        if length := re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE):
            return await self._reader.readexactly(int(length[1]))
        if not re.search(rb"\r\ntransfer-encoding: *chunked", head, re.IGNORECASE):
            return b""
        chunks = []
        while size := int((await self._reader.readuntil(b"\n")).partition(b";")[0], 16):
            chunks.append(await self._reader.readexactly(size))
            await self._reader.readuntil(b"\n")
        while (await self._reader.readuntil(b"\n")).strip():  # trailers
            pass
        return b"".join(chunks)


def bodies(plan: Plan, publisher: int, stamps: Callable[[int], int]) -> Iterator[bytes]:
    """The requests of one publisher; `stamps` gives the time at which its nth request is to be sent, in ns."""
    audiences = plan.audiences
    padding = "x" * max(0, plan.size - STAMP_BYTES)
    count = plan.events_of(publisher)
    for request, start in enumerate(range(0, count, plan.batch)):
        stamp = stamps(request)
        events = []
        for event in range(start, min(count, start + plan.batch)):
            channel, user = audiences[event % len(audiences)]
            data = f"{event // len(audiences):010}.{publisher:03}.{stamp:019}.{padding}"
            user = "*" if plan.users == 1 else user
            events.append({"userId": user, "channel": channel, "data": data})
        yield body_of(plan.body, events)


def body_of(kind: str, events: list[dict[str, str]]) -> bytes:
    if kind == "raw":
        return events[0]["data"].encode()
    if kind == "form":
        return urlencode(events[0]).encode()
    return json.dumps(events[0] if len(events) == 1 else events).encode()


async def publish(plan: Plan, publisher: int) -> None:
    """One publisher: on its schedule, or the next request when the last one has been answered."""
    loop = asyncio.get_running_loop()
    interval = plan.publishers * plan.batch * 1e9 / plan.rate if plan.rate else 0.0
    began = time.monotonic_ns() + int(interval * publisher / plan.publishers)

    def stamp(request: int) -> int:
        return began + int(request * interval) if interval else time.monotonic_ns()

    async with Poster.connected(plan) as poster:
        for request, body in enumerate(bodies(plan, publisher, stamp)):
            if interval:
                await asyncio.sleep(max(0.0, (stamp(request) - time.monotonic_ns()) / 1e9))
            async with asyncio.timeout_at(loop.time() + plan.patience_seconds):
                await poster.post("/emit/", body, plan.body)


class Server:
    """What the server's processes cost, if we were told which they are."""

    def __init__(self, pid: int | None) -> None:
        """Raises ConfigError if there is no such process."""
        self._pid = pid
        if pid is not None and not _stat(Path(f"/proc/{pid}")):
            raise ConfigError(f"--server-pid {pid}: there is no such process on this machine")

    def _processes(self) -> list[int]:
        if self._pid is None:
            return []
        parents = {int(fields[0]): int(fields[3]) for fields in map(_stat, Path("/proc").glob("[0-9]*")) if fields}
        found = [self._pid]
        for pid in found:
            found.extend(child for child, parent in parents.items() if parent == pid)
        return found

    def cpu_seconds(self) -> float:
        """User and system time of all its processes so far."""
        ticks = sum(int(fields[13]) + int(fields[14]) for fields in self._stats())
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory_bytes(self) -> int:
        return sum(int(fields[23]) for fields in self._stats()) * os.sysconf("SC_PAGE_SIZE")

    def _stats(self) -> list[list[str]]:
        return [fields for pid in self._processes() if (fields := _stat(Path(f"/proc/{pid}")))]


def _stat(process: Path) -> list[str]:
    """The fields of proc(5) `stat`, the command's name in one; none if the process has gone."""
    try:
        before, _, after = (process / "stat").read_text().rpartition(") ")
    except OSError:
        return []
    return [before.partition(" ")[0], "", *after.split()]


@dataclass
class Report:
    """What came of a run. Rates are of events that reached subscribers; memory is by subscriber, in bytes."""

    subscribers: int
    expected: int
    delivered: int = 0
    lost: int = 0
    gaps: int = 0
    duplicates: int = 0
    reordered: int = 0
    seconds: float = 0.0
    deliveries_per_second: float = 0.0
    published_per_second: float = 0.0
    connections_per_second: float = 0.0
    latency_ms: dict[str, float] = field(default_factory=dict)
    server_cpu_seconds: float | None = None
    deliveries_per_cpu_second: float | None = None
    events_per_cpu_second: float | None = None
    connections_per_cpu_second: float | None = None
    bytes_per_subscriber: float | None = None
    own_cpu_share: float = 0.0
    problem: str | None = None

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.gaps or self.duplicates or self.reordered or self.problem)

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and of how much."""


class Load:
    """The processes that listen."""

    def __init__(self, plan: Plan, tokens: list[str]) -> None:
        self.reports: list[dict[str, Any]] = [{}] * plan.processes
        self._plan = plan
        self._tokens = tokens
        self._processes: list[asyncio.subprocess.Process] = []
        self._reading: list[asyncio.Task[None]] = []

    def sum(self, name: str) -> int:
        return sum(report.get(name, 0) for report in self.reports)

    def cpu_seconds(self) -> list[float]:
        """What each process of the load has used so far, this one, which publishes, first."""
        return [time.process_time(), *[report.get("cpu_seconds", 0.0) for report in self.reports]]

    def refused(self) -> str | None:
        """What subscribers were answered in place of a stream."""
        found = Counter[str]()
        for report in self.reports:
            found.update(report.get("refused", {}))
        return next((f"{count} of {self._plan.subscribers} got {reason}" for reason, count in found.items()), None)

    async def start(self) -> None:
        for number in range(self._plan.processes):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "ssehub.bench"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=2**24,
                start_new_session=True,  # Ctrl-C is ours: it ends them by their stdin
            )
            self._processes.append(process)
            self._reading.append(asyncio.create_task(self._read(number, process)))
            assert process.stdin
            process.stdin.write(self._order(number))
            await process.stdin.drain()

    def _order(self, number: int) -> bytes:
        plan = self._plan
        mine = range(number, plan.subscribers, plan.processes)
        tokens = [self._tokens[subscriber % len(self._tokens)] for subscriber in mine]
        first = number * (plan.subscribers // plan.processes + 1)
        return json.dumps({"url": plan.url, "tokens": tokens, "first": first}).encode() + b"\n"

    async def _read(self, number: int, process: asyncio.subprocess.Process) -> None:
        assert process.stdout
        async for line in process.stdout:
            self.reports[number] = json.loads(line)

    async def stop(self) -> None:
        """Get the last reports."""
        for process in self._processes:
            with suppress(ProcessLookupError, ConnectionError):
                assert process.stdin
                process.stdin.write(b"stop\n")
                process.stdin.close()
        await asyncio.gather(*self._reading)
        await asyncio.gather(*[process.wait() for process in self._processes])


def request_of(url: str, token: str) -> bytes:
    parts = urlsplit(url)
    path = parts.path.rstrip("/") + "/events/"
    accept = f"Accept: text/event-stream\r\nAuthorization: Bearer {token}\r\n"
    return f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n{accept}\r\n".encode()


def _chunk_size(line: bytes) -> int:
    """What a chunk's header says, or nothing: what such a stream was to carry is then missing."""
    try:
        return int(line.partition(b";")[0], 16)
    except ValueError:
        return 0


async def tokens_from_hub(plan: Plan) -> list[str]:
    """A token for each audience, asked of the control app."""
    async with Poster.connected(plan) as poster:
        fields = [json.dumps({"userId": user, "channel": channel}).encode() for channel, user in plan.audiences]
        try:
            async with asyncio.timeout(plan.patience_seconds):
                answers = [await poster.post("/token/", body) for body in fields]
        except TimeoutError as exc:
            raise BenchError(f"{plan.control_url} gives no token in {plan.patience_seconds:g} s") from exc
    try:
        return [str(json.loads(answer)["token"]) for answer in answers]
    except (ValueError, KeyError, TypeError) as exc:
        raise BenchError(f"{plan.control_url} answers /token/ as no hub does: {answers[0][:80]!r}") from exc


async def measure(plan: Plan, tokens: list[str], progress: Progress) -> Report:
    """Run `plan`. Raises BenchError if it can't even begin."""
    server = Server(plan.server_pid)
    load = Load(plan, tokens)
    share, extra = divmod(plan.subscribers, plan.audience_count)
    expected = sum(plan.expected(a) * (share + (a < extra)) for a in range(plan.audience_count))
    report = Report(plan.subscribers, expected)
    address_of(plan.url)
    memory, cpu, began = server.memory_bytes(), server.cpu_seconds(), time.monotonic()
    try:
        await load.start()
        await _wait(plan, progress, "connecting", lambda: load.sum("opened"), plan.subscribers, load.refused)
        seconds = time.monotonic() - began
        report.connections_per_second = plan.subscribers / seconds if seconds else 0.0
        if plan.server_pid is not None and plan.subscribers:
            report.bytes_per_subscriber = (server.memory_bytes() - memory) / plan.subscribers
            used = server.cpu_seconds() - cpu
            report.connections_per_cpu_second = plan.subscribers / used if used else None
        if plan.events:
            await _publish_all(plan, load, server, report, progress)
    finally:
        await load.stop()
    _sum_up(plan, load, report)
    return report


async def _publish_all(plan: Plan, load: Load, server: Server, report: Report, progress: Progress) -> None:
    cpu, own, began = server.cpu_seconds(), load.cpu_seconds(), time.monotonic()
    publishing = asyncio.gather(*[publish(plan, publisher) for publisher in range(plan.publishers)])
    published_at = [began]
    publishing.add_done_callback(lambda _: published_at.append(time.monotonic()))
    try:
        await _wait(
            plan,
            progress,
            "publishing",
            lambda: load.sum("events"),
            report.expected,
            lambda: _problem(publishing) or _cut_off(load, plan),
            publishing,
        )
    except BenchError as exc:
        report.problem = str(exc)
    publishing.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await publishing
    finished = max([report.get("finished_at", 0.0) for report in load.reports], default=0.0)
    report.seconds = max(finished, published_at[-1]) - began
    used = [now - before for now, before in zip(load.cpu_seconds(), own, strict=True)]
    report.own_cpu_share = _busy_share(used, report.seconds)
    report.published_per_second = plan.events / max(1e-9, published_at[-1] - began)
    if plan.server_pid is not None:
        report.server_cpu_seconds = server.cpu_seconds() - cpu


def _busy_share(used: list[float], seconds: float) -> float:
    """How busy the busiest process was, or all of them together on the cores that they may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(max(used), sum(used) / cores) / max(1e-9, seconds)


def _problem(publishing: asyncio.Future[Any]) -> str | None:
    if not publishing.done() or publishing.cancelled():
        return None
    exc = publishing.exception()
    return (str(exc) or "the hub did not answer a publisher in time") if exc is not None else None


def _cut_off(load: Load, plan: Plan) -> str | None:
    closed = load.sum("closed")
    return f"the server ended {closed} of {plan.subscribers} streams" if closed else None


async def _wait(
    plan: Plan,
    progress: Progress,
    what: str,
    done: Callable[[], int],
    wanted: int,
    problem: Callable[[], str | None],
    also: asyncio.Future[Any] | None = None,
) -> None:
    """Wait until `done` reaches `wanted`; BenchError when there is a problem, or nothing moves any more."""
    last, moved = -1, time.monotonic()
    while (now := done()) < wanted or (also is not None and not also.done()):
        progress(what, now, wanted)
        if found := problem():
            raise BenchError(f"{what}: {found}")
        is_publishing = also is not None and not also.done()
        if now != last or (is_publishing and (plan.rate or not wanted)):
            last, moved = now, time.monotonic()
        # A publisher that gets no answer in time says so first.
        elif time.monotonic() - moved > plan.patience_seconds * (1.5 if is_publishing else 1):
            raise BenchError(f"{what}: nothing has come for {plan.patience_seconds:g} s, {now:,} of {wanted:,} have")
        await asyncio.sleep(0.02)
    progress(what, now, wanted)
    if found := problem():
        raise BenchError(f"{what}: {found}")


def _sum_up(plan: Plan, load: Load, report: Report) -> None:
    report.delivered = load.sum("events")
    report.gaps, report.duplicates, report.reordered = map(load.sum, ("gaps", "duplicates", "reordered"))
    unique = report.delivered - report.duplicates
    report.lost = max(0, report.expected - unique)
    latencies = Latencies()
    for one in load.reports:
        latencies.counts.update({int(bucket): count for bucket, count in one.get("latencies", {}).items()})
    if report.delivered:
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
        report.latency_ms = {name: latencies.milliseconds(share) for name, share in shares.items()}
    if report.seconds > 0:
        report.deliveries_per_second = report.delivered / report.seconds
    if report.server_cpu_seconds:
        report.deliveries_per_cpu_second = report.delivered / report.server_cpu_seconds
        report.events_per_cpu_second = plan.events / report.server_cpu_seconds


def table(report: Report) -> list[tuple[str, str]]:
    """The report as names and values for people."""
    rows: list[tuple[str, str]] = [("subscribers", f"{report.subscribers:,}")]
    rows += [("delivered", f"{report.delivered:,} of {report.expected:,} in {report.seconds:.2f} s")]
    bad = ", ".join(f"{getattr(report, name):,} {name}" for name in ("lost", "gaps", "duplicates", "reordered"))
    rows += [("wrong", "nothing" if report.is_good else report.problem or bad)]
    if report.problem:
        rows += [("", bad)]
    rows += [("deliveries a second", f"{report.deliveries_per_second:,.0f}")]
    rows += [("published a second", f"{report.published_per_second:,.0f}")]
    if report.subscribers:
        rows += [("connections a second", f"{report.connections_per_second:,.0f}")]
    if report.latency_ms:
        rows += [("latency, ms", ", ".join(f"{name} {value:.2f}" for name, value in report.latency_ms.items()))]
    for name, label in (
        ("deliveries_per_cpu_second", "deliveries by server CPU second"),
        ("events_per_cpu_second", "events by server CPU second"),
        ("connections_per_cpu_second", "connections by server CPU second"),
        ("bytes_per_subscriber", "server bytes by subscriber"),
    ):
        if (value := getattr(report, name)) is not None:
            rows += [(label, f"{value:,.0f}")]
    if report.own_cpu_share > BUSY_SHARE:
        rows += [("own CPU share", f"{report.own_cpu_share:.0%}: the load was the bottleneck, try more --processes")]
    else:
        rows += [("own CPU share", f"{report.own_cpu_share:.0%}")]
    return rows


def worker() -> None:
    """What `python -m ssehub.bench` does: one process of subscribers, ordered through stdin."""
    order = json.loads(sys.stdin.readline())
    requests = [request_of(order["url"], token) for token in order["tokens"]]
    _raise_descriptor_limit()
    # Without a reader for the reports, who ordered this has gone.
    with suppress(BrokenPipeError), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(listen(order["url"], requests, order["first"]))


def _raise_descriptor_limit() -> None:
    try:
        import resource
    except ImportError:
        return
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    worker()
