"""The scenarios: what is done to a client, and what becomes of its events."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import ClassVar, Self

import httpx

from conftest import ERROR_LINES, RunningHub, free_port, wait_until

from .catalogue import Client
from .link import Link, behind
from .program import Program
from .verdict import FINE, Sent, compare

CONNECT_SECONDS = 30.0
"""In which a program must have started and connected."""
RETURN_SECONDS = 45.0
"""In which a client must be back. Backoffs of up to 30 s are usual."""
HEAR_SECONDS = 10.0
"""In which an event must have been received by a client that is connected."""
DOWN_SECONDS = 5.0
"""How long a killed hub stays away: longer than libraries wait before they first reconnect."""
WATCH_SECONDS = 8.0
"""For which the requests of a refused client are counted."""

TYPES = ("greeting", "größe", "empty")
LISTENED = ",".join((*TYPES, "stream-reset"))


@dataclass(frozen=True, slots=True)
class Outcome:
    """The text of a cell of the table, and what it stands for."""

    text: str
    is_fine: bool
    details: tuple[str, ...] = ()


_starting = threading.Lock()


@contextlib.contextmanager
def start_hub(*options: str) -> Iterator[RunningHub]:
    """Run a hub. They start one after the other: several at once take their time on a busy machine."""
    with _starting:
        hub = RunningHub("--cors-origins", "*", *options)
    try:
        yield hub
        assert not ERROR_LINES.search(hub.log), hub.log[-3000:]
    finally:
        hub.stop()


class Hubs:
    """The hubs that many runs share, started when they are first needed."""

    OPTIONS: ClassVar[dict[str, tuple[str, ...]]] = {
        "plain": (),
        "beating": ("--heartbeat-seconds", "0.5"),
        "forgetful": ("--history-events", "10"),
    }

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()
        self._hubs: dict[str, RunningHub] = {}

    def get(self, name: str) -> RunningHub:
        with self._lock:
            if name not in self._hubs:
                self._hubs[name] = self._stack.enter_context(start_hub(*self.OPTIONS[name]))
            return self._hubs[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()


_channels = itertools.count()


@dataclass
class Run:
    """A client in a scenario: a channel of its own, and what was published there."""

    client: Client
    hubs: Hubs
    channel: str = field(default_factory=lambda: f"channel-{next(_channels)}")
    sent: list[Sent] = field(default_factory=list)
    _number: int = 0

    def url(self, hub: RunningHub, base: str) -> str:
        return f"{base}/events/?token={hub.token(channel=self.channel)}"

    def start(self, url: str, *, line_bytes: int | None = None) -> Program:
        return Program(self.client, url, LISTENED, line_bytes=line_bytes)

    def publish(self, hub: RunningHub, count: int, *, expected: bool = True, text: str = "") -> str:
        """Publish plain events as one batch; return the data of the last one."""
        events = []
        for _ in range(count):
            self._number += 1
            events.append({"data": json.dumps({"n": self._number, "text": text})})
        return self.publish_all(hub, events, expected=expected)

    def publish_all(self, hub: RunningHub, events: Sequence[dict[str, str]], *, expected: bool = True) -> str:
        ids = hub.emit_batch([{"userId": "*", "channel": self.channel, **event} for event in events])
        if expected:
            self.sent += [
                Sent(id, event.get("event", "message"), event["data"]) for id, event in zip(ids, events, strict=True)
            ]
        return events[-1]["data"]

    def outcome(self, program: Program, *, returned: bool = True, resets: int = 0) -> Outcome:
        """Return how what the program has received differs from what was published."""
        difference = compare(self.sent, program.messages)
        parts = [] if str(difference) == FINE else [str(difference)]
        told = [message for message in program.messages if message.type == "stream-reset" or _is_reset(message.data)]
        if len(told) > resets:
            parts.append("reset")
        elif len(told) < resets:
            parts.append("no reset")
        if program.ended is not None:
            parts.insert(0, "does not reconnect" if self.client.reconnects == "never" else "gives up")
        elif not returned:
            parts.insert(0, "never returns")
        return Outcome(", ".join(parts) or FINE, not parts, (*difference.examples[:5], *program.reports))


def _is_reset(data: str | None) -> bool:
    return bool(data and re.fullmatch(r'\{"reason": ?"[a-z-]+"\}', data))


def _connected(program: Program, link: Link, streams: int = 1) -> bool:
    return program.wait(lambda: link.streams >= streams, CONNECT_SECONDS if streams == 1 else RETURN_SECONDS)


def _assert_connected(program: Program, connected: bool) -> None:
    assert connected, f"the program has not connected: {program.ended} {program.errors[:3]}"


def _hears(program: Program, data: str) -> bool:
    return program.wait(lambda: program.has_heard(data), HEAR_SECONDS)


def in_order(run: Run) -> Outcome:
    """500 events of ten kinds, in batches."""
    hub = run.hubs.get("plain")
    with Link(hub.port) as link, run.start(run.url(hub, link.url)) as program:
        _assert_connected(program, _connected(program, link))
        for number in range(0, 500, 50):
            run.publish_all(hub, [_various(n) for n in range(number, number + 50)])
        _hears(program, run.publish(hub, 1, text="the last one"))
        return run.outcome(program)


def _various(number: int) -> dict[str, str]:
    text = f'"n": {1000 + number}'
    return [
        {"data": f"{{{text}}}"},
        {"data": f'{{{text},\n\n  "lines": 4\n}}'},
        {"data": f'{{{text}, "text": "Grüße, 漢字, 🎈"}}'},
        {"data": f'{{{text}, "text": "\u2028 and \u0085 and \x0b and \x1c end no line"}}'},
        {"data": f"{{{text}}}", "event": TYPES[0]},
        {"data": f"{{{text}}}", "event": TYPES[1]},
        {"data": "", "event": TYPES[2]},
        {"data": f"  {{{text}}} : \t"},
        {"data": f": {{{text}}}\ndata: x\n"},
        {"data": f"\n{{{text}}}"},
    ][number % 10]


def large(run: Run) -> Outcome:
    """An event of 100 KB and one of 1 MB, each in one line."""
    hub = run.hubs.get("plain")
    with Link(hub.port) as link, run.start(run.url(hub, link.url)) as program:
        _assert_connected(program, _connected(program, link))
        run.publish(hub, 1)
        for size in (100_000, 1_000_000):
            _hears(program, run.publish(hub, 1, text="x" * size))
        _hears(program, run.publish(hub, 1))
        return run.outcome(program)


def kill(run: Run) -> Outcome:
    """The hub is killed, and starts again on its SQLite log 5 s later. Meanwhile connections are refused."""
    with contextlib.ExitStack() as stack:
        options = stack.enter_context(_on_disk())
        hub = stack.enter_context(start_hub(*options))
        program = stack.enter_context(run.start(run.url(hub, hub.url)))
        _assert_connected(program, program.wait(lambda: hub.metric("ssehub_subscribers") == 1, CONNECT_SECONDS))
        _hears(program, run.publish(hub, 3))
        hub.process.kill()
        hub.wait()
        time.sleep(DOWN_SECONDS)
        again = stack.enter_context(start_hub(*options))
        run.publish(again, 3)
        returned = program.wait(lambda: again.metric("ssehub_subscribers") == 1, RETURN_SECONDS)
        return _last_one(run, program, again, returned)


def drain(run: Run) -> Outcome:
    """The hub is stopped with SIGTERM, and starts again on its SQLite log. Meanwhile connections wait."""
    with contextlib.ExitStack() as stack:
        options = (*stack.enter_context(_on_disk()), "--drain-seconds", "2")
        hub = stack.enter_context(start_hub(*options))
        link = stack.enter_context(Link(hub.port))
        program = stack.enter_context(run.start(run.url(hub, link.url)))
        _assert_connected(program, _connected(program, link))
        _hears(program, run.publish(hub, 3))
        link.hold()  # so that the outcome does not depend on how long the start takes
        hub.signal()
        hub.wait()
        again = stack.enter_context(start_hub(*options))
        link.release()
        run.publish(again, 3)
        return _last_one(run, program, again, _connected(program, link, 2))


@contextlib.contextmanager
def _on_disk() -> Iterator[tuple[str, ...]]:
    """Give the options of a hub that can be started again."""
    with _starting:  # free_port() is not made for threads
        port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        yield "--broker", f"sqlite:///{folder}/log.db", "--bind", f"127.0.0.1:{port}"


def _last_one(run: Run, program: Program, hub: RunningHub, returned: bool, *, resets: int = 0) -> Outcome:
    """Publish an event behind which nothing more is to come, and return the outcome."""
    last = run.publish(hub, 1)
    if returned:
        _hears(program, last)
    return run.outcome(program, returned=returned, resets=resets)


def cut(pattern: bytes, hub_name: str = "plain") -> Callable[[Run], Outcome]:
    """Return a scenario in which the connection ends where `pattern` does, in or behind the fourth event."""

    def scenario(run: Run) -> Outcome:
        hub = run.hubs.get(hub_name)
        with Link(hub.port) as link, run.start(run.url(hub, link.url)) as program:
            _assert_connected(program, _connected(program, link))
            run.publish(hub, 3)
            wait_until(lambda: link.has_forwarded(b'"n": 3,'), HEAR_SECONDS)
            link.cut = behind(pattern)
            if hub_name == "plain":
                run.publish(hub, 3)
            else:
                hub.emit(channel="another", data="moves the position")
            wait_until(lambda: link.cut is None, HEAR_SECONDS)
            run.publish(hub, 2)
            return _last_one(run, program, hub, _connected(program, link, 2))

    return scenario


def first_cut(run: Run) -> Outcome:
    """The connection ends when only the hub's first frame has been received; then events are published."""
    hub = run.hubs.get("plain")
    hub.emit(channel="another", data="so that there is a position")
    with Link(hub.port) as link, run.start(run.url(hub, link.url)) as program:
        _assert_connected(program, _connected(program, link))
        program.wait(lambda: program.has_opened, 1)
        time.sleep(0.3)  # browsers hand the bytes of an XMLHttpRequest over every 50 ms
        link.cut_all()
        run.publish(hub, 3)
        return _last_one(run, program, hub, _connected(program, link, 2))


