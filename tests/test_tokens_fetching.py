"""Fetching the keys of an identity provider over HTTPS: what is refused, when it is fetched, and who waits."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from certificates import CertificateAuthority
from conftest import free_port, until
from jwks_server import AUDIENCE, ISSUER, JwksServer, SigningKey, key_set
from ssehub.errors import ConfigError, KeysUnavailable, UnknownKey
from ssehub.fanout.statistics import Statistics
from ssehub.tokens import Tokens, fetching
from ssehub.tokens.fetching import FetchedKeys

pytestmark = pytest.mark.anyio

KEY, OTHER = SigningKey("a"), SigningKey("b")


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def server(ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch) -> Iterator[JwksServer]:
    """An HTTPS server whose CA is trusted, with one key."""
    monkeypatch.setenv("SSL_CERT_FILE", str(ca.path))
    with JwksServer(key_set(KEY), ca) as running:
        yield running


def tokens_by(url: str) -> Tokens:
    return Tokens(jwks=url, issuer=ISSUER, audience=AUDIENCE, channel_claim="channel")


async def test_keys_are_fetched_for_the_first_token(server: JwksServer) -> None:
    tokens = tokens_by(server.url)
    assert tokens.problem is not None and server.url in tokens.problem

    claims = await tokens.authenticate(KEY.token("sam"))

    assert (claims.user_id, claims.channels, claims.iss) == ("sam", ("chat",), ISSUER)
    assert tokens.problem is None
    assert server.requests == 1


async def test_ca_of_ones_own_is_trusted_only_if_it_is_named(
    server: JwksServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")

    with pytest.raises(KeysUnavailable, match=r"certificate can't be verified: .* \(SSL_CERT_FILE may name"):
        await tokens_by(server.url).authenticate(KEY.token())

    assert server.requests == 0


async def test_b23_all_who_wait_share_one_fetch_and_there_is_at_most_one_a_minute(server: JwksServer) -> None:
    seconds = 0.0
    tokens = tokens_by(server.url)
    fetched = FetchedKeys(server.url, lambda text: "keys", monotonic=lambda: seconds)
    server.before_answer = lambda: time.sleep(0.2)

    await asyncio.gather(*[tokens.authenticate(KEY.token()) for _ in range(50)])
    assert server.requests == 1

    await asyncio.gather(*[fetched.ask() for _ in range(50)])
    assert server.requests == 2
    await fetched.ask()  # the first fetch was the one that was due
    seconds = 59
    await fetched.ask()
    assert server.requests == 2
    seconds = 61
    await fetched.ask()
    assert server.requests == 3


async def test_new_key_is_fetched_when_a_token_names_it(server: JwksServer) -> None:
    tokens = tokens_by(server.url)
    await tokens.reload()
    server.body = key_set(KEY, OTHER)

    assert (await tokens.authenticate(OTHER.token("sam"))).user_id == "sam"

    with pytest.raises(UnknownKey):
        await tokens.authenticate(SigningKey("c").token())
    assert server.requests == 2


async def test_unknown_key_is_refused_if_the_newest_set_does_not_have_it(server: JwksServer) -> None:
    tokens = tokens_by(server.url)
    await tokens.reload()

    with pytest.raises(UnknownKey):
        await tokens.authenticate(OTHER.token())

    assert server.requests == 2


async def test_b23_unknown_key_is_told_to_come_back_if_nobody_can_be_asked(server: JwksServer) -> None:
    tokens = tokens_by(server.url)
    await tokens.reload()
    server.status = 500

    for _ in range(2):  # the second one does not cause a fetch
        with pytest.raises(KeysUnavailable, match="status 500"):
            await tokens.authenticate(OTHER.token())

    assert (await tokens.authenticate(KEY.token("sam"))).user_id == "sam"
    assert tokens.problem is None
    assert server.requests == 2


async def test_b23_request_waits_a_limited_time_and_the_fetch_goes_on(
    server: JwksServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "WAIT_SECONDS", 0.3)
    answer = threading.Event()
    server.before_answer = lambda: answer.wait(8)
    tokens = tokens_by(server.url)

    with pytest.raises(KeysUnavailable, match=r"within 0\.3 s"):
        await tokens.authenticate(KEY.token())

    answer.set()
    assert (await tokens.authenticate(KEY.token("sam"))).user_id == "sam"
    assert server.requests == 1


async def answer_of(url: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Fetch from `url` twice; return what was logged."""
    tokens = tokens_by(url)
    caplog.clear()
    await tokens.reload()
    await tokens.reload()
    assert tokens.problem is not None
    with pytest.raises(KeysUnavailable):
        tokens.verify(KEY.token())
    return [record.getMessage() for record in caplog.records if record.name.startswith("ssehub")]


