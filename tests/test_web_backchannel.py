"""Back-channel logout: its requests and answers, what it revokes, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from conftest import ERROR_LINES, SECRET, StartHub, until, wait_until
from fakes import FakeSink
from identity_provider import AUDIENCE, ISSUER, IdentityProvider
from ssehub import Claims, Hub, Tokens, create_client_app
from ssehub.brokers.memory import MemoryBroker
from ssehub.errors import BrokerUnavailable, Overloaded, Unavailable
from ssehub.revocations import Revocation
from streams import LAST_CHUNK, listen

pytestmark = pytest.mark.anyio

PATH = "/events/backchannel-logout"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
REFUSED = "a valid token is required\n"


class FailingBroker(MemoryBroker):
    """Raises `failure`, if it has one, in place of revoking."""

    failure: Unavailable | None = None

    async def revoke(self, revocations: Any) -> str:
        if self.failure is not None:
            raise self.failure
        return await super().revoke(revocations)


class App:
    """A client app that takes the tokens of `provider`, in this event loop."""

    def __init__(self, http: httpx.AsyncClient, hub: Hub, broker: FailingBroker, provider: IdentityProvider) -> None:
        self.http = http
        self.hub = hub
        self.broker = broker
        self.provider = provider
        self.tokens = provider.tokens()

    async def log_out(self, token: str | None = None, **claims: Any) -> httpx.Response:
        """Send a logout token, as a provider does."""
        return await self.http.post(PATH, data={"logout_token": token or self.provider.logout_token(**claims)})

    async def accepts(self, token: str) -> bool:
        """Return False if a stream with `token` is refused. The app then knows the token's claims."""
        login = await self.http.post("/events/login", headers={"Authorization": f"Bearer {token}"})
        assert login.status_code in (204, 401)
        return login.status_code == 204

    async def listen(self, **claims: Any) -> FakeSink:
        """Open a stream with an access token of `claims`."""
        token = self.provider.access_token(**claims)
        assert await self.accepts(token)
        sink = FakeSink()
        self.hub.attach(self.tokens.verify(token), sink)
        return sink

    @property
    def logouts(self) -> dict[str, int]:
        """The results that have been counted."""
        return {result: count for result, count in self.hub.statistics.logouts.items() if count}


@asynccontextmanager
async def app(provider: IdentityProvider | None = None, **settings: Any) -> AsyncIterator[App]:
    provider, broker = provider or IdentityProvider(), FailingBroker()
    async with Hub(broker) as hub:
        client_app = create_client_app(hub, tokens=provider.tokens(**settings), token_cookie="sse")
        transport = httpx.ASGITransport(client_app, client=("203.0.113.9", 4711))
        async with httpx.AsyncClient(transport=transport, base_url="https://hub.example") as http:
            yield App(http, hub, broker, provider)


def was_revoked(sink: FakeSink) -> bool:
    return sink.is_closed and "event: stream-revoked\n" in sink.text


async def test_logout_ends_the_streams_of_its_session_and_refuses_its_tokens() -> None:
    provider = IdentityProvider()
    async with app(provider) as it:
        before = provider.access_token(sid="s-1")
        ended = [await it.listen(sid="s-1"), await it.listen(sid="s-1"), await it.listen(sid=...)]
        open_ = [await it.listen(sid="s-2"), await it.listen(sub="kim", sid="s-3"), await it.listen(sub="kim")]

        answer = await it.log_out(sub="alex", sid="s-1")
        await until(lambda: all(was_revoked(sink) for sink in ended), 5)
        accepted = [
            await it.accepts(token)
            for token in (
                before,
                provider.access_token(sid="s-1"),
                provider.access_token(),
                provider.access_token(sid="s-2"),
                provider.access_token(sub="kim", sid="s-3"),
                provider.access_token(sub="kim"),
            )
        ]

        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["cache-control"] == "no-store"
        assert accepted == [False, False, False, True, True, True]
        assert not any(sink.is_closed for sink in open_)
        assert it.logouts == {"done": 1}


async def test_logout_of_a_subject_ends_all_sessions_and_later_tokens_are_accepted() -> None:
    provider = IdentityProvider()
    async with app(provider) as it:
        ended = [await it.listen(sid="s-1"), await it.listen(sid="s-2"), await it.listen()]
        other = await it.listen(sub="kim")
        at = int(provider.now()) - 60
        tokens = [provider.access_token(iat=at + offset, sid=f"s{offset}") for offset in (-1, 0, 5, 6, 60)]

        assert (await it.log_out(sid=..., iat=at)).status_code == 200
        await until(lambda: all(was_revoked(sink) for sink in ended), 5)

        assert [await it.accepts(token) for token in tokens] == [False, False, False, True, True]  # leeway_seconds is 5
        assert not other.is_closed


