"""The twelve questions of docs/operating.md, asked of a hub with two workers and a crowd in a bad night."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest

import ssehub
from conftest import SECRET, RunningHub, report, wait_until
from named_crowd import named_crowd
from redis_servers import SOAK, RedisServer
from ssehub.tokens import Tokens
from streams import get

PAGE = (Path(__file__).parent.parent / "docs" / "operating.md").read_text()
STREAMS, HOARDED = (10_000, 300) if SOAK else (200, 30)


def commands() -> dict[str, list[str]]:
    """Return the commands of each question, by its heading."""
    sections = [section.partition("\n") for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]]
    return {heading: re.findall(r"^    (\S.*)$", body, re.MULTILINE) for heading, _, body in sections}


QUESTIONS = commands()


class Night:
    """A hub with two workers that has `STREAMS` streams, and what went wrong before somebody was called."""

    def __init__(self, folder: Path, hub: RunningHub, settings: Path, server: RedisServer) -> None:
        self._folder = folder
        self._settings = settings
        self.hub = hub
        self.server = server
        command = folder / "ssehub"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m ssehub "$@"\n')
        command.chmod(0o755)

    @property
    def secret(self) -> Path:
        return self._folder / "secret"

    def ask(self, heading: str, **files: str) -> str:
        """Run the commands of a question, as printed but for ports and paths, and return what they print."""
        for name, content in files.items():
            (self._folder / name).write_text(content)
        places = {
            "127.0.0.1:8001": f"127.0.0.1:{self.hub.control_port}",
            "/var/log/ssehub.log": str(self._folder / "ssehub.log"),
            "token.txt": str(self._folder / "token"),
        }
        (self._folder / "ssehub.log").write_text(self.hub.log)
        answers = []
        for printed in QUESTIONS[heading]:
            command = re.sub("|".join(map(re.escape, places)), lambda found: places[found[0]], printed)
            began = time.monotonic()
            done = subprocess.run(
                ["bash", "-c", command],
                env={
                    **os.environ,
                    "PATH": f"{self._folder}:{os.environ['PATH']}",
                    "SSEHUB_CONFIG": str(self._settings),
                    "SSEHUB_CONTROL_URL": self.hub.control_url,
                },
                capture_output=True,
                text=True,
                timeout=60,
            )
            report(f"$ {printed}\n{done.stdout}{done.stderr}({time.monotonic() - began:.2f} s)\n")
            answers.append(done.stdout + done.stderr)
        return "".join(answers)


def tokens_of_a_crowd() -> Iterator[str]:
    """Yield a token and an address for each stream."""
    tokens = Tokens(SECRET)
    end = time.time() + 3600

    def token(user_id: str, channel: str, address: str) -> str:
        return f"{tokens.issue(user_id, [channel], expires_at=end)} {address}"

    yield token("alex", "chat", "192.0.2.7")
    for _ in range(HOARDED):
        yield token("kim", "chat", "198.51.100.3")
    for number in range(STREAMS - HOARDED - 2):
        yield token(f"user-{number}", "news", f"203.0.113.{number % 250}")


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    folder = tmp_path_factory.mktemp("night")
    secret, settings = folder / "secret", folder / "hub.toml"
    secret.write_text(SECRET)
    with ExitStack() as stack:
        server = RedisServer("valkey", folder)
        stack.callback(server.kill)
        settings.write_text(
            f'broker = "{server.url}"\nworkers = 2\nsecret_file = "{secret}"\ntrusted_proxies = ["127.0.0.1"]\n'
            f"max_connections = {STREAMS}\ngrace_seconds = 600\nmax_backlog_bytes = 100000000\n"
            "tcp_user_timeout_seconds = 600\n"
        )
        hub = RunningHub("--config", str(settings), env={"SSEHUB_SECRET": None})
        stack.callback(hub.stop)
        wait_until(lambda: hub.log.count("has started") == 2)
        crowd = stack.enter_context(named_crowd(hub.port, list(tokens_of_a_crowd())))
        slow = stack.enter_context(socket.create_connection(("127.0.0.1", hub.port)))  # which reads nothing
        token = Tokens(SECRET).issue("sam", ["chat"], expires_at=time.time() + 3600)
        slow.sendall(get("/events/", f"Authorization: Bearer {token}", "X-Forwarded-For: 192.0.2.99").encode())
        wait_until(lambda: bool(httpx.get(f"{hub.control_url}/streams/?userId=sam").json()["streams"]))
        for number in range(1, 21):
            hub.emit(channel="news", data=f"{number} {time.monotonic()}")
            hub.emit(channel="chat", userId="sam", data="x" * 500_000)
        wait_until(lambda: crowd.report().deliveries >= 20 * (STREAMS - HOARDED - 2), 120)
        yield Night(folder, hub, settings, server)


pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]


def test_there_are_twelve_questions_with_commands_and_answers() -> None:
    assert len(QUESTIONS) == 12
    assert all(QUESTIONS.values())
    answers = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(answers) == 12
    assert all(answers)


def test_user_who_says_that_nothing_arrives_is_connected(night: Night) -> None:
    answer = night.ask("A user says that nothing arrives")

    assert re.search(r"alex +chat +192\.0\.2\.7 ", answer)


def test_client_answered_401_has_an_expired_token(night: Night) -> None:
    expired = Tokens(SECRET, now=lambda: time.time() - 7200).issue("alex", ["chat"], expires_at=time.time() - 3600)

    answer = night.ask("Why is a client answered 401?", token=expired)

    assert "expired" in answer and "signature" in answer
    assert expired not in answer


def test_client_that_fills_the_memory_is_the_slow_one(night: Night) -> None:
    answer = night.ask("Which client fills the memory?")

    first = answer.split("\n")[1]
    assert " sam " in first


def test_user_and_address_with_most_streams_are_named(night: Night) -> None:
    answer = night.ask("Who has opened 300 streams?")

    assert re.search(rf"^kim +{HOARDED} ", answer, re.MULTILINE)
    assert re.search(rf"^198\.51\.100\.3 +{HOARDED} ", answer, re.MULTILINE)


def test_refusals_are_counted_and_logged_by_reason(night: Night) -> None:
    for _ in range(3):
        httpx.get(
            f"{night.hub.url}/events/", headers={"Authorization": "Bearer a.b.c", "X-Forwarded-For": "192.0.2.66"}
        )

    answer = night.ask("Is anybody refused, and why?")

    assert re.search(r'^ssehub_tokens_refused_total{reason="malformed",worker="\d"} [123]\.0$', answer, re.MULTILINE)
    assert "192.0.2.66" in answer


def test_busiest_channel_is_named(night: Night) -> None:
    answer = night.ask("Which channel is the busiest?")

    assert re.search(rf"^news +{STREAMS - HOARDED - 2} ", answer, re.MULTILINE)
    assert re.search(r'^ +20 .*"news"', answer, re.MULTILINE)


def test_limits_are_beside_what_they_limit(night: Night) -> None:
    answer = night.ask("Is the hub about to be full?")

    open_streams = re.findall(r'^ssehub_subscribers{worker="\d"} (\S+)$', answer, re.MULTILINE)
    assert sum(map(float, open_streams)) == STREAMS
    assert "ssehub_subscribers_max{" in answer and "ssehub_backlog_bytes_max{" in answer
    assert "ssehub_memory_bytes{" in answer


def test_reload_that_failed_is_shown(night: Night) -> None:
    night.secret.write_text("")
    night.hub.signal(signal.SIGHUP)
    wait_until(lambda: night.hub.log.count("stays in use") >= 3)  # of the workers, and of the process that starts them

    answer = night.ask("Did a reload fail?")
    night.secret.write_text(SECRET)
    night.hub.signal(signal.SIGHUP)

    assert re.search(r'^ssehub_reload_failed{file="secret_file",worker="\d"} 1\.0$', answer, re.MULTILINE)
    assert "there is no secret in it" in answer


def test_trace_and_log_show_what_happens_to_a_stream(night: Night) -> None:
    timer = threading.Timer(
        3.0, night.hub.emit, kwargs={"channel": "chat", "userId": "alex", "data": f"21 {time.monotonic()}"}
    )
    timer.start()

    answer = night.ask("What is happening to this user's stream just now?")
    timer.join()

    assert "delivered" in answer
    assert "stream opened: user 'alex'" in answer


def test_version_and_settings_are_shown_with_their_sources(night: Night) -> None:
    answer = night.ask("Which version runs, with which settings?")

    assert answer.startswith(f"ssehub {ssehub.__version__}\n")
    assert re.search(r"^grace_seconds +600\.0 .*hub\.toml", answer, re.MULTILINE)
    assert SECRET not in answer


def test_worker_that_is_away_is_named(night: Night) -> None:
    # Half of the connections go to the worker that hangs, and get no answer: the page says to repeat the command.
    answers = (ask_while_a_worker_hangs(night) for _ in range(12))

    assert any(re.search(r'"missing": *\["\d"\]', answer) for answer in answers)


def ask_while_a_worker_hangs(night: Night) -> str:
    parent = psutil.Process(night.hub.process.pid)
    wait_until(lambda: workers_of(parent), 30)  # one that was killed is replaced
    worker = workers_of(parent)[0]
    worker.suspend()
    try:
        return night.ask("Which worker is slow, or away?")
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):  # the parent process has replaced it
            worker.resume()


def workers_of(parent: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in parent.children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has died, and its parent does not know yet
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_broker_that_is_away_is_the_problem(night: Night) -> None:  # the last test: it takes the broker away
    statistics = f"{night.hub.control_url}/statistics"
    ready = f"{night.hub.control_url}/readyz"
    wait_until(lambda: httpx.get(statistics, timeout=20).json()["missing"] == [], 30)  # the worker has been replaced
    wait_until(lambda: httpx.get(ready, timeout=20).status_code == 200, 30)
    before = night.ask("Is the broker the problem?")
    night.server.kill()
    wait_until(lambda: httpx.get(ready, timeout=20).status_code == 503, 30)

    after = night.ask("Is the broker the problem?")

    assert "HTTP/1.1 200 OK" in before and re.search(r'^ssehub_broker_ready{worker="\d"} 1\.0$', before, re.MULTILINE)
    assert "HTTP/1.1 503" in after and re.search(r'^ssehub_broker_ready{worker="\d"} 0\.0$', after, re.MULTILINE)
