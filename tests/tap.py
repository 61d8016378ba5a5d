"""A relay in front of a hub that notes each stream's request and how its response ended."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 15\r\n\r\n<!doctype html>"
LAST_CHUNK = b"\r\n0\r\n\r\n"


@dataclass
class Visit:
    """One request for a stream, and its response."""

    cursor: str | None
    """The `Last-Event-ID` of the request."""
    began: float
    may_be_cut: bool
    """False for HTTP/1.0, where every response ends with its connection."""
    last_id: str | None = None
    retry_seconds: float | None = None
    ended: float | None = None
    """When the response ended, None if the client left before."""
    is_clean: bool = False


class _Exchange:
    """The latest request on one connection."""

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        self._rest = b""

    def note(self, received: bytes) -> None:
        self._rest += received
        lines = self._rest.split(b"\n")
        for line in lines[:-1]:
            if found := re.fullmatch(rb"id: (.*)", line):
                self.visit.last_id = found[1].decode()
            elif found := re.fullmatch(rb"retry: (\d+)", line):
                self.visit.retry_seconds = int(found[1]) / 1000
        if self._rest.endswith(LAST_CHUNK):
            self.visit.is_clean = True
            self.end()
        self._rest = self._rest[-len(LAST_CHUNK) :] if not lines[-1] else lines[-1]

    def end(self) -> None:
        self.visit.ended = self.visit.ended or time.monotonic()


class Tap:
    """Passes every byte on, and every end of a connection. `visits` are by the query parameter `name`."""

    def __init__(self, hub_port: int) -> None:
        self.port = 0
        self.visits: dict[str, list[Visit]] = defaultdict(list)
        self._hub_port = hub_port

    async def run(self, started: Future[None], stopped: asyncio.Event) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set_result(None)
        await stopped.wait()
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hub: asyncio.StreamWriter | None = None
        answers: asyncio.Task[None] | None = None
        exchanges: list[_Exchange] = []
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET /page"):
                    writer.write(PAGE)
                    continue
                if hub is None:
                    hub_reader, hub = await asyncio.open_connection("127.0.0.1", self._hub_port)
                    answers = asyncio.create_task(self._pass_on(hub_reader, writer, exchanges))
                exchanges.append(_Exchange(self._visit(head)))
                hub.write(head)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            if hub is not None:
                hub.close()
            if answers is not None:
                await asyncio.wait([answers])
            writer.close()

    def _visit(self, head: bytes) -> Visit:
        text = head.decode("latin-1")
        name = parse_qs(urlsplit(text.split(" ", 2)[1]).query).get("name", [""])[0]
        cursor = re.search(r"^last-event-id: (.*?)\r$", text, re.MULTILINE | re.IGNORECASE)
        visit = Visit(cursor[1] if cursor else None, time.monotonic(), b" HTTP/1.0\r\n" not in head)
        self.visits[name].append(visit)
        return visit

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, exchanges: list[_Exchange]
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while received := await reader.read(65_536):
                if exchanges:
                    exchanges[-1].note(received)
                writer.write(received)
            if exchanges:
                exchanges[-1].end()
        writer.close()


@contextmanager
def tapped(hub_port: int) -> Iterator[Tap]:
    """Run a tap in a thread of its own."""
    tap, started = Tap(hub_port), Future[None]()
    loop, stopped = asyncio.new_event_loop(), asyncio.Event()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(tap.run(started, stopped))
        for task in (tasks := asyncio.all_tasks(loop)):
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        started.result(10)
        yield tap
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(10)