async def test_logout_by_sid_alone_ends_that_session() -> None:
    async with app() as it:
        ended, other, without = await it.listen(sid="s-1"), await it.listen(sid="s-2"), await it.listen()

        assert (await it.log_out(sub=..., sid="s-1")).status_code == 200
        await until(lambda: was_revoked(ended), 5)

        assert not other.is_closed and not without.is_closed
        assert it.logouts == {"done": 1}


async def test_logout_by_a_sid_that_no_token_has_is_kept_counted_and_warned_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with app() as it:
        stream = await it.listen()
        token = it.provider.access_token(sid="s-1")

        answer = await it.log_out(sub=..., sid="s-1")

        assert answer.status_code == 200
        assert it.logouts == {"unknown-sid": 1}
        (line,) = [record for record in caplog.records if record.levelno == logging.WARNING and "sid" in record.msg]
        assert "203.0.113.9" in line.getMessage() and "s-1" not in line.getMessage()
        assert not stream.is_closed
        assert not await it.accepts(token)  # it came later, and the logout was kept


async def test_logout_ends_no_user_who_has_the_same_name_by_other_means() -> None:
    """`sub` belongs to the issuer: a token by secret, or a host's own login, for a user of that name is not meant."""
    async with app(secrets=SECRET) as it:
        sinks = [FakeSink(), FakeSink()]
        it.hub.attach(Claims("alex", ("chat",)), sinks[0])
        it.hub.attach(Tokens(SECRET).verify(Tokens(SECRET).issue("alex", ["chat"], expires_at=9e9)), sinks[1])
        ended = await it.listen()

        await it.log_out(sid=...)
        await until(lambda: was_revoked(ended), 5)

        assert not any(sink.is_closed for sink in sinks)


async def test_revocations_of_a_logout_end_when_no_token_that_they_concern_can_be_valid() -> None:
    async with app(max_token_seconds=3_600) as it:
        now = int(it.provider.now())
        await it.log_out(sub="alex", sid="s-1", iat=now - 100)
        ends = {one.key.partition(":")[0]: one.expires_at for one in it.broker.revocations}

    assert ends["sub-without-sid"] == now - 100 + 3_605  # leeway_seconds is 5
    assert ends["sid"] is not None and now + 3_605 <= ends["sid"] < now + 3_635


async def test_logout_token_that_is_sent_to_another_node_again_ends_no_stream_opened_since() -> None:
    provider = IdentityProvider()
    now = int(provider.now())
    token = provider.logout_token(sub="alex", sid=..., iat=now - 60)
    async with app(provider) as it:
        ended = await it.listen(sid="s-1")
        await it.log_out(token)
        await until(lambda: was_revoked(ended), 5)
        since = await it.listen(sid="s-2")

        other = create_client_app(it.hub, tokens=provider.tokens())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(other), base_url="https://hub.example") as http:
            again = await http.post(PATH, data={"logout_token": token})
        another = await it.listen(sub="kim", sid=...)
        await it.log_out(sub="kim", sid=...)
        await until(lambda: was_revoked(another), 5)

        assert again.status_code == 200
        assert not since.is_closed


async def test_what_a_logout_revokes() -> None:
    async with app() as it:
        now = int(it.provider.now())
        await it.log_out(sub="alex", sid="s-1", iat=now)
        await it.log_out(sub="kim", sid=..., iat=now)
        await it.log_out(sub=..., sid="s-2", iat=now)
        found = {one.key: one for one in it.broker.revocations}

    assert sorted(found.values(), key=lambda one: one.key) == [
        Revocation(iss=ISSUER, sid="s-1"),
        Revocation(iss=ISSUER, sid="s-2"),
        Revocation(iss=ISSUER, sub="alex", without_sid=True, issued_before=now),
        Revocation(iss=ISSUER, sub="kim", issued_before=now),
    ]


@pytest.mark.parametrize("path", [PATH, f"{PATH}/"])
async def test_logout_token_counts_once(path: str) -> None:
    async with app() as it:
        form = {"logout_token": it.provider.logout_token()}
        first = await it.http.post(path, data=form)
        again = await it.http.post(path, data=form)

        assert (first.status_code, again.status_code) == (200, 400)
        assert again.json()["error_description"] == "a token with this jti has been received before"
        assert it.logouts == {"done": 1, "refused": 1}


