"""Every refusal of both apps and of their servers: its answer, metric and line, as docs/refusals.md has them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client.core import Metric
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from both_ports import TOKENS, both_ports, events, own_address
from certificates import CertificateAuthority
from conftest import require, until
from identity_provider import IdentityProvider
from named_keys import NamedKey, write_keys
from redis_servers import RedisServer
from ssehub import Claims, Hub, create_client_app
from ssehub.errors import Forbidden, TokenReason
from ssehub.fanout.refusals import ConnectionRefusal, ControlRefusal, Refusal
from ssehub.web.metrics import HubCollector
from streams import LAST_CHUNK

pytestmark = pytest.mark.anyio
pytest_plugins = ["redis_fixtures"]

Reason = Refusal | TokenReason | ControlRefusal | ConnectionRefusal
KINDS: Mapping[type[Reason], str] = {
    Refusal: "Requests to the client app",
    TokenReason: "Tokens",
    ControlRefusal: "Requests to the control app",
    ConnectionRefusal: "Connections",
}
REASONS = [reason for kind in KINDS for reason in kind]
PAGE = (Path(__file__).parent.parent / "docs" / "refusals.md").read_text()
NOW = int(time.time())
EVENT = {"userId": "alex", "channel": "chat", "data": "x"}
RUN = {"userId": "*", "channel": "chat"}
PROVIDER, STRANGER = IdentityProvider(), IdentityProvider()
PROVIDED: Mapping[str, Any] = {
    "issuer": "https://id.example",
    "audience": "client-of-the-hub",
    "grant_templates": ["user.{sub}"],
}
READER = NamedKey("ops", ["read"])


class Row(NamedTuple):
    """A row of a table of the page."""

    answer: str
    line: str
    why: str
    what_to_do: str


def table(kind: type[Reason]) -> dict[str, Row]:
    """Return the rows of the table of `kind`, by reason."""
    _, _, below = PAGE.partition(f"\n## {KINDS[kind]}\n")
    rows = re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", below.partition("\n## ")[0], re.MULTILINE)
    return {reason: Row(*cells.split(" | ")) for reason, cells in rows}


class Case:
    """Causes one refusal."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis: RedisServer | None) -> None:
        self.path = tmp_path
        self.monkeypatch = monkeypatch
        self.redis = redis


Cause = Callable[[Case], Awaitable[tuple[Hub, str]]]
CAUSES: dict[type[Reason], dict[str, Cause]] = {kind: {} for kind in KINDS}


def causes(reason: Reason) -> Callable[[Cause], Cause]:
    def register(cause: Cause) -> Cause:
        CAUSES[type(reason)][reason.value] = cause
        return cause

    return register


def metrics(hub: Hub) -> dict[str, float]:
    """Return the samples of all counters of refusals that are not 0, as the page and queries write them."""
    families: list[Metric] = list(HubCollector({"": hub.statistics}).collect())
    return {
        f"{sample.name}{{{','.join(f'{name}={value}' for name, value in sample.labels.items())}}}": sample.value
        for family in families
        for sample in family.samples
        if "refused" in sample.name and sample.name.endswith("_total") and sample.value
    }


def metric_of(reason: Reason, port: str) -> str:
    if isinstance(reason, ConnectionRefusal):
        return f"ssehub_connections_refused_total{{port={port},reason={reason}}}"
    name = {Refusal: "refused", TokenReason: "tokens_refused", ControlRefusal: "control_refused"}[type(reason)]
    return f"ssehub_{name}_total{{reason={reason}}}"


def pattern_of(reason: Reason, row: Row) -> str:
    """Return the pattern of the line of a refusal. On the page, `…` stands for anything, a dash for nothing."""
    noun = {TokenReason: "token", ConnectionRefusal: "connection"}.get(type(reason), "request")
    detail = re.escape(row.line.strip("`\N{EN DASH}")).replace("…", ".+")
    return rf"{noun} refused, {reason}: {detail + '; ' if detail else ''}(?P<about>.*)from .+"


