"""Secrets and keys are replaced while streams are open: through real processes, with and without SIGHUP and workers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from certificates import CertificateAuthority
from conftest import SECRET, RunningHub, StartHub, report, wait_until
from crowd import Crowd, opened, wait_for_last
from jwks_server import AUDIENCE, ISSUER, SETTINGS, JwksServer, SigningKey, key_set
from named_keys import NamedKey, new_key
from redis_servers import SOAK, RedisServer
from servers import SERVERS, ServedHub, Server
from ssehub.config import load_config
from ssehub.errors import ConfigError
from ssehub.server.credentials import create_tokens
from ssehub.tokens import Tokens, secrets_of
from streams import BUSY, RawStream, get, listen

NEW, OLD = "a new secret of more than 32 bytes, for tests", "an old secret of more than 32 bytes, for tests"
FIRST, SECOND = SigningKey("first"), SigningKey("second")
QUICK = """
import ssehub.watched as watched
watched.LOOK_SECONDS, watched.SETTLE_SECONDS = 0.2, 0.1
from ssehub.cli import main
main()
"""
"""`ssehub` that looks at its files more often, so that a test need not wait for 6 s."""


def replace(path: Path, content: str) -> None:
    """Replace the file as a whole."""
    new = path.with_suffix(".new")
    new.write_text(content)
    new.rename(path)


def by_secret(secret: str) -> str:
    return Tokens(secret).issue("alex", ["chat"], expires_at=time.time() + 3_600)


def status(hub: RunningHub | ServedHub, token: str) -> int:
    """Return the status of a request for a stream with `token`, without opening one, on a connection of its own."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", hub.port, timeout=10)) as connection:
        connection.request("HEAD", "/events/", headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().status


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secrets"
    path.write_text(f"{OLD}\n")
    return path


@pytest.fixture
def jwks_file(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_text(key_set(FIRST))
    return path


@pytest.fixture
def start(start_hub: StartHub, secret_file: Path) -> StartHub:
    """Start a hub on the secret file."""

    def start(*arguments: str, **options: Any) -> RunningHub:
        return start_hub("--secret-file", str(secret_file), *arguments, env={"SSEHUB_SECRET": None}, **options)

    return start


def test_b19_secret_is_replaced_without_a_signal_and_no_stream_ends(start: StartHub, secret_file: Path) -> None:
    hub = start(code=QUICK)
    stream = listen(hub.port, by_secret(OLD))
    assert status(hub, by_secret(NEW)) == 401

    replace(secret_file, f"{NEW}\n\n{OLD}\n")
    wait_until(lambda: "2 secrets, of which the first signs" in hub.log)
    assert [status(hub, by_secret(secret)) for secret in (NEW, OLD)] == [200, 200]
    Tokens(NEW).verify(hub.token())
    replace(secret_file, f"{NEW}\n")
    wait_until(lambda: "has been read again: 1 secret\n" in hub.log)

    assert [status(hub, by_secret(secret)) for secret in (NEW, OLD)] == [200, 401]
    hub.emit(data="still here")
    stream.read_event("still here")
    stream.close()
    assert NEW not in hub.log and OLD not in hub.log


def test_f7_b22_sighup_reads_secrets_and_keys_at_once_and_broken_ones_replace_nothing(
    start: StartHub, secret_file: Path, jwks_file: Path
) -> None:
    hub = start("--jwks", str(jwks_file), *SETTINGS)
    stream = listen(hub.port, FIRST.token())

    replace(secret_file, NEW)
    replace(jwks_file, key_set(SECOND))
    hub.signal(signal.SIGHUP)
    wait_until(lambda: hub.log.count("has been read again") == 2)
    assert [status(hub, token) for token in (by_secret(NEW), SECOND.token())] == [200, 200]
    assert [status(hub, token) for token in (by_secret(OLD), FIRST.token())] == [401, 401]

    replace(secret_file, f"{OLD}\nchangeme\n")
    replace(jwks_file, json.dumps({"keys": [FIRST.jwk | {"d": "private"}]}))
    hub.signal(signal.SIGHUP)
    hub.wait_for('ssehub_reload_failures_total{file="secret_file"}', 1)
    hub.wait_for('ssehub_reload_failures_total{file="jwks"}', 1)

    assert [status(hub, token) for token in (by_secret(NEW), SECOND.token())] == [200, 200]
    assert [status(hub, token) for token in (by_secret(OLD), FIRST.token())] == [401, 401]
    wait_until(lambda: f"secret_file {secret_file}: the secret is a publicly known default or example" in hub.log)
    wait_until(lambda: f"jwks {jwks_file}: the JWKS is refused, because key 1 is private" in hub.log)
    assert httpx.get(f"{hub.control_url}/readyz").status_code == 200
    hub.emit(data="still here")
    stream.read_event("still here")
    stream.close()


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


def test_b23_before_the_first_keys_are_fetched_readyz_says_so_and_streams_are_told_to_come_back(
    start: StartHub, ca: CertificateAuthority, start_hub: StartHub
) -> None:
    with JwksServer(key_set(FIRST), ca) as server:
        server.status = 500
        hub = start_hub("--jwks", server.url, *SETTINGS, env={"SSL_CERT_FILE": str(ca.path)})
        wait_until(lambda: "there are no keys yet" in hub.log)

        answer = httpx.get(f"{hub.control_url}/readyz")
        assert (answer.status_code, answer.text) == (
            503,
            f"jwks {server.url}: the answer has status 500 instead of 200\n",
        )
        stream = RawStream(hub.port, get("/events/", f"Authorization: Bearer {FIRST.token()}"))
        assert stream.read_until(BUSY).startswith(b"HTTP/1.1 200 ")
        stream.close()
        assert hub.metric('ssehub_refused_total{reason="keys"}') == 1
        assert status(hub, by_secret(SECRET)) == 200  # the secret verifies, whatever the provider does
        server.status = 200

        wait_until(lambda: httpx.get(f"{hub.control_url}/readyz").status_code == 200, 30)
        assert status(hub, FIRST.token()) == 200
        assert status(hub, SECOND.token()) == 401
        assert hub.metric("ssehub_jwks_fetch_failures_total") >= 1
        assert hub.metric("ssehub_jwks_age_seconds") < 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    running = RedisServer("valkey", tmp_path_factory.mktemp("valkey"))
    yield running
    running.kill()


@pytest.fixture
def start_workers(server: RedisServer, start: StartHub, tmp_path: Path) -> StartHub:
    """Start two workers on a log of their own."""

    def start_two(*arguments: str) -> RunningHub:
        hub = start("--broker", server.url, "--redis-prefix", tmp_path.name, "--workers", "2", *arguments)
        wait_until(lambda: hub.log.count("has started") == 2)
        return hub

    return start_two


def statuses(hub: RunningHub, token: str) -> set[int]:
    """Return what all workers answer to a request with `token`: each connection is given to one of them at random."""
    return {status(hub, token) for _ in range(20)}


def worker_pids(hub: RunningHub) -> list[int]:
    """Return the process of each worker, by its number."""
    found = dict(re.findall(r"worker (\d) has started, process (\d+)", hub.log))
    return [int(found[number]) for number in sorted(found)]


def test_f7_sighup_reaches_all_workers_and_one_that_replaces_another_begins_with_the_last_good_secrets(
    start_workers: StartHub, secret_file: Path, jwks_file: Path
) -> None:
    hub = start_workers("--jwks", str(jwks_file), *SETTINGS)

    replace(secret_file, NEW)
    replace(jwks_file, key_set(SECOND))
    hub.signal(signal.SIGHUP)
    wait_until(lambda: hub.log.count("has been read again") == 6)  # by the parent and both workers
    assert [statuses(hub, token) for token in (by_secret(NEW), SECOND.token())] == [{200}, {200}]
    assert [statuses(hub, token) for token in (by_secret(OLD), FIRST.token())] == [{401}, {401}]

    replace(secret_file, "")
    jwks_file.unlink()
    os.kill(worker_pids(hub)[0], signal.SIGKILL)
    wait_until(lambda: hub.log.count("has started") == 3)

    assert [statuses(hub, token) for token in (by_secret(NEW), SECOND.token())] == [{200}, {200}]
    replace(secret_file, OLD)
    replace(jwks_file, key_set(FIRST))
    hub.signal(signal.SIGHUP)
    wait_until(lambda: statuses(hub, by_secret(OLD)) == statuses(hub, FIRST.token()) == {200})
    assert [statuses(hub, token) for token in (by_secret(NEW), SECOND.token())] == [{401}, {401}]


@pytest.mark.only_soak
@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS.keys())
def test_b22_files_are_read_again_under_any_server(server: Server, jwks_file: Path) -> None:
    hub = ServedHub(
        server,
        SSEHUB_JWKS=str(jwks_file),
        SSEHUB_ISSUER=ISSUER,
        SSEHUB_AUDIENCE=f"other,{AUDIENCE}",
        SSEHUB_GRANT_TEMPLATES="user.{sub}",
    )
    try:
        hub.wait_until_ready()
        assert status(hub, FIRST.token()) == 200

        replace(jwks_file, key_set(SECOND))

        wait_until(lambda: status(hub, SECOND.token()) == 200, 20)
        assert status(hub, FIRST.token()) == 401
    finally:
        hub.stop()


class Rotation:
    """Two workers whose secrets and keys are rotated a file at a time, and what is asked of them meanwhile."""

    def __init__(self, hub: RunningHub, secret_file: Path, jwks_file: Path) -> None:
        self.hub = hub
        self.secret_file = secret_file
        self.jwks_file = jwks_file
        self.asked = 0

    def replace(self, path: Path, content: str, *, is_signalled: bool) -> float:
        """Replace a file; return in how many seconds the parent and both workers have read it."""
        before = self.hub.log.count(f"{path} has been read again")
        began = time.monotonic()
        replace(path, content)
        if is_signalled:
            self.hub.signal(signal.SIGHUP)
        wait_until(lambda: self.hub.log.count(f"{path} has been read again") >= before + 3, 20)
        return time.monotonic() - began

    def ask(self, *, valid: list[Callable[[], str]], invalid: list[Callable[[], str]]) -> None:
        for make in valid:
            assert statuses(self.hub, make()) == {200}
        for make in invalid:
            assert statuses(self.hub, make()) == {401}
        self.asked += 20 * (len(valid) + len(invalid))

    def kill_a_worker(self) -> None:
        before = self.hub.log.count("has started")
        os.kill(worker_pids(self.hub)[1], signal.SIGKILL)
        wait_until(lambda: self.hub.log.count("has started") == before + 1, 30)


@pytest.mark.only_soak
@pytest.mark.parametrize("is_signalled", [True, False], ids=["sighup", "watched"])
def test_b19_rotation_of_secrets_and_keys_with_a_thousand_streams_on_two_workers(
    start_workers: StartHub, secret_file: Path, jwks_file: Path, is_signalled: bool
) -> None:
    hub = start_workers("--jwks", str(jwks_file), *SETTINGS)
    rotation = Rotation(hub, secret_file, jwks_file)
    old_secret, new_secret = lambda: by_secret(OLD), lambda: by_secret(NEW)
    first, second = FIRST.token, SECOND.token
    crowds = [Crowd(hub.port, token, 250) for token in (by_secret(OLD), FIRST.token()) * 2]
    with opened(crowds):
        events = iter(range(1, 1_000))

        def publish() -> int:
            number = next(events)
            hub.emit(data=str(number))
            return number

        rotation.ask(valid=[old_secret, first], invalid=[new_secret, second])
        seconds = [rotation.replace(secret_file, f"{NEW}\n{OLD}\n", is_signalled=is_signalled)]
        rotation.ask(valid=[old_secret, new_secret, first], invalid=[second])
        seconds += [rotation.replace(jwks_file, key_set(FIRST, SECOND), is_signalled=is_signalled)]
        rotation.ask(valid=[old_secret, new_secret, first, second], invalid=[])
        wait_for_last(crowds, publish())
        assert sum(crowd.report().connected for crowd in crowds) == 1_000  # no stream has ended

        rotation.kill_a_worker()
        rotation.ask(valid=[old_secret, new_secret, first, second], invalid=[])
        wait_until(lambda: sum(crowd.report().open for crowd in crowds) == 1_000, 60)
        after_kill = sum(crowd.report().connected for crowd in crowds)
        assert 1_000 < after_kill < 2_000  # those of the killed worker came back, the others stayed

        seconds += [rotation.replace(secret_file, f"{NEW}\n", is_signalled=is_signalled)]
        rotation.ask(valid=[new_secret, first, second], invalid=[old_secret])
        seconds += [rotation.replace(jwks_file, key_set(SECOND), is_signalled=is_signalled)]
        rotation.ask(valid=[new_secret, second], invalid=[old_secret, first])
        wait_for_last(crowds, publish())
        reports = [crowd.report() for crowd in crowds]

    assert sum(crowd.connected for crowd in reports) == after_kill
    assert [(crowd.faults, crowd.resets) for crowd in reports] == [(0, 0)] * 4
    report(
        f"rotation: 1,000 streams, {after_kill - 1_000} came back from a killed worker, {rotation.asked} requests as "
        f"expected; files read after {', '.join(f'{each:.1f}' for each in seconds)} s"
    )


class Publishers:
    """Threads that publish with one control key after the other, each event on a connection of its own."""

    def __init__(self, hub: RunningHub, key: str, threads: int) -> None:
        self.key = key
        self.statuses: list[list[int]] = [[] for _ in range(threads)]
        self._hub = hub
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._publish, args=(answers,)) for answers in self.statuses]

    def __enter__(self) -> Publishers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _publish(self, answers: list[int]) -> None:
        while not self._stopped.is_set():
            answers.append(emit_status(self._hub, self.key))

    def go_on(self, count: int = 50 if SOAK else 4) -> None:
        """Wait until each of them has published that often, which is with the present key but for the first."""
        goals = [len(answers) + count for answers in self.statuses]
        wait_until(lambda: all(len(answers) >= goal for answers, goal in zip(self.statuses, goals, strict=True)), 30)