def reset(run: Run) -> Outcome:
    """A client is away for longer than history lasts: it must hear of it, and then hear live events."""
    hub = run.hubs.get("forgetful")
    with Link(hub.port) as link, run.start(run.url(hub, link.url)) as program:
        _assert_connected(program, _connected(program, link))
        _hears(program, run.publish(hub, 3))
        link.hold()
        link.cut_all()
        run.publish(hub, 30, expected=False)
        link.release()
        returned = _connected(program, link, 2)
        program.wait(lambda: any(_is_reset(message.data) for message in list(program.messages)), 3)
        return _last_one(run, program, hub, returned, resets=1)


def unauthorized(run: Run) -> Outcome:
    """The token is refused with 401: a client should stop."""
    hub = run.hubs.get("plain")
    with Link(hub.port) as link, run.start(f"{link.url}/events/?token=bad") as program:
        assert program.wait(lambda: link.requests, CONNECT_SECONDS), f"no request: {program.ended}"
        program.wait(lambda: False, WATCH_SECONDS)
        since = [moment - link.requests[0] for moment in link.requests]
        is_over = since[-1] < 0.5  # undici repeats a request with status 401 once, at once, as the fetch standard says
        text = "stops" if is_over else f"goes on: {_pace(len(since))}"
        return Outcome(text, is_over, (f"requests after {since} s", *program.reports))