def with_headers(**headers: str) -> Callable[[JwksServer], object]:
    return lambda server: server.headers.update(headers)


def with_status(status: int, **headers: str) -> Callable[[JwksServer], object]:
    def spoil(server: JwksServer) -> None:
        server.status = status
        server.headers.update(headers)

    return spoil


def with_body(body: str | bytes) -> Callable[[JwksServer], object]:
    return lambda server: setattr(server, "body", body)


BAD_ANSWERS: dict[str, tuple[Callable[[JwksServer], object], str]] = {
    "10-MB": (with_body(b" " * 10_000_000), "the answer has more than 1048576 bytes"),
    "not-json": (with_body("<html>login</html>"), "the JWKS is not JSON in UTF-8"),
    "not-utf-8": (with_body(b"\xff\xfe"), "the answer is not UTF-8"),
    "not-a-jwks": (with_body("[]"), "not a JWKS: expected a JSON object"),
    "no-keys": (with_body('{"keys": []}'), "the JWKS has no key that can verify tokens: 0 given"),
    "10,000-keys": (
        with_body(json.dumps({"keys": [{"kty": "oct"}] * 10_000})),
        "the JWKS has 10000 keys: at most 100 are accepted",
    ),
    "private": (
        with_body(json.dumps({"keys": [KEY.jwk | {"d": "x"}]})),
        "the JWKS is refused, because key 1 is private",
    ),
    "deep": (with_body("[" * 500_000), "the JWKS is not JSON in UTF-8"),
    "redirect": (with_status(302, Location="/other"), "the answer is a redirect (302), which is not followed"),
    "not-found": (with_status(404), "the answer has status 404 instead of 200"),
    "created": (with_status(201), "the answer has status 201 instead of 200"),
    "compressed": (with_headers(**{"Content-Encoding": "gzip"}), "the answer is compressed"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
async def test_b23_bad_answer_is_one_clear_line(
    server: JwksServer, spoil: Callable[[JwksServer], object], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(server)

    lines = await answer_of(server.url, caplog)

    assert len(lines) == 1
    assert lines[0].startswith(f"jwks {server.url}: {message}")
    assert lines[0].endswith("; there are no keys yet")
    assert server.requests == 2


async def test_b23_host_that_refuses_connections_is_one_clear_line(caplog: pytest.LogCaptureFixture) -> None:
    url = f"https://127.0.0.1:{free_port()}/"

    assert await answer_of(url, caplog) == [
        f"jwks {url}: can't be reached: Connection refused; there are no keys yet",
    ]


async def test_b23_host_that_does_not_answer_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fetching, "CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never sends a byte of TLS
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/"

        (line,) = await answer_of(url, caplog)

    assert line == f"jwks {url}: no answer in time (ConnectTimeout); there are no keys yet"


async def test_answer_that_comes_byte_by_byte_is_given_up(
    server: JwksServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fetching, "READ_SECONDS", 0.3)
    stop = threading.Event()
    server.before_answer = lambda: stop.wait(20)

    (line,) = await answer_of(server.url, caplog)

    stop.set()
    assert line == f"jwks {server.url}: no answer in time (ReadTimeout); there are no keys yet"


async def test_whole_fetch_has_a_time_limit(
    server: JwksServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fetching, "TOTAL_SECONDS", 0.3)
    stop = threading.Event()
    server.before_answer = lambda: stop.wait(20)

    (line,) = await answer_of(server.url, caplog)

    stop.set()
    assert line == f"jwks {server.url}: no complete answer within 0.3 s; there are no keys yet"


async def test_last_good_set_is_kept_with_one_line_when_fetching_fails_and_one_when_it_works_again(
    server: JwksServer, caplog: pytest.LogCaptureFixture
) -> None:
    tokens, statistics = tokens_by(server.url), Statistics()
    caplog.set_level(logging.INFO, "ssehub")
    await tokens.reload()
    server.status = 503
    for _ in range(3):
        await tokens.reload()

    assert (await tokens.authenticate(KEY.token("sam"))).user_id == "sam"
    assert tokens.problem is None
    tokens.measure(statistics)
    assert statistics.jwks_fetch_failures == 3
    server.status = 200
    await tokens.reload()
    assert caplog.messages == [
        f"jwks {server.url}: usable pairs of kid and alg: 1",
        f"jwks {server.url}: the answer has status 503 instead of 200; the keys fetched before stay in use",
        f"jwks {server.url}: it can be fetched again",
    ]


async def test_removed_key_is_refused_after_the_next_fetch(server: JwksServer) -> None:
    tokens = tokens_by(server.url)
    await tokens.reload()
    server.body = key_set(OTHER)

    await tokens.reload()

    with pytest.raises(UnknownKey):
        await tokens.authenticate(KEY.token())
    assert (await tokens.authenticate(OTHER.token("sam"))).user_id == "sam"


async def test_run_fetches_in_the_background_and_soon_again_after_a_failure(server: JwksServer) -> None:
    server.status = 500
    tokens = tokens_by(server.url)
    running = asyncio.create_task(tokens.run())
    try:
        await until(lambda: server.requests == 1)
        server.status = 200

        await until(lambda: tokens.problem is None, 30)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize(
    ("cache_control", "least", "most"),
    [
        ("", 480, 600),
        ("no-store", 480, 600),
        ("public, max-age=1200", 960, 1200),
        ("max-age=1", 60, 60),
        ("max-age=0", 60, 60),
        ("s-maxage=7, MAX-AGE=86400", 2880, 3600),
        ("max-age=99999999999999999999", 2880, 3600),
        ("max-age=often", 480, 600),
    ],
)
async def test_set_is_fetched_again_as_often_as_cache_control_says_within_bounds(
    server: JwksServer, monkeypatch: pytest.MonkeyPatch, cache_control: str, least: float, most: float
) -> None:
    server.headers["Cache-Control"] = cache_control
    seconds = 0.0
    fetched = FetchedKeys(server.url, lambda text: "keys", monotonic=lambda: seconds)
    running = asyncio.create_task(fetched.run())
    try:
        await until(lambda: fetched.content is not None)
        await asyncio.sleep(0)

        assert least <= fetched.due_in_seconds <= most
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


BAD_URLS = {
    "http": ("http://login.example/jwks.json", "anybody on the way could replace keys"),
    "http-to-a-private-address": ("http://10.0.0.1/jwks.json", "anybody on the way could replace keys"),
    "http-to-a-name-like-localhost": ("http://localhost.example/", "anybody on the way could replace keys"),
    "ftp": ("ftp://login.example/", "must be a file or a URL such as https://login.example/jwks.json"),
    "file": ("file:///etc/jwks.json", "must be a file or a URL"),
    "no-host": ("https:///jwks.json", "must be a file or a URL"),
    "port": ("https://login.example:x/", "not a valid URL"),
    "ipv6": ("https://[::1/", "not a valid URL"),
    "password": ("https://sam:hidden@login.example/", "must not contain a user name or password"),
}


@pytest.mark.parametrize(("url", "message"), BAD_URLS.values(), ids=BAD_URLS.keys())
def test_url_that_can_not_be_used_is_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tokens_by(url)

    assert message in str(caught.value)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "[::1]"])
def test_http_is_accepted_on_loopback(host: str) -> None:
    tokens_by(f"http://{host}:8080/jwks.json")


async def test_http_server_on_loopback_is_never_asked_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{free_port()}")
    with JwksServer(key_set(KEY)) as server:
        assert (await tokens_by(server.url).authenticate(KEY.token("sam"))).user_id == "sam"


async def test_proxy_of_the_environment_is_used_for_https_elsewhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}")

        (line,) = await answer_of("https://login.example/jwks.json", caplog)

    assert asked[0].startswith(b"CONNECT login.example:443 ")
    assert "403" in line


def test_set_that_another_process_has_fetched_is_used_until_the_first_fetch(tmp_path: Path) -> None:
    first = Tokens(
        jwks=_file(tmp_path, key_set(KEY)), issuer=ISSUER, audience=AUDIENCE, channel_claim="channel"
    ).last_good

    tokens = Tokens(
        jwks="https://login.example/", issuer=ISSUER, audience=AUDIENCE, channel_claim="channel", last_good=first
    )

    assert tokens.problem is None
    assert tokens.verify(KEY.token("sam")).user_id == "sam"


def _file(folder: Path, content: str) -> Path:
    path = folder / "jwks.json"
    path.write_text(content)
    return path
