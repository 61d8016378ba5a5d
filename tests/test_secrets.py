"""A whole hub, called in every way with recognisable secrets: none of them is printed, logged, measured or answered."""

from __future__ import annotations

import base64
import json
import re
import signal
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import pytest

from commands import run
from conftest import ERROR_LINES, StartHub, wait_until
from identity_provider import AUDIENCE, ISSUER, IdentityProvider
from named_keys import NamedKey, entry, hash_of, write_keys
from redis_servers import RedisServer
from ssehub import Tokens
from streams import RawStream, get, listen

pytest_plugins = ("redis_fixtures",)

SECRET = "tangerine-secret-of-more-than-32-bytes"
KEY = "cranberry-control-key-of-more-than-32-bytes"
PASSWORD = "blackcurrant"
OTHER_KEY = "gooseberry-wrong-key"
FORGED = Tokens("elderberry secret of more than 32 bytes").issue("alex", ["chat"], expires_at=4_000_000_000)
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR) [\w.]+: [ -~]*")
INJECTED = "\r\n2026-01-01 00:00:00,000 ERROR ssehub.forged: pawned\x1b[31m\u2028\x85\x07"


def spellings(secret: str) -> list[str]:
    """Return `secret` as logs and messages might show it. Of a token, the parts that nobody else can know."""
    parts = secret.split(".")[1:] if secret.startswith("eyJ") else [secret]
    return [
        spelling
        for part in parts
        for spelling in (part, quote(part), base64.b64encode(part.encode()).decode().rstrip("="), part.encode().hex())
    ]


def assert_shows_none(text: str, secrets: list[str]) -> None:
    for secret in secrets:
        for spelling in spellings(secret):
            assert spelling not in text, text[max(0, text.index(spelling) - 200) : text.index(spelling) + 200]