def _pace(count: int) -> str:
    """Return how often a client has asked within WATCH_SECONDS."""
    per_second = count / WATCH_SECONDS
    return f"hammers, {per_second:.0f}/s" if per_second > 2 else f"{count} in {WATCH_SECONDS:g} s"


def busy(run: Run) -> Outcome:
    """The hub is full: a client should wait as long as `retry:` says, and return when there is room."""
    with start_hub("--max-connections", "1") as hub, contextlib.ExitStack() as stack:
        url = f"{hub.url}/events/"
        other = stack.enter_context(httpx.stream("GET", url, params={"token": hub.token(channel="another")}))
        hub.wait_for("ssehub_subscribers", 1)
        link = stack.enter_context(Link(hub.port))
        program = stack.enter_context(run.start(run.url(hub, link.url)))
        _assert_connected(program, program.wait(lambda: link.requests, CONNECT_SECONDS))
        program.wait(lambda: False, WATCH_SECONDS)
        pace, hurried = _pace(len(link.requests)), _hurried(link)
        other.close()
        returned = program.wait(lambda: hub.metric("ssehub_streams_total") == 2, RETURN_SECONDS)
        outcome = _last_one(run, program, hub, returned)
    if not hurried:
        return Outcome("comes back" if outcome.is_fine else outcome.text, outcome.is_fine, outcome.details)
    text = f"ignores retry: {pace}"
    return Outcome(text if outcome.is_fine else f"{text}, {outcome.text}", False, (*hurried, *outcome.details))


def _hurried(link: Link) -> list[str]:
    """Return the requests that came much earlier than the answer before them had asked for.

    A client waits from the end of the answer. Some add jitter, of up to half of the time.
    """
    told = [int(retry) / 1000 for connection in link.connections for retry in RETRY.findall(connection.response)]
    found = []
    for asked, (before, after) in zip(told, itertools.pairwise(link.requests), strict=False):
        waited = after - max((end for end in link.ends if before < end < after), default=before)
        if waited < 0.45 * asked:
            found.append(f"told to wait {asked:.1f} s, came back after {waited:.1f} s")
    return found


RETRY = re.compile(rb"\nretry: (\d+)")
Scenario = Callable[[Run], Outcome]
EVENT = rb'data: \{"n": 4, "text"'
SCENARIOS: dict[str, Scenario] = {
    "in order": in_order,
    "large": large,
    "kill": kill,
    "cut inside data": cut(EVENT),
    "cut before id": cut(EVENT + rb"[^\n]*\n"),
    "cut behind id": cut(EVENT + rb"[^\n]*\n(retry[^\n]*\n)?id: [^\n]*\n"),
    "cut between events": cut(EVENT + rb"[^\n]*\n(retry[^\n]*\n)?id: [^\n]*\n\n"),
    "cut in hub frame": cut(rb"event: stream-position\ndata: \{\}\nid: \d{6}", "beating"),
    "cut in chunk header": cut(rb'"n": 3,[^\r]*\r\n[0-9a-f]'),
    "cut before first": first_cut,
    "reset": reset,
    "drain": drain,
    "401": unauthorized,
    "busy": busy,
}