@pytest.mark.parametrize("reason", REASONS, ids=[f"{type(reason).__name__}-{reason}" for reason in REASONS])
async def test_refusal_has_the_answer_the_metric_and_the_line_of_the_page(
    reason: Reason,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "ssehub")
    row = table(type(reason))[reason]
    redis = request.getfixturevalue("valkey") if reason is ControlRefusal.UNAVAILABLE else None

    hub, answer = await CAUSES[type(reason)][reason](Case(tmp_path, monkeypatch, redis))

    assert answer in row.answer.split(" or ")
    counted = metrics(hub)
    port = "control" if reason is ConnectionRefusal.BODY_TOO_LARGE else "client"
    assert counted.pop(metric_of(reason, port)) == 1
    also = {"ssehub_control_keys_refused_total", "ssehub_appends_refused_total"}
    assert {name.partition("{")[0] for name in counted} <= also
    lines = [record for record in caplog.records if " refused, " in record.getMessage()]
    assert len(lines) == 1, [record.getMessage() for record in lines]
    assert re.fullmatch(pattern_of(reason, row), lines[0].getMessage()), lines[0].getMessage()
    logger = {ControlRefusal: "control", ConnectionRefusal: "http"}.get(type(reason), "client")
    assert lines[0].name == f"ssehub.{logger}"


@pytest.mark.parametrize("kind", KINDS)
def test_page_has_all_reasons_and_no_others(kind: type[Reason]) -> None:
    rows = table(kind)

    assert list(rows) == [reason.value for reason in kind]
    assert CAUSES[kind].keys() == rows.keys()
    assert all(row.answer and row.why and row.what_to_do for row in rows.values())


def test_every_counter_of_refusals_is_exported_from_0() -> None:
    names = {
        metric_of(reason, port)
        for reason in REASONS
        for port in (("client", "control") if isinstance(reason, ConnectionRefusal) else ("",))
    }
    shown = {
        f"{sample.name}{{{','.join(f'{name}={value}' for name, value in sample.labels.items())}}}"
        for family in HubCollector({"": Hub().statistics}).collect()
        for sample in family.samples
        if sample.value == 0
    }

    assert names <= shown


# Requests to the client app


async def limited(second: str = "", **settings: Any) -> tuple[Hub, str]:
    """Open a stream, and request another one."""
    async with both_ports(**settings) as ports:
        await ports.listen()
        return ports.hub, (await ports.request(events(second))).status


async def asked(path: str, *headers: str, method: str = "GET", **settings: Any) -> tuple[Hub, str]:
    """Make one request to the client port."""
    async with both_ports(**settings) as ports:
        return ports.hub, (await ports.request(path, *headers, method=method)).status


async def logged_in(exc: Exception) -> tuple[Hub, str]:
    """Make a request to an app whose host's login raises `exc`."""

    async def authenticate(connection: HTTPConnection) -> Claims:
        raise exc

    return await asked("/events/", client=lambda hub: create_client_app(hub, authenticate=authenticate))


@causes(Refusal.FULL)
async def full(case: Case) -> tuple[Hub, str]:
    return await limited(max_connections=1)


@causes(Refusal.MEMORY)
async def memory(case: Case) -> tuple[Hub, str]:
    async with both_ports(max_memory_bytes=1) as ports:
        await until(lambda: ports.hub.is_short_of_memory)
        return ports.hub, (await ports.request(events())).status


@causes(Refusal.DRAINING)
async def draining(case: Case) -> tuple[Hub, str]:
    async with both_ports() as ports:
        await ports.listen()
        drain = asyncio.ensure_future(ports.hub.drain(5))
        await until(lambda: ports.hub.is_draining)
        answer = await ports.request(events())
        await drain
        return ports.hub, answer.status


@causes(Refusal.UNAVAILABLE)
async def unavailable(case: Case) -> tuple[Hub, str]:
    async with both_ports() as ports:
        await ports.hub.aclose()
        return ports.hub, (await ports.request(events())).status


@causes(Refusal.KEYS)
async def keys(case: Case) -> tuple[Hub, str]:
    token = PROVIDER.access_token()
    return await asked(f"/events/?token={token}&end=clean", secret=None, jwks="https://localhost:9/jwks", **PROVIDED)


@causes(Refusal.USER)
async def user(case: Case) -> tuple[Hub, str]:
    return await limited(max_streams_per_user=1, user_limit_policy="refuse")


@causes(Refusal.ADDRESS)
async def address(case: Case) -> tuple[Hub, str]:
    return await limited(max_streams_per_address=1)


@causes(Refusal.CHANNEL)
async def channel(case: Case) -> tuple[Hub, str]:
    return await limited(max_streams_per_channel=1)


@causes(Refusal.ADDRESS_RATE)
async def address_rate(case: Case) -> tuple[Hub, str]:
    return await limited(max_new_streams_per_second_per_address=0.05)


