"""The worker process of the load test: opens subscribers and reports what they receive.

It reads its order from stdin, writes a report to stdout every 0.2 s, and ends with a last report, which includes the
latencies, when stdin has another line or is closed.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

from ..platform import loop_factory, raise_descriptor_limit
from ..trust import tls_problem
from .addresses import Address, address_of, parts_of, source_address
from .listener import Group, Listener
from .messages import Order, Tally

CONNECTING_AT_ONCE = 500
REPORT_SECONDS = 0.2


def main() -> None:
    order = Order.from_line(sys.stdin.readline())
    raise_descriptor_limit()
    # The pipe breaks when the process that reads the reports has ended.
    with suppress(BrokenPipeError), asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(listen(order))


async def listen(order: Order) -> None:
    """Open the subscribers of `order`, and report on them until stdin is readable again."""
    loop = asyncio.get_running_loop()
    group = Group()
    stop = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), stop.set)
    opening = asyncio.create_task(_open_all(order, group))
    while not stop.is_set():
        _report(group.tally())
        with suppress(TimeoutError):
            async with asyncio.timeout(REPORT_SECONDS):
                await stop.wait()
    opening.cancel()
    with suppress(asyncio.CancelledError):
        await opening
    _report(group.tally(with_latencies=True))


async def _open_all(order: Order, group: Group) -> None:
    address = address_of(order.url)
    connecting = asyncio.Semaphore(CONNECTING_AT_ONCE)
    async with asyncio.TaskGroup() as tasks:
        for number, token in enumerate(order.tokens, order.first):
            request, source = stream_request(order.url, token), source_address(address.host, number)
            tasks.create_task(_open(request, group, address, source, connecting))


async def _open(
    request: bytes,
    group: Group,
    address: Address,
    source: tuple[str, int] | None,
    connecting: asyncio.Semaphore,
) -> None:
    """Open one subscriber, and wait until its response's head has arrived."""
    loop, settled = asyncio.get_running_loop(), asyncio.Event()
    async with connecting:
        try:
            if address.path is not None:
                await loop.create_unix_connection(lambda: Listener(request, group, settled.set), address.path)
            else:
                await loop.create_connection(
                    lambda: Listener(request, group, settled.set),
                    address.host,
                    address.port,
                    ssl=address.tls,
                    local_addr=source,
                )
            await settled.wait()
        except OSError as exc:
            group.refused[tls_problem(exc) or exc.strerror or str(exc)] += 1


def stream_request(url: str, token: str) -> bytes:
    """Return the request for a stream of the hub at `url`."""
    parts = parts_of(url)
    path = parts.path.rstrip("/") + "/events/"
    accept = f"Accept: text/event-stream\r\nAuthorization: Bearer {token}\r\n"
    return f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n{accept}\r\n".encode()


def _report(tally: Tally) -> None:
    sys.stdout.buffer.write(tally.to_line())
    sys.stdout.buffer.flush()