class Caller:
    """Calls a hub and keeps everything that it answers, except for the tokens that it issues."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=20)
        self.answers: list[str] = []
        self.statuses: set[int] = set()

    def __call__(self, method: str, target: str, **options: Any) -> httpx.Response:
        response = self._http.request(method, target, **options)
        self.statuses.add(response.status_code)
        self.answers += [response.text, repr(response.headers)]
        return response

    def close(self) -> None:
        self._http.close()


def call_client_app(call: Caller, token: str) -> None:
    """Request streams that are refused, or whose response is only its head."""
    for given in (token, FORGED, f"{token}x", f"{token}.x", token[:-3]):
        for target in ("?token={}", "?access_token={}", "?TOKEN={}", "?{}", "{}", "x?token={}"):
            call("HEAD", f"/events/{target.format(given)}")
        for headers in ({"Authorization": f"Bearer {given}"}, {"Cookie": f"sse={given}"}, {"X-Token": given}):
            call("HEAD", "/events/", headers=headers)
            call("HEAD", "/events/", headers={**headers, "Origin": "https://evil.example"})
        call("GET", f"/events/?token={given}&since={given}&{'a=1&' * 200}")
        call("GET", "/events/", headers={"Authorization": f"Bearer {given}"}, params={"since": given})
        call("POST", f"/events/?token={given}", content=given)
        call("OPTIONS", f"/events/?token={given}", headers={"Origin": "https://app.example"})
        call("GET", f"/nothing/{given}?token={given}")
        call("POST", "/events/backchannel-logout", data={"logout_token": given})
        if given != token:  # the answer to a good one has it in the cookie
            call("POST", f"/events/login?token={given}", headers={"Authorization": f"Bearer {given}"})
        call("DELETE", f"/events/login?token={given}", headers={"Cookie": f"sse={given}"})


def call_control_app(call: Caller, token: str) -> None:
    """Publish, issue and disconnect, well and badly, with the right key, a wrong one and none."""
    good = {"Authorization": f"Bearer {KEY}"}
    fields = {"userId": "alex", "channel": "chat", "data": "x"}
    for headers in (good, {}, {"Authorization": f"Bearer {OTHER_KEY}"}, {"Authorization": f"Basic {KEY}"}):
        for path in (f"/emit/?key={KEY}&token={token}", "/token/", "/disconnect/"):
            call("POST", path, data=fields, headers=headers)
            call("POST", path, json={**fields, "secret": SECRET}, headers=headers)
            call("POST", path, content=b"{" + token.encode(), headers={**headers, "Content-Type": "application/json"})
            call("POST", path, content=b"x", headers={**headers, "Content-Type": "text/plain"})
            call("PUT", path, headers=headers)
        for path in ("/metrics", "/healthz", "/readyz", "/nothing", f"/emit/{KEY}"):
            call("GET", path, headers=headers)
    call("POST", "/token/", data={"userId": "", "channel": "chat"}, headers=good)
    call("POST", "/emit/", json={**fields, "retry": -1, "idempotencyKey": "k"}, headers=good)
    keyed = {**good, "Idempotency-Key": "raspberry-idempotency"}
    for data in ("x", "y"):
        call("POST", "/emit/", json={**fields, "data": data}, headers=keyed)


def test_c17_no_secret_is_in_any_output_of_a_hub(start_hub: StartHub, valkey: RedisServer, tmp_path: Path) -> None:
    with valkey.client() as redis:
        redis.config_set("requirepass", PASSWORD)
    (tmp_path / "key").write_text(KEY)
    hub = start_hub(
        *(
            "--control-key-file",
            str(tmp_path / "key"),
            "--token-cookie",
            "sse",
            "--log-level",
            "debug",
            "--workers",
            "2",
        ),
        *("--cors-origins", "https://app.example"),
        env={"SSEHUB_SECRET": SECRET, "SSEHUB_BROKER": f"redis://:{PASSWORD}@127.0.0.1:{valkey.port}"},
    )
    good = {"Authorization": f"Bearer {KEY}"}
    issued = httpx.post(f"{hub.control_url}/token/", data={"userId": "alexandra", "channel": "chat"}, headers=good).text
    short = Tokens(SECRET).issue("alex", ["chat"], expires_at=time.time() + 2)
    streams = [listen(hub.port, issued), listen(hub.port, short)]
    client, control = Caller(hub.url), Caller(hub.control_url)

    call_client_app(client, issued)
    call_control_app(control, issued)
    streams[1].read_until(b"stream-expired", seconds=10)
    with valkey.client(password=PASSWORD) as redis:  # the hub's password becomes wrong
        redis.config_set("requirepass", "other")
        redis.client_kill_filter(_type="normal", skipme=True)
    wait_until(lambda: control("GET", "/readyz").status_code == 503, 20)
    control("POST", "/emit/", data={"userId": "*", "channel": "chat", "data": "x"}, headers=good)
    processes = [psutil.Process(hub.process.pid), *psutil.Process(hub.process.pid).children(recursive=True)]
    listed = json.dumps([process.cmdline() for process in processes])
    for stream in streams:
        stream.close()
    client.close()
    control.close()
    hub.signal()
    hub.wait()

    assert "token refused" in hub.log and "stream ended" in hub.log
    assert client.statuses >= {200, 400, 401, 403, 404, 405}
    assert control.statuses >= {200, 400, 401, 404, 405, 415, 422, 503}
    received = b"".join(stream.bytes for stream in streams).decode()
    output = "\n".join([hub.log, *client.answers, *control.answers, received, listed])
    issued_later = re.findall(r"eyJ[\w-]+\.[\w-]+\.[\w-]+", "\n".join(control.answers))
    for token in set(issued_later) - {issued, short, FORGED}:
        output = output.replace(token, "TOKEN")  # the answers of /token/, and nothing else
    assert_shows_none(output, [SECRET, KEY, PASSWORD, OTHER_KEY, issued, short, FORGED, "raspberry-idempotency"])
    assert len(processes) >= 3


OLD_SECRET = "mirabelle-secret-of-more-than-32-bytes"
SECRET_JWK = {"kty": "oct", "kid": "damson", "alg": "HS256", "k": "ZGFtc29uLWtleS1vZi1tb3JlLXRoYW4tMzItYnl0ZXM"}
PRIVATE_JWK = {"kty": "OKP", "crv": "Ed25519", "kid": "sloe", "x": "c2xvZS1rZXkteA", "d": "c2xvZS1wcml2YXRlLWtleS0zMg"}


def call_as_the_provider(call: Caller, logout_token: str) -> None:
    """Send a logout token as a provider does, and in other ways."""
    path = "/events/backchannel-logout"
    for given in (logout_token, logout_token, f"{logout_token}x", logout_token[:-3], FORGED):
        call("POST", path, data={"logout_token": given})
        call("POST", path, data={"logout_token": [given, given]})
        call("POST", f"{path}?logout_token={given}", data={"token": given})
        call("POST", path, content=given)
        call("GET", path, params={"logout_token": given})


def call_login(call: Caller, tokens: list[str]) -> None:
    for token in tokens:
        for headers in ({"Authorization": f"Bearer {token}"}, {"Cookie": f"sse={token}"}, {"X-Token": token}):
            for method in ("POST", "DELETE", "PUT"):
                call(method, "/events/login", headers=headers)
            call("POST", f"/events/login?token={token}", headers={**headers, "Origin": "https://evil.example"})
        call("POST", "/events/login", data={"token": token})


def call_revoke(call: Caller, tokens: list[str], key: dict[str, str]) -> None:
    for token in tokens:
        for fields in ({"token": token}, {"jti": token}, {"sid": token[-255:]}, {"token": token, "everyone": True}):
            for method in ("POST", "DELETE"):
                call(method, "/revoke/", json=fields, headers=key)
                call(method, "/revoke/", data=fields, headers=key)
                call(method, "/revoke/", json=fields)
        call("GET", "/revoke/", params={"after": token}, headers=key)


def test_c17_no_canary_is_in_any_output_of_a_hub_with_keys_of_a_provider(start_hub: StartHub, tmp_path: Path) -> None:
    provider = IdentityProvider()
    secrets, jwks = tmp_path / "secrets", tmp_path / "jwks.json"
    secrets.write_text(f"{SECRET}\n{OLD_SECRET}\n")
    jwks.write_text(json.dumps(provider.jwks))
    (tmp_path / "key").write_text(KEY)
    hub = start_hub(
        *("--secret-file", str(secrets), "--jwks", str(jwks), "--issuer", ISSUER, "--audience", AUDIENCE),
        *("--grant-templates", "user.{sub}", "--control-key-file", str(tmp_path / "key"), "--token-cookie", "sse"),
        *("--cors-origins", "https://app.example", "--log-level", "debug"),
        env={"SSEHUB_SECRET": None},
    )
    good = {"Authorization": f"Bearer {KEY}"}
    far = time.time() + 3_600
    tokens = [
        *(Tokens(secret).issue("alex", ["chat"], expires_at=far) for secret in (SECRET, OLD_SECRET)),
        provider.access_token("kim"),
        FORGED,
    ]
    logout_token = provider.logout_token(sub="kim")
    streams = [listen(hub.port, token) for token in tokens[:3]]
    client, control = Caller(hub.url), Caller(hub.control_url)

    for token in tokens[:3]:
        call_client_app(client, token)
    call_login(client, tokens)
    call_as_the_provider(client, logout_token)
    streams[2].read_until(b"stream-revoked")
    call_revoke(control, tokens, good)
    for stream in streams[:2]:
        stream.read_until(b"stream-revoked")
    for broken in ([SECRET_JWK, PRIVATE_JWK], [PRIVATE_JWK], [SECRET_JWK]):
        jwks.write_text(json.dumps({"keys": broken}))
        secrets.write_text(f"short\n{OTHER_KEY}\n")
        before = len(hub.log)
        hub.signal(signal.SIGHUP)
        wait_until(lambda: "ERROR" in hub.log[before:])  # noqa: B023  # called at once
    jwks.write_text(json.dumps({"keys": []}) + PRIVATE_JWK["d"])
    control("GET", "/metrics", headers=good)
    control("GET", "/readyz", headers=good)
    listed = json.dumps(psutil.Process(hub.process.pid).cmdline())
    for stream in streams:
        stream.close()
    client.close()
    control.close()
    hub.signal()
    hub.wait()

    assert client.statuses >= {200, 204, 400, 401, 403, 404, 405}
    assert control.statuses >= {200, 400, 401}
    received = b"".join(stream.bytes for stream in streams).decode()
    output = "\n".join([hub.log, *client.answers, *control.answers, received, listed])
    for token in tokens[:3]:
        output = re.sub(f"sse={re.escape(token)}; Path=/events; ", "COOKIE; ", output)  # what a login is answered with
    canaries = [SECRET, OLD_SECRET, KEY, OTHER_KEY, SECRET_JWK["k"], PRIVATE_JWK["d"], *tokens, logout_token]
    assert_shows_none(output, canaries)


SHOP = NamedKey("shop", ["publish", "token"], ["orders.*"], key="persimmon-shop-key-of-more-than-32-bytes")
DESK = NamedKey("desk", ["disconnect", "revoke", "read"], key="pomegranate-desk-key-of-more-than-32-bytes")
NEXT = "physalis-next-shop-key-of-more-than-32-bytes"
WEAK = "quince-weak"
CRASHING = """
import ssehub.web.control as control