@causes(Refusal.RATE)
async def rate(case: Case) -> tuple[Hub, str]:
    return await limited(max_new_streams_per_second=0.05)


@causes(Refusal.RUN_WAITS)
async def run_waits(case: Case) -> tuple[Hub, str]:
    async with both_ports(max_run_waits=1) as ports:
        head = f"GET {events('&run=answer&wait=30')} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        await ports.connect(ports.client, head.encode())
        await until(lambda: ports.hub.statistics.run_waits == 1)
        return ports.hub, (await ports.request(events("&run=answer&wait=30"))).status


@causes(Refusal.NOT_GRANTED)
async def not_granted(case: Case) -> tuple[Hub, str]:
    return await asked(events("&channel=news"))


@causes(Refusal.UNKNOWN_RUN)
async def unknown_run(case: Case) -> tuple[Hub, str]:
    return await asked(events("&run=answer"))


@causes(Refusal.ORIGIN)
async def origin(case: Case) -> tuple[Hub, str]:
    preflight = ("Origin: https://evil.example", "Access-Control-Request-Method: GET")
    return await asked("/events/", *preflight, method="OPTIONS", cors_origins=["https://app.example"])


@causes(Refusal.PAGE)
async def page(case: Case) -> tuple[Hub, str]:
    return await asked("/events/login", "Sec-Fetch-Site: cross-site", method="POST", token_cookie="sse")


@causes(Refusal.FORBIDDEN)
async def forbidden(case: Case) -> tuple[Hub, str]:
    return await logged_in(Forbidden("this account is locked"))


@causes(Refusal.CONFLICT)
async def conflict(case: Case) -> tuple[Hub, str]:
    async with both_ports() as ports:
        for _ in range(2):
            await ports.request("/runs/answer", method="PUT", form={**RUN, "stoppable": "true", "restart": "true"})
        path = events("&run=answer&generation=1").replace("/events/", "/events/stop")
        return ports.hub, (await ports.request(path, method="POST")).status


@causes(Refusal.INVALID)
async def invalid(case: Case) -> tuple[Hub, str]:
    return await asked(events("&since=yesterday"))


@causes(Refusal.TOO_LARGE)
async def too_large(case: Case) -> tuple[Hub, str]:
    token = TOKENS.issue("alex", [f"channel {n} of many" for n in range(500)], expires_at=NOW + 60)
    return await asked("/events/login", f"Authorization: Bearer {token}", method="POST", token_cookie="sse")


@causes(Refusal.NOT_FOUND)
async def not_found(case: Case) -> tuple[Hub, str]:
    return await asked("/emit/", method="POST")


@causes(Refusal.METHOD)
async def method(case: Case) -> tuple[Hub, str]:
    return await asked("/events/", method="PUT")


@causes(Refusal.LOGOUT)
async def logout(case: Case) -> tuple[Hub, str]:
    jwks = case.path / "jwks.json"
    jwks.write_text(json.dumps(PROVIDER.jwks))
    return await asked("/events/backchannel-logout", method="POST", jwks=str(jwks), **PROVIDED)


@causes(Refusal.FAILED)
async def failed(case: Case) -> tuple[Hub, str]:
    return await logged_in(KeyError("session"))


# Tokens


async def with_token(token: str) -> tuple[Hub, str]:
    async with both_ports(
        client=lambda hub: create_client_app(hub, tokens=PROVIDER.tokens(max_token_seconds=86_400))
    ) as ports:
        await ports.hub.revoke(jti="revoked")
        return ports.hub, (
            await ports.request("/events/", *([f"Authorization: Bearer {token}"] if token else []))
        ).status


BAD_TOKENS: dict[TokenReason, str] = {
    TokenReason.MISSING: "",
    TokenReason.MALFORMED: "x.y.z",
    TokenReason.ALGORITHM: PROVIDER.sign({}, {"alg": "none"}),
    TokenReason.UNKNOWN_KEY: PROVIDER.sign({}, {"kid": "another"}),
    TokenReason.SIGNATURE: STRANGER.access_token(),
    TokenReason.TYPE: PROVIDER.logout_token(),
    TokenReason.EXPIRED: PROVIDER.access_token(iat=NOW - 60, exp=NOW - 30),
    TokenReason.NOT_YET_VALID: PROVIDER.access_token(nbf=NOW + 3_600),
    TokenReason.LIFETIME: PROVIDER.access_token(exp=NOW + 90_000),
    TokenReason.ISSUER: PROVIDER.access_token(iss="https://another.example"),
    TokenReason.AUDIENCE: PROVIDER.access_token(aud="another"),
    TokenReason.CLAIMS: PROVIDER.access_token(sub="line\nbreak"),
    TokenReason.REVOKED: PROVIDER.access_token(jti="revoked"),
}