def body_of(**fields: str) -> bytes:
    return urlencode(fields).encode()


PROVIDER = IdentityProvider()
GOOD = PROVIDER.logout_token()


def bad_requests() -> dict[str, tuple[bytes, dict[str, str], str]]:
    """Return each request with its headers and a part of the answer. The tokens are as old as the call."""
    return {
        "empty": (b"", FORM, "logout_token is missing"),
        "no content type": (
            body_of(logout_token=GOOD),
            {"Content-Type": ""},
            "must be application/x-www-form-urlencoded",
        ),
        "JSON": (
            b'{"logout_token": "x"}',
            {"Content-Type": "application/json"},
            "must be application/x-www-form-urlencoded",
        ),
        "multipart": (b"--x--", {"Content-Type": "multipart/form-data; boundary=x"}, "must be application/x-www-form"),
        "other field": (body_of(id_token=GOOD), FORM, "logout_token is missing"),
        "twice": (body_of(logout_token=GOOD) + b"&" + body_of(logout_token=GOOD), FORM, "given twice"),
        "empty token": (body_of(logout_token=""), FORM, "three base64url segments"),
        "not UTF-8": (b"logout_token=\xff", FORM, "not valid UTF-8"),
        "not UTF-8, escaped": (b"logout_token=%ff", FORM, "not valid UTF-8"),
        "many fields": (b"a=1&" * 1_100, FORM, "more than 1000 fields"),
        "many escapes": (b"logout_token=" + b"%41" * 20_000, FORM, "more than 8192 characters"),
        "too large": (b"logout_token=" + b"x" * 65_536, FORM, "at most 65536 are allowed"),
        "compressed": (body_of(logout_token=GOOD), {**FORM, "Content-Encoding": "gzip"}, "uncompressed"),
        "stranger's": (body_of(logout_token=IdentityProvider().logout_token()), FORM, "signature is wrong"),
        "access token": (body_of(logout_token=PROVIDER.access_token()), FORM, "typ is neither"),
        "wrong audience": (body_of(logout_token=PROVIDER.logout_token(aud="x")), FORM, "aud is not the audience"),
        "too old": (body_of(logout_token=PROVIDER.logout_token(iat=1)), FORM, "more than 120 seconds ago"),
        "ID token": (body_of(logout_token=PROVIDER.logout_token(nonce="n")), FORM, "must not have a nonce"),
    }