async def crash(self, request):
    raise RuntimeError(f"a handler fails: {request.key!r}")

control.Health.respond = crash
from ssehub.cli import main
main()
"""
"""A hub whose `/healthz` fails: its traceback is logged."""
GOOD_ENTRY = DESK.entry()
BROKEN_KEY_FILES = {
    "plaintext": entry("shop", key=NEXT, rights=["publish"]),
    "key-as-name": entry(NEXT, sha256=hash_of(NEXT), rights=["publish"]),
    "key-alone": f"{GOOD_ENTRY}\n{NEXT}\n",
    "hash-twice": GOOD_ENTRY + entry("other", sha256=hash_of(DESK.key), rights=["read"]),
    "hash-of-control-key": entry("shop", sha256=hash_of(KEY), rights=["read"]),
}


def call_with(call: Caller, key: str) -> None:
    """Make every call with `key` where it belongs, and in wrong places."""
    headers = {"Authorization": f"Bearer {key}"}
    for channel in ("orders.1", "chat"):
        fields = {"userId": "alex", "channel": channel}
        call("POST", "/emit/", data={**fields, "data": "x"}, headers=headers)
        call("POST", "/emit/", json=[{**fields, "data": "x"}], headers={**headers, "Idempotency-Key": "k"})
        call("POST", "/token/", json={"userId": "alex", "patterns": [f"{channel}*"]}, headers=headers)
    for method, path in (("POST", "/disconnect/"), ("POST", "/revoke/"), ("DELETE", "/revoke/"), ("PUT", "/emit/")):
        call(method, path, data={"userId": "nobody"}, headers=headers)
        call(method, path, data={"userId": ""}, headers=headers)
    for path in ("/metrics", "/revoke/", "/readyz", f"/metrics?key={key}", f"/{key}"):
        call("GET", path, headers=headers)
    call("GET", "/healthz", headers={**headers, "Connection": "close"})  # the server closes it after a failure
    call("POST", f"/emit/?{key}={key}", content=f"{key}={key}", headers={"Authorization": f"Basic {key}"})
    call("POST", "/emit/", json={key: key})
    call("PUT", "/emit/", headers={"Authorization": f"Bearer {key}x"})
    call("POST", "/emit/", headers={"Authorization": key, "Host": f"{key}.example"})


def test_c17_no_control_key_and_no_hash_of_one_is_in_any_output_of_a_hub(start_hub: StartHub, tmp_path: Path) -> None:
    weak = NamedKey("weak", ["read"], key=WEAK)
    path = write_keys(tmp_path / "keys.toml", SHOP, DESK, weak)
    (tmp_path / "key").write_text(KEY)
    hub = start_hub(
        *("--control-keys-file", str(path), "--control-key-file", str(tmp_path / "key"), "--log-level", "debug"),
        code=CRASHING,
    )
    call = Caller(hub.control_url)

    for key in (SHOP.key, DESK.key, KEY, WEAK, OTHER_KEY, hash_of(SHOP.key)):
        call_with(call, key)
    for broken in BROKEN_KEY_FILES.values():
        path.write_text(broken)
        before = len(hub.log)
        hub.signal(signal.SIGHUP)
        wait_until(lambda: "stays in use" in hub.log[before:])  # noqa: B023  # called at once
    path.write_text(SHOP.entry(NEXT))
    hub.signal(signal.SIGHUP)
    wait_until(lambda: "has been read again: 1 key, 2 hashes" in hub.log)
    for key in (SHOP.key, NEXT, DESK.key, KEY):
        call_with(call, key)
    listed = json.dumps(psutil.Process(hub.process.pid).cmdline())
    call.close()
    hub.signal()
    hub.wait()

    assert call.statuses >= {200, 400, 401, 403, 404, 405, 500}
    assert "a handler fails" in hub.log and "keys.weak has 11 bytes" in hub.log
    output = "\n".join([hub.log, *call.answers, listed])
    output = re.sub(r"eyJ[\w-]+\.[\w-]+\.[\w-]+", "TOKEN", output)
    keys = [SHOP.key, DESK.key, NEXT, KEY, WEAK, OTHER_KEY]
    assert_shows_none(output, keys)
    assert not any(hash_of(key)[:20] in output.lower() for key in keys)


def test_c17_secret_on_the_command_line_is_warned_about(start_hub: StartHub) -> None:
    hub = start_hub("--secret", SECRET, "--control-key", KEY)
    quiet = start_hub(env={"SSEHUB_SECRET": SECRET, "SSEHUB_CONTROL_KEY": KEY})

    assert "the secret is on the command line, which every user of this machine can read: use --secret-file" in hub.log
    assert "the control key is on the command line" in hub.log and "use --control-key-file" in hub.log
    assert "command line" not in quiet.log
    assert_shows_none(hub.log + quiet.log, [SECRET, KEY])


@pytest.mark.parametrize(
    "arguments",
    [
        [
            "emit",
            "--channel",
            "a",
            "--data",
            "x",
            "--control-url",
            "http://alex:blackcurrant@127.0.0.1:1",
            "--retries=0",
        ],
        ["listen", "--channel", "a", "--url", "http://alex:blackcurrant@127.0.0.1:1", "--retries", "0"],
        ["listen", "--channel", "a", "--url", "ftp://alex:blackcurrant@127.0.0.1:1"],
        ["check", "--broker", "redis://alex:blackcurrant@127.0.0.1:1"],
        ["check", "--jwks", "https://alex:blackcurrant@127.0.0.1:1/keys", "--issuer", "a", "--audience", "b"],
        ["emit", "--channel", "a", "--data", "x", "--control-url", "ftp://alex:blackcurrant@127.0.0.1:1"],
        ["bench", "--control-url", "http://alex:blackcurrant@127.0.0.1:1"],
        ["bench", "--url", "http://alex:blackcurrant@127.0.0.1:1"],
        ["log", "--broker", "redis://alex:blackcurrant@127.0.0.1:1"],
        ["log", "--broker", "memory://alex:blackcurrant@x"],
        ["serve", "--broker", "redis://alex:blackcurrant@127.0.0.1:1"],
        ["serve", "--broker", "redis:/alex:blackcurrant@127.0.0.1:1"],
        ["serve", "--workers", "2", "--broker", "redis://alex:blackcurrant@127.0.0.1:1"],
    ],
)
def test_c17_no_command_shows_the_password_of_a_url(arguments: list[str]) -> None:
    serving = ["--bind", "127.0.0.1:0", "--control-bind", "127.0.0.1:0"] if arguments[0] == "serve" else []
    result = run(*arguments, *serving, SSEHUB_SECRET=SECRET)

    assert result.returncode in (1, 2, 3)
    assert "ssehub: " in result.stderr or arguments[0] == "check"
    assert_shows_none(result.stdout + result.stderr, [PASSWORD, SECRET])


def test_c16_nothing_that_a_request_carries_can_break_a_log_line(start_hub: StartHub) -> None:
    hub = start_hub("--log-level", "debug", "--token-cookie", "sse")
    escaped = quote(INJECTED)
    name = INJECTED.replace("\r\n", "")
    streams = [
        RawStream(hub.port, get(f"/events/{escaped}?token={escaped}&since={escaped}").encode()),
        RawStream(hub.port, get(f"/events/?token={hub.token()}&since={escaped}").encode()),
        RawStream(hub.port, get(f"/events/?token={hub.token()}&lastEventId={escaped}").encode()),
        RawStream(hub.port, get("/events/", "X-Forwarded-For: a\x1b[31m", "User-Agent: \x1b[2J").encode("latin-1")),
        RawStream(hub.port, get("/events/", "User-Agent: \x85\xff", f"X-Forwarded-For: {escaped}").encode("latin-1")),
        RawStream(hub.port, get("/events/", f"Cookie: sse={escaped}", "Origin: \x85evil").encode("latin-1")),
        RawStream(hub.port, get(f"/events/?token={hub.token(user_id=name, channel=name)}").encode()),
    ]
    for stream in streams:
        stream.read_until(b"\r\n\r\n")
        stream.close()
    for field in ("userId", "channel", "data", "event", "id", "payload", "unknown"):
        httpx.post(f"{hub.control_url}/emit/", json={"userId": "a", "channel": "b", "data": "x", field: INJECTED})
        httpx.post(f"{hub.control_url}/token/", data={"userId": "a", "channel": "b", field: INJECTED})
    httpx.post(f"{hub.control_url}/disconnect/", data={"userId": name, "channel": name})
    odd = {b"Content-Type": b"a/b\x85", b"Content-Encoding": b"\x85\x1b", b"Idempotency-Key": b"\x85"}
    httpx.post(f"{hub.control_url}/emit/", headers=odd, content=b"x")
    wait_until(lambda: "token refused" in hub.log and hub.log.count("stream ended") >= 2)
    hub.signal()
    hub.wait()

    lines = hub.log.splitlines()
    assert len(lines) > 5
    assert [line for line in lines if not LOG_LINE.fullmatch(line)] == []
    assert not any("ssehub.forged" in line.split(": ")[0] for line in lines)
    assert not ERROR_LINES.search(hub.log.replace("ERROR ssehub.forged", ""))