def _cause_of(token: str) -> Cause:
    async def cause(case: Case) -> tuple[Hub, str]:
        return await with_token(token)

    return cause


for _reason, _token in BAD_TOKENS.items():
    causes(_reason)(_cause_of(_token))


# Requests to the control app


async def called(path: str, *headers: str, times: int = 1, **options: Any) -> tuple[Hub, str]:
    """Make a request to the control port, or the same several times; return the answer to the last one."""
    request = {name: options.pop(name) for name in ("method", "form", "host") if name in options}
    async with both_ports(**options) as ports:
        answers = [await ports.request(path, *headers, port=ports.control, **request) for _ in range(times)]
        return ports.hub, answers[-1].status


@causes(ControlRefusal.KEY)
async def key(case: Case) -> tuple[Hub, str]:
    return await called("/emit/", form=EVENT, control_key="a control key of more than 32 bytes")


@causes(ControlRefusal.KEY_FORBIDDEN)
async def key_forbidden(case: Case) -> tuple[Hub, str]:
    file = write_keys(case.path / "keys.toml", READER)
    return await called("/emit/", f"Authorization: Bearer {READER.key}", form=EVENT, control_keys_file=str(file))


@causes(ControlRefusal.PAGE)
async def control_page(case: Case) -> tuple[Hub, str]:
    return await called("/emit/", "Origin: https://evil.example", form=EVENT)


@causes(ControlRefusal.HOST)
async def host(case: Case) -> tuple[Hub, str]:
    return await called("/emit/", "Host: rebound.example", form=EVENT)


@causes(ControlRefusal.FORWARDED)
async def forwarded(case: Case) -> tuple[Hub, str]:
    return await called("/emit/", "X-Forwarded-For: 192.0.2.9", form=EVENT)


@causes(ControlRefusal.REACHABLE)
async def reachable(case: Case) -> tuple[Hub, str]:
    own = own_address()
    require(own, "an address that other machines can reach")
    return await called("/emit/", form=EVENT, control_host=own, host=own)


@causes(ControlRefusal.INVALID)
async def control_invalid(case: Case) -> tuple[Hub, str]:
    return await called("/emit/", form={"chanel": "chat"})


@causes(ControlRefusal.UNSUPPORTED)
async def unsupported(case: Case) -> tuple[Hub, str]:
    return await called("/emit/", "Content-Encoding: gzip", form=EVENT)


@causes(ControlRefusal.TOO_LARGE)
async def control_too_large(case: Case) -> tuple[Hub, str]:
    return await called("/emit/", form={**EVENT, "data": "x" * 5_000}, max_body_bytes=2_000, max_event_bytes=1_000)


@causes(ControlRefusal.TIMEOUT)
async def control_timeout(case: Case) -> tuple[Hub, str]:
    async with both_ports(body_seconds=0.2) as ports:
        head = b"POST /runs/answer?userId=*&channel=chat HTTP/1.1\r\nHost: localhost\r\n"
        head += b"Content-Type: application/x-ndjson\r\n"
        answer = await ports.send(ports.control, head + b'Transfer-Encoding: chunked\r\n\r\n9\r\n{"data": \r\n')
        return ports.hub, answer.status


@causes(ControlRefusal.CONFLICT)
async def control_conflict(case: Case) -> tuple[Hub, str]:
    return await called("/runs/answer", method="PUT", form=RUN, times=2)


@causes(ControlRefusal.NOT_FOUND)
async def control_not_found(case: Case) -> tuple[Hub, str]:
    return await called("/events/")


@causes(ControlRefusal.METHOD)
async def control_method(case: Case) -> tuple[Hub, str]:
    return await called("/emit/")


@causes(ControlRefusal.RATE)
async def control_rate(case: Case) -> tuple[Hub, str]:
    return await called("/emit/", form=EVENT, times=2, max_publishes_per_second=0.05)


@causes(ControlRefusal.OVERLOADED)
async def overloaded(case: Case) -> tuple[Hub, str]:
    async with both_ports(max_runs=1) as ports:
        answers = [await ports.request(f"/runs/{n}", method="PUT", form=RUN) for n in range(2)]
        return ports.hub, answers[-1].status