@pytest.mark.parametrize("kind", bad_requests())
async def test_b29_request_that_is_no_logout_is_400_with_a_json_error(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    body, headers, message = bad_requests()[kind]
    async with app(PROVIDER) as it:
        answer = await it.http.post(PATH, content=body, headers=headers)

        assert answer.status_code == 400
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        error = answer.json()
        assert error.keys() == {"error", "error_description"} and error["error"] == "invalid_request"
        assert message in error["error_description"]
        assert it.logouts == {"refused": 1}
        assert len(it.broker.revocations) == 0
    (line,) = [record.getMessage() for record in caplog.records if "logout" in record.msg]
    assert (
        line.startswith("request refused, logout: ") and "; POST /events/backchannel-logout, from 203.0.113.9" in line
    )
    for output in (line, answer.text):
        assert not any(part in output for token in (GOOD, PROVIDER.access_token()) for part in token.split("."))


async def test_body_that_grows_too_large_is_refused_while_it_is_sent() -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 8_192

    async with app() as it:
        answer = await it.http.post(PATH, content=body(), headers=FORM)

        assert answer.status_code == 400
        assert "more than 65536 bytes" in answer.json()["error_description"]


async def test_further_fields_and_a_charset_are_accepted() -> None:
    async with app() as it:
        body = urlencode([("client", "a"), ("client", "b"), ("logout_token", it.provider.logout_token())])
        answer = await it.http.post(
            PATH, content=body, headers={"Content-Type": "Application/X-WWW-Form-Urlencoded; charset=UTF-8"}
        )

        assert answer.status_code == 200


@pytest.mark.parametrize("failure", [BrokerUnavailable("Redis is unreachable"), Overloaded("the table is full")])
async def test_b29_logout_that_cannot_be_stored_is_503_and_may_be_sent_again(failure: Unavailable) -> None:
    async with app() as it:
        stream, token = await it.listen(sid="s-1"), it.provider.logout_token(sub="alex", sid="s-1")
        it.broker.failure = failure
        refused = await it.log_out(token)
        it.broker.failure = None
        done = await it.log_out(token)
        await until(lambda: was_revoked(stream), 5)

        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.headers["cache-control"] == "no-store"
        assert refused.json()["error"] == "temporarily_unavailable"
        assert done.status_code == 200
        assert it.logouts == {"unavailable": 1, "done": 1}


async def test_logout_before_the_keys_are_known_is_503() -> None:
    tokens = Tokens(jwks="https://id.example/jwks", issuer=ISSUER, audience=AUDIENCE, grant_templates=["user.{sub}"])
    hub = Hub()
    transport = httpx.ASGITransport(create_client_app(hub, tokens=tokens))
    async with hub, httpx.AsyncClient(transport=transport, base_url="https://hub.example") as http:
        answer = await http.post(PATH, data={"logout_token": PROVIDER.logout_token()})

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert hub.statistics.logouts["unavailable"] == 1


async def test_logout_starts_a_hub_that_has_not_been_used_yet() -> None:
    hub = Hub()
    transport = httpx.ASGITransport(create_client_app(hub, tokens=PROVIDER.tokens()))
    async with httpx.AsyncClient(transport=transport, base_url="https://hub.example") as http:
        answer = await http.post(PATH, data={"logout_token": PROVIDER.logout_token()})

    assert answer.status_code == 200
    assert len(hub.broker.revocations) == 2
    await hub.aclose()


async def test_logout_needs_post_and_a_jwks() -> None:
    form = {"logout_token": PROVIDER.logout_token()}
    async with app() as it:
        put = await it.http.put(PATH, data=form)
        options = await it.http.options(PATH)
        get = await it.http.get(PATH)
    transport = httpx.ASGITransport(create_client_app(Hub(), tokens=Tokens(SECRET)))
    async with httpx.AsyncClient(transport=transport, base_url="https://hub.example") as http:
        without = await http.post(PATH, data=form)

    for answer in (put, options):
        assert answer.headers["allow"] == "GET, HEAD, OPTIONS, POST"
    assert (put.status_code, options.status_code) == (405, 204)
    assert (get.status_code, get.text) == (401, REFUSED)  # any path below /events/ is one of a stream
    assert (without.status_code, without.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


async def test_many_logouts_at_once_are_all_done() -> None:
    async with app() as it:
        streams = [await it.listen(sub=f"user-{number}", sid=f"s-{number}") for number in range(50)]

        answers = await asyncio.gather(*[it.log_out(sub=f"user-{number}", sid=f"s-{number}") for number in range(50)])
        await until(lambda: all(was_revoked(sink) for sink in streams), 5)

        assert [answer.status_code for answer in answers] == [200] * 50
        assert it.logouts == {"done": 50}


def test_logout_ends_the_stream_of_a_real_hub_whose_token_is_refused_then(start_hub: StartHub, tmp_path: Path) -> None:
    provider = IdentityProvider()
    (tmp_path / "jwks.json").write_text(json.dumps(provider.jwks))
    hub = start_hub(
        *("--jwks", str(tmp_path / "jwks.json"), "--issuer", ISSUER, "--audience", AUDIENCE),
        *("--grant-templates", "user.{sub}", "--token-cookie", "sse", "--broker", f"sqlite:///{tmp_path}/log.db"),
    )
    given = [provider.access_token(sid="s-1"), provider.access_token(sub="kim", sid="s-2")]
    streams = [listen(hub.port, token) for token in given]
    with httpx.Client(base_url=hub.url) as http:
        answer = http.post(PATH, data={"logout_token": provider.logout_token(sub="alex", sid="s-1")})
        streams[0].read_until(b"event: stream-revoked\n")
        assert streams[0].read_to_end().endswith(LAST_CHUNK[2:])
        statuses = [
            http.head("/events/", headers=headers).status_code
            for headers in ({"Authorization": f"Bearer {given[0]}"}, {"Cookie": f"sse={given[0]}"})
        ]
        too_large = http.post(PATH, content=b"x" * 1_000_000, headers=FORM)
        other = http.head("/events/", headers={"Authorization": f"Bearer {given[1]}"})
    streams[1].close()

    assert (answer.status_code, statuses, other.status_code) == (200, [401, 401], 200)
    assert (too_large.status_code, too_large.json()["error"]) == (400, "invalid_request")
    assert hub.metric('ssehub_logouts_total{result="done"}') == 1
    wait_until(lambda: "back-channel logout from 127.0.0.1" in hub.log)
    assert not ERROR_LINES.search(hub.log)
    assert not any(part in hub.log for token in given for part in token.split("."))
