"""Requests for streams that our server answers on a fast path, and the same requests as the app answers them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

from both_ports import TOKENS, BothPorts, app_calls, both_ports
from conftest import until
from hubs import engine_of
from ssehub import Hub
from ssehub.fanout.subscriber import Subscriber
from ssehub.position import Position

TOKEN = TOKENS.issue("alex", ["chat", "news"], patterns=["orders.*"], expires_at=4_000_000_000)
SOON = TOKENS.issue("alex", ["chat"], expires_at=time.time() + 3_600)
EXPIRED = TOKENS.issue("alex", ["chat"], expires_at=time.time() - 60)
REVOKED = TOKENS.issue("mallory", ["chat"], expires_at=4_000_000_000)
END = "the end"


def get(query: str = "", *headers: str, token: str | None = TOKEN, path: str = "/events/", method: str = "GET") -> str:
    """Return a request with `token` in its query, if there is one."""
    query = "&".join([*([f"token={token}"] if token else []), *([query] if query else [])])
    lines = [f"{method} {path}{'?' if query else ''}{query} HTTP/1.1", "Host: localhost", *headers]
    return "\r\n".join([*lines, "", ""])


FAST = {
    "plain": get(),
    "no slash": get(path="/events"),
    "header": get("", f"Authorization: Bearer {TOKEN}", token=None),
    "header in small letters": get("", f"authorization: bearer {TOKEN}", token=None),
    "cookie": get("", f"Cookie: a=b; session={TOKEN}; c=d", token=None),
    "header and query": get("", f"Authorization: Bearer {TOKEN}", token="x"),
    "escaped token": get(token=TOKEN.replace(".", "%2E")),
    "token that expires": get(token=SOON),
    "one channel": get("channel=news"),
    "two channels": get("channel=news&channel=chat&channel=orders.eu"),
    "escaped channel": get("channel=orders.%E2%82%AC"),
    "unknown field": get("tab=3&empty=&tab=4"),
    "cursor": get("", "Last-Event-ID: {first}"),
    "cursor of a publisher": get("", "Last-Event-ID: second"),
    "cursor in the query": get("lastEventId={first}"),
    "empty cursor": get("lastEventId=", "Last-Event-ID:"),
    "unknown cursor": get("", "Last-Event-ID: gr\xfc\xdfe"),
    "cursor of another log": get("", "Last-Event-ID: 5-0.other"),
    "unknown cursor, replayed": get("on_reset=replay", "Last-Event-ID: unknown"),
    "since a position": get("since={first}"),
    "since the earliest": get("since=earliest"),
    "cursor and since": get("since=earliest", "Last-Event-ID: {second}"),
    "clean end": get("end=clean"),
    "cut": get("end=cut"),
    "native": get("", "Accept: text/event-stream", "Cache-Control: no-cache", "Sec-Fetch-Mode: cors"),
    "Datastar": get("dialect=datastar"),
    "Datastar's header": get("", "Datastar-Request: true", "Last-Event-ID: unknown"),
    "client": get("", "User-Agent: Mozilla/5.0 " + "x" * 200),
    "client twice": get("", "User-Agent: first", "User-Agent: second"),
    "proxy": get("", "X-Forwarded-For: 198.51.100.7, 192.0.2.1"),
    "proxy, as the standard says": get("", 'Forwarded: for="[2001:db8::17]:4711"'),
    "proxies that differ": get("", "X-Forwarded-For: 192.0.2.1", "Forwarded: for=192.0.2.2"),
    "origin": get("", "Origin: https://app.example"),
    "cookie and origin": get("", f"Cookie: session={TOKEN}", "Origin: https://app.example", token=None),
    "upgrade": get("", "Connection: Upgrade", "Upgrade: h2c"),
    "last of its connection": get("", "Connection: close"),
}
"""What the fast path answers."""
LEFT = {
    "no token": get(token=None),
    "bad token": get(token="a.b.c"),
    "expired token": get(token=EXPIRED),
    "revoked token": get(token=REVOKED),
    "token of another secret": get(token=TOKEN[:-4] + "AAAA"),
    "channel not granted": get("channel=secret"),
    "channel that is no name": get("channel="),
    "since the last one": get("since=last:1"),
    "ahead": get("", "Last-Event-ID: {ahead}"),
    "unknown since": get("since=yesterday"),
    "unknown end": get("end=never"),
    "unknown dialect": get("dialect=klingon"),
    "unknown on_reset": get("on_reset=x"),
    "dialect of runs": get("dialect=ai-sdk"),
    "run": get("run=answer-1"),
    "run without a name": get("run="),
    "too many fields": get("&".join([f"a{number}=1" for number in range(150)])),
    "foreign origin": get("", "Origin: https://evil.example"),
    "cookie of a foreign page": get("", f"Cookie: session={TOKEN}", "Sec-Fetch-Site: cross-site", token=None),
    "HEAD": get(method="HEAD"),
    "OPTIONS": get(method="OPTIONS"),
    "POST": get("", "Content-Length: 0", method="POST"),
    "below": get(path="/events/chat"),
    "escaped path": get(path="/%65vents/"),
    "elsewhere": get(path="/event/"),
    "body": get("", "Content-Length: 3") + "abc",
    "HTTP/1.0": get().replace("HTTP/1.1", "HTTP/1.0"),
    "expects": get("", "Expect: 100-continue"),
    "two requests": get() * 2,
}
"""What it leaves to the app."""
LIMITED = {"another stream of the user": get(token=SOON)}
SETTINGS: dict[str, Any] = {
    "token_cookie": "session",
    "cors_origins": ["https://app.example"],
    "trusted_proxies": ["127.0.0.1"],
}
KNOWN = (
    *("user_id", "channels", "prefixes", "expires_at", "iss", "sub", "sid", "jti"),
    *("uses_datastar", "origin", "state", "events"),
)
_VARIES = re.compile(rb"(?m)^date: [^\r]+|(?<=retry: )\d{4,}|\d{13}-\d+\.\w+")


class Result(NamedTuple):
    answer: bytes
    stream: dict[str, object] | None
    """What the hub knows about the stream."""
    counts: dict[str, int]
    """How the statistics have changed."""
    calls: int
    """How often the app was called."""


def counted(hub: Hub) -> dict[str, int]:
    statistics = hub.statistics
    counts = {"connected": statistics.connected}
    for name in ("refused", "refused_tokens", "resets"):
        counts |= {f"{name} {label}": count for label, count in getattr(statistics, name).items()}
    for label, count in statistics.refused_connections["client"].items():
        counts[f"connections {label}"] = count
    return counts


def known(subscriber: Subscriber) -> dict[str, object]:
    return {name: getattr(subscriber, name) for name in KNOWN} | {"cuts": getattr(subscriber.sink, "cuts", None)}


async def answer(ports: BothPorts, data: bytes) -> tuple[bytes, dict[str, object] | None]:
    """Send `data`; return what is received until the connection or the stream ends, and what is known of the stream.

    A stream ends here with an event that is published once it has begun.
    """
    before = list(engine_of(ports.hub).index.all)
    reader, writer = await ports.connect(ports.client, data)
    received, stream = b"", None
    async with asyncio.timeout(10):
        while part := await reader.read(65_536):
            received += part
            if stream is None and b"event: stream-hello\n" in received:
                (subscriber,) = [one for one in engine_of(ports.hub).index.all if one not in before]
                stream = known(subscriber)
                await publish_end(ports.hub)
            if re.search(rb"data: the end\nid: [^\n]+\n\n", received) or is_whole(
                received, is_head=data[:4] == b"HEAD"
            ):
                break
    writer.close()
    head, separator, body = received.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head:  # the size of a chunk is that of the ids in it, too
        body = b"|".join(chunks(body))
    return _VARIES.sub(b"?", head + separator + body), stream


async def publish_end(hub: Hub) -> None:
    """Publish an event for every stream of this test; return when it is in history."""
    end = await hub.publish(channel=["chat", "news", "orders.eu", "orders.€"], user_id="*", data=END)
    await until(lambda: engine_of(hub).head == Position.parse(end))


def chunks(data: bytes) -> list[bytes]:
    """Return the chunks of a body (RFC 9112, section 7.1)."""
    found = []
    while data:
        size, _, data = data.partition(b"\r\n")
        found.append(data[: int(size, 16)])
        data = data[int(size, 16) + 2 :]
    return found


def is_whole(received: bytes, *, is_head: bool) -> bool:
    """True if `received` is a whole response on a connection that goes on."""
    head, _, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?m)^content-length: (\d+)", head)
    has_no_body = is_head or head.startswith(b"HTTP/1.1 204")
    return has_no_body or (length is not None and len(body) >= int(length[1]))


async def run(
    requests: Mapping[str, str], *, uses_fast_paths: bool, opens: int = 0, **settings: Any
) -> dict[str, Result]:
    results = {}
    with app_calls() as calls:
        async with both_ports(uses_fast_paths=uses_fast_paths, **SETTINGS, **settings) as ports:
            hub = ports.hub
            await hub.revoke(user_id="mallory", issued_before=time.time() + 60)
            first = await hub.publish(channel="chat", user_id="*", data="1")
            second = await hub.publish(channel="news", user_id="*", data="2", id="second")
            milliseconds, _, log = first.replace(".", "-").split("-")
            ids = {"first": first, "second": second, "ahead": f"{int(milliseconds) + 100_000}-0.{log}"}
            for _ in range(opens):
                await ports.listen()
            for name, text in requests.items():
                calls.clear()
                before = counted(hub)
                for word, id in ids.items():
                    text = text.replace(f"{{{word}}}", id)
                received, stream = await answer(ports, text.encode("latin-1"))
                after = counted(hub)
                changes = {label: count - before.get(label, 0) for label, count in after.items()}
                changes = {label: change for label, change in changes.items() if change}
                results[name] = Result(received, stream, changes, len(calls))
    return results


@pytest.fixture(scope="module")
def results() -> dict[str, tuple[Result, Result]]:
    """Return what came of each request where there are fast paths, and what by the app."""

    async def both() -> dict[str, tuple[Result, Result]]:
        found: dict[str, tuple[Result, Result]] = {}
        limits: dict[str, Any] = {"max_streams_per_user": 1, "user_limit_policy": "refuse", "opens": 1}
        cases: list[tuple[Mapping[str, str], dict[str, Any]]] = [(FAST | LEFT, {}), (LIMITED, limits)]
        for requests, settings in cases:
            fast, ordinary = [await run(requests, uses_fast_paths=fast, **settings) for fast in (True, False)]
            found |= {name: (fast[name], ordinary[name]) for name in requests}
        return found

    return asyncio.run(both())


@pytest.mark.parametrize("name", [*FAST, *LEFT, *LIMITED])
def test_answer_and_stream_are_those_of_the_app(name: str, results: dict[str, tuple[Result, Result]]) -> None:
    fast, ordinary = results[name]

    assert fast.answer == ordinary.answer
    assert fast.stream == ordinary.stream
    assert fast.counts == ordinary.counts


@pytest.mark.parametrize("name", [*FAST, *LEFT, *LIMITED])
def test_app_is_called_only_for_what_is_not_simply_allowed(
    name: str, results: dict[str, tuple[Result, Result]]
) -> None:
    fast, ordinary = results[name]

    assert ordinary.calls
    assert fast.calls == (0 if name in FAST else ordinary.calls)
    assert name not in FAST or fast.stream is not None
