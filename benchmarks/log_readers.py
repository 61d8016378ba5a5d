"""Measures what a log in Redis costs with many nodes, for docs/scaling.md.

python benchmarks/log_readers.py                 1, 10 and 50 readers, 100 to 1,000 events per second
python benchmarks/log_readers.py 50 --rates 500  only these

One of the readers is a node without streams. The others are connections of this process that read as a node does, with
the same pauses. Events are published one at a time. Where this process is busy for more than 70 % of the time, the row
is no result.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, cast

import uvloop
from hiredis import Reader, pack_command
from measuring import say
from peers import redis_log, ssehub

from ssehub.bench.resources import ServerProcesses
from ssehub.brokers.redis.pauses import Pauses
from ssehub.brokers.redis.reader import READ_COUNT
from ssehub.brokers.redis.wire import DIGEST, Keys, dump_entry
from ssehub.event import Event

KEYS = Keys.of("ssehub")
WARM_UP_SECONDS = 1.0
EVENT = dump_entry(Event(["chat"], ["*"], data="x" * 100, type="message"))


def packed(*parts: str | bytes | int) -> bytes:
    return pack_command(parts)  # type: ignore[arg-type, no-any-return]  # one part by its annotation


APPEND = packed(
    *("EVALSHA", DIGEST, len(KEYS), *KEYS, "append", "00000000", 300_000, 100_000, 100_000, 1, 1, "", "-", 1, EVENT)
)


class LogReader(asyncio.Protocol):
    """Reads the log as a node does."""

    def __init__(self) -> None:
        self.entries = 0
        self.reads = 0
        self._pauses = Pauses()
        self._parser = Reader()
        self._last_id = b"$"
        self._transport = cast(asyncio.Transport, None)  # until it is connected

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._parser.feed(data)
        while (reply := self._parser.gets()) is not False:
            self._take(reply)

    def _ask(self) -> None:
        if not self._transport.is_closing():
            command = packed("XREAD", "COUNT", READ_COUNT, "BLOCK", 2_500, "STREAMS", KEYS.stream, self._last_id)
            self._transport.write(command)

    def _take(self, reply: Any) -> None:
        entries = reply[0][1] if reply else ()
        self.entries += len(entries)
        self.reads += 1
        delay = 0.0
        if entries:
            self._last_id = entries[-1][0]
            now = time.monotonic()
            ends_at = self._pauses.ends_at(now, len(entries))
            delay = ends_at - now if len(entries) < READ_COUNT else 0.0
        if delay:
            asyncio.get_running_loop().call_later(delay, self._ask)
        else:
            self._ask()


class Publisher(asyncio.Protocol):
    """Publishes `rate` events per second, each in a call of its own, and ignores the replies."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._transport = cast(asyncio.Transport, None)  # until it is connected

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    async def publish(self, seconds: float) -> None:
        began = time.monotonic()
        for number in range(round(seconds * self._rate)):
            await asyncio.sleep(began + number / self._rate - time.monotonic())
            self._transport.write(APPEND)


class Cost(NamedTuple):
    """Shares of a core, and how many entries a read of the connections here returned."""

    node: float
    redis: float
    load: float
    entries_per_read: float

    def __str__(self) -> str:
        note = " (no result)" if self.load > 0.7 else ""
        shares = f"node {self.node:.1%}, Redis {self.redis:.1%}, load {self.load:.0%}{note}"
        return f"{shares}, {self.entries_per_read:.1f} entries per read"


async def measure(redis_pid: int, url: str, node_pid: int, readers: int, rate: float, seconds: float) -> Cost:
    loop, port = asyncio.get_running_loop(), int(url.rpartition(":")[2])
    connections = [await loop.create_connection(LogReader, "127.0.0.1", port) for _ in range(readers - 1)]
    _, publisher = await loop.create_connection(lambda: Publisher(rate), "127.0.0.1", port)
    publishing = asyncio.create_task(publisher.publish(WARM_UP_SECONDS + seconds))
    await asyncio.sleep(WARM_UP_SECONDS)
    processes = ServerProcesses(node_pid), ServerProcesses(redis_pid)
    began, load = time.monotonic(), time.process_time()
    before = [one.usage().cpu_seconds for one in processes]
    await publishing
    passed = time.monotonic() - began
    node, redis = (one.usage().cpu_seconds - spent for one, spent in zip(processes, before, strict=True))
    load = time.process_time() - load
    entries, reads = sum(one.entries for _, one in connections), sum(one.reads for _, one in connections)
    for transport, _ in connections:
        transport.close()
    return Cost(node / passed, redis / passed, load / passed, entries / max(1, reads))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", type=int, default=[1, 10, 50])
    parser.add_argument("--rates", nargs="*", type=float, default=[100, 200, 500, 1_000])
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    for rate in cast(Sequence[float], arguments.rates):
        for readers in cast(Sequence[int], arguments.readers):
            with ExitStack() as stack:
                pid, url = stack.enter_context(redis_log())
                node = stack.enter_context(ssehub("--broker", url)())
                cost = uvloop.run(measure(pid, url, node.pid, readers, rate, arguments.seconds))
            say(f"{rate:.0f} events a second, {readers} readers: {cost}")


if __name__ == "__main__":
    main()