def emit_status(hub: RunningHub, key: str) -> int:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", hub.control_port, timeout=10)) as connection:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/x-www-form-urlencoded"}
        connection.request("POST", "/emit/", "userId=*&channel=orders.1&data=x", headers)
        return connection.getresponse().status


def key_statuses(hub: RunningHub, key: str) -> set[int]:
    """Return what all workers answer to publishes with `key`."""
    return {emit_status(hub, key) for _ in range(20)}


class KeyRotation:
    """Two workers whose file of control keys is replaced."""

    def __init__(self, start_workers: StartHub, path: Path) -> None:
        self.path = path
        self.orders = NamedKey("orders", ["publish"], ["orders.*"])
        replace(path, self.orders.entry())
        self.hub = start_workers("--control-keys-file", str(path))

    def replace(self, content: str, outcome: str, *, is_signalled: bool) -> None:
        """Replace the file, and wait until the parent and both workers have logged the outcome.

        Each logs once that a new content is in use, but perhaps twice that it has read the file: for the signal, too.
        """
        before = self.hub.log.count(outcome)
        replace(self.path, content)
        if is_signalled:
            self.hub.signal(signal.SIGHUP)
        wait_until(lambda: self.hub.log.count(outcome) >= before + 3, 20)

    def rotate(self, publishers: Publishers, *, is_signalled: bool) -> None:
        """Let the new key be valid beside the old one, then only the new one."""
        old, new = publishers.key, new_key()
        after = NamedKey("orders", ["publish"], ["orders.*"], key=new)
        publishers.go_on()
        self.replace(after.entry(old), "has been read again: 1 key, 2 hashes\n", is_signalled=is_signalled)
        publishers.go_on()
        publishers.key = new
        publishers.go_on()
        self.replace(after.entry(), "has been read again: 1 key, 1 hash\n", is_signalled=is_signalled)
        assert key_statuses(self.hub, old) == {401}
        publishers.go_on()