@causes(ControlRefusal.DRAINING)
async def control_draining(case: Case) -> tuple[Hub, str]:
    async with both_ports() as ports:
        await ports.hub.aclose()
        return ports.hub, (await ports.request("/emit/", form=EVENT)).status


@causes(ControlRefusal.UNAVAILABLE)
async def control_unavailable(case: Case) -> tuple[Hub, str]:
    assert case.redis is not None
    async with both_ports(broker=case.redis.url) as ports:
        case.redis.kill()
        await until(lambda: ports.hub.broker.problem is not None, 20)
        return ports.hub, (await ports.request("/emit/", form=EVENT)).status


# Connections


async def sent(data: bytes, *, to_control: bool = False, **settings: Any) -> tuple[Hub, str]:
    """Send `data` on a new connection."""
    async with both_ports(**settings) as ports:
        return ports.hub, (await ports.send(ports.control if to_control else ports.client, data)).status


@causes(ConnectionRefusal.FULL)
async def connections_full(case: Case) -> tuple[Hub, str]:
    async with both_ports(max_port_connections=1) as ports:
        oldest = asyncio.ensure_future(ports.send(ports.client, b"GET"))
        await asyncio.sleep(0.05)
        await ports.connect(ports.client)
        return ports.hub, (await oldest).status


@causes(ConnectionRefusal.MEMORY)
async def heads_take_memory(case: Case) -> tuple[Hub, str]:
    case.monkeypatch.setattr("ssehub.server.connection.MAX_UNFINISHED_BYTES", 10_000)
    return await sent(b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000)


@causes(ConnectionRefusal.MALFORMED)
async def malformed(case: Case) -> tuple[Hub, str]:
    return await sent(b"nonsense\r\n\r\n")


@causes(ConnectionRefusal.UNSUPPORTED)
async def unsupported_coding(case: Case) -> tuple[Hub, str]:
    return await sent(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n")


@causes(ConnectionRefusal.HEAD_TOO_LARGE)
async def head_too_large(case: Case) -> tuple[Hub, str]:
    return await sent(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 200 + b"\r\n")


@causes(ConnectionRefusal.BODY_TOO_LARGE)
async def body_too_large(case: Case) -> tuple[Hub, str]:
    head = b"POST /emit/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    return await sent(head + b"1;" + b"x" * 200_000, to_control=True)


@causes(ConnectionRefusal.TIMEOUT)
async def timeout(case: Case) -> tuple[Hub, str]:
    return await sent(b"GET /events/ HTTP/1.1\r\nHost:", head_seconds=0.2)


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with more than any buffer takes."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(1_000):
        await send({"type": "http.response.body", "body": bytes(2**16), "more_body": True})


@causes(ConnectionRefusal.UNREAD)
async def unread(case: Case) -> tuple[Hub, str]:
    async with both_ports(client=lambda hub: large, body_seconds=0.2) as ports:
        reader, _ = await ports.connect(ports.client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: any(ports.hub.statistics.refused_connections["client"].values()), 10)
        received = b""
        with contextlib.suppress(ConnectionError):
            received = await reader.read()
        assert not received.endswith(LAST_CHUNK)
        return ports.hub, "cut off"


@causes(ConnectionRefusal.PIPELINED)
async def pipelined(case: Case) -> tuple[Hub, str]:
    async with both_ports() as ports:
        _, writer = await ports.listen()
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await until(lambda: ports.hub.statistics.refused_connections["client"]["pipelined"])
        return ports.hub, "none"


@causes(ConnectionRefusal.PLAIN_HTTP)
async def plain_http(case: Case) -> tuple[Hub, str]:
    return await sent(b"GET /events/ HTTP/1.1\r\n", **over_tls(case))


@causes(ConnectionRefusal.TLS)
async def failed_handshake(case: Case) -> tuple[Hub, str]:
    return await sent(b"\x16\x03\x01\x00\x05hello", **over_tls(case))


@causes(ConnectionRefusal.PREAMBLE)
async def preamble(case: Case) -> tuple[Hub, str]:
    return await sent(b"GET /events/ HTTP/1.1\r\n\r\n", trusted_proxies=["127.0.0.1"], proxy_protocol=True)


def over_tls(case: Case) -> dict[str, Any]:
    issued = CertificateAuthority(case.path).issue()
    return {"tls_cert_file": str(issued.cert_file), "tls_key_file": str(issued.key_file)}