@pytest.mark.soak
def test_b34_control_key_is_rotated_on_two_workers_while_publishers_are_never_refused(
    start_workers: StartHub, tmp_path: Path
) -> None:
    rotation = KeyRotation(start_workers, tmp_path / "keys.toml")
    with Publishers(rotation.hub, rotation.orders.key, 8 if SOAK else 2) as publishers:
        for is_signalled in (True, False) * 5 if SOAK else (True,):
            rotation.rotate(publishers, is_signalled=is_signalled)
            rotation.replace("", "stays in use", is_signalled=is_signalled)

    answers = [status for of_one in publishers.statuses for status in of_one]
    assert set(answers) == {200}
    assert rotation.hub.log.count("stays in use") >= 3
    report(f"rotation of a control key: {len(answers)} publishes, none refused")


JWKS = {"jwks": "/nonexistent", "issuer": ISSUER, "audience": AUDIENCE, "grant_templates": "user.{sub}"}
REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "no-issuer": ({"issuer": ""}, "jwks needs issuer and audience"),
    "no-audience": ({"audience": ""}, "jwks needs issuer and audience"),
    "no-channels": ({"grant_templates": ""}, "jwks needs channel_claim, pattern_claim or grant_templates"),
    "missing": ({}, "jwks /nonexistent can't be read: No such file or directory"),
    "http": ({"jwks": "http://login.example/"}, "so use https://"),
    "ftp": ({"jwks": "ftp://login.example/"}, "must be a file or a URL such as"),
    "template": ({"grant_templates": "user.{sub"}, "user.{sub"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_settings_of_an_identity_provider_that_can_not_be_used_are_refused(
    changes: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        create_tokens(load_config(JWKS | changes))

    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["issuer", "audience", "channel_claim", "grant_templates", "pattern_claim"])
def test_settings_of_an_identity_provider_need_jwks(name: str) -> None:
    with pytest.raises(ConfigError, match="set jwks, too"):
        create_tokens(load_config({name: JWKS.get(name, "channel"), "secret": SECRET}))


def test_jwks_alone_means_that_no_token_by_secret_is_accepted_or_issued(
    jwks_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = create_tokens(load_config(JWKS | {"jwks": str(jwks_file)}))

    assert tokens.verify(FIRST.token("sam")).channels == ("user.sam",)
    assert not tokens.can_issue
    assert caplog.messages == []


BAD_SECRET_FILES = {
    "empty": ("", "there is no secret in it"),
    "blank": ("\n \r\n\t\n", "there is no secret in it"),
    "one-is-well-known": (f"{NEW}\nchangeme\n", "publicly known default"),
    "pem": ("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA\n-----END PRIVATE KEY-----\n", "PEM or SSH key"),
    "many": ("\n".join(secrets.token_urlsafe() for _ in range(17)), "17 secrets: at most 16"),
}


@pytest.mark.parametrize(("content", "message"), BAD_SECRET_FILES.values(), ids=BAD_SECRET_FILES.keys())
def test_secret_file_that_can_not_be_used_is_refused(secret_file: Path, content: str, message: str) -> None:
    secret_file.write_text(content)

    with pytest.raises(ConfigError) as caught:
        Tokens(secret_file=secret_file)

    assert str(caught.value).startswith(f"secret_file {secret_file}: ")
    assert message in str(caught.value)
    assert NEW not in str(caught.value)


def test_lines_of_a_secret_file_may_end_in_any_way_and_spaces_belong_to_a_secret() -> None:
    assert secrets_of("one\r\n\r\n two \n\n   \nthree") == ["one", " two ", "three"]


def test_secret_and_secret_file_are_not_both_accepted(secret_file: Path) -> None:
    with pytest.raises(ConfigError, match="secrets and secret_file are both given"):
        Tokens(SECRET, secret_file=secret_file)
