"""One contract under four servers: uvicorn plain and with our protocol, hypercorn, granian."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from conftest import SECRET, RunningHub, connects, free_port, wait_until
from streams import listen

BAD_LINES = re.compile(r"Traceback|Exception|ERROR")


@dataclass(frozen=True)
class Kind:
    """How a server is started, and what it can do."""

    command: tuple[str, ...]
    ends_in_seconds: float = 5.0
    notices_slow: bool = True
    says_goodbye: bool = True


UVICORN = ("-m", "uvicorn", "{app}", "--host", "127.0.0.1", "--port", "{port}", "--no-access-log")
KINDS = {
    "uvicorn": Kind(UVICORN),
    "uvicorn-h11": Kind((*UVICORN, "--http", "h11")),
    "uvicorn-fast": Kind((*UVICORN, "--http", "ssehub.server:HttpProtocol")),
    "hypercorn": Kind(("-m", "hypercorn", "{app}", "--bind", "127.0.0.1:{port}"), says_goodbye=False),
    "granian": Kind(
        (
            *("-m", "granian", "{app}", "--interface", "asgi", "--host", "127.0.0.1", "--port", "{port}"),
            *("--workers-kill-timeout", "3"),
        ),
        notices_slow=False,
        says_goodbye=False,
    ),
}


class ServedHub(RunningHub):
    """`ssehub.asgi` under somebody else's server."""

    def __init__(self, kind: Kind, app: str = "ssehub.asgi:client_app", **env: str) -> None:
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115  # closed by stop()
        port, control_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.control_url = f"http://127.0.0.1:{control_port}"
        command = [part.format(app=app, port=port) for part in kind.command]
        settings = {"SSEHUB_SECRET": SECRET, "SSEHUB_CONTROL_BIND": f"127.0.0.1:{control_port}", **env}
        self.process = subprocess.Popen(
            [sys.executable, *command], stdout=self._log, stderr=self._log, env={**os.environ, **settings}
        )

    def wait_until_ready(self) -> None:
        wait_until(lambda: (connects(self.port) and connects(self.control_port)) or self.process.poll() is not None, 20)
        assert self.process.poll() is None, self.log


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def serve(kind: Kind) -> Iterator[Callable[..., ServedHub]]:
    running: list[ServedHub] = []

    def start(**env: str) -> ServedHub:
        hub = ServedHub(kind, **env)
        running.append(hub)
        hub.wait_until_ready()
        return hub

    yield start
    for hub in running:
        hub.stop()


def test_thousand_events_arrive_in_order(serve: Callable[..., ServedHub]) -> None:
    hub = serve()
    stream = listen(hub.port, hub.token())
    for start in range(0, 1_000, 100):
        hub.emit_batch([{"userId": "*", "channel": "chat", "data": str(start + number)} for number in range(100)])

    stream.read_until(b"data: 999\n\n")
    stream.close()

    assert [event.data for event in stream.events] == [str(number) for number in range(1_000)]


def test_client_that_goes_is_noticed(serve: Callable[..., ServedHub]) -> None:
    hub = serve(SSEHUB_HEARTBEAT_SECONDS="0.5")
    stream = listen(hub.port, hub.token())
    hub.wait_for("ssehub_subscribers", 1)

    stream.close()

    hub.wait_for("ssehub_subscribers", 0, 5)
    assert not BAD_LINES.search(hub.log), hub.log


def test_stream_ends_with_its_token(serve: Callable[..., ServedHub]) -> None:
    hub = serve()
    stream = listen(hub.port, hub.token(exp=2))

    stream.read_until(b"0\r\n\r\n")
    stream.close()

    assert [event.event for event in stream.events] == ["stream-expiring", "stream-expired"]


def test_client_that_stalls_is_bounded_and_the_others_go_on(serve: Callable[..., ServedHub], kind: Kind) -> None:
    hub = serve(SSEHUB_GRACE_SECONDS="1")
    good = listen(hub.port, hub.token())
    stalled = listen(hub.port, hub.token(), receive_buffer=4_096)
    before = hub.memory_bytes()
    for number in range(60):
        hub.emit(data=f"{number} {'x' * 200_000}")
        good.read_until(b"data: %d x" % number)
        good.bytes = b""

    if kind.notices_slow:
        hub.wait_for('ssehub_endings_total{reason="slow"}', 1)
    assert hub.memory_bytes() - before < 60 * 2**20
    stalled.close()
    good.close()
    hub.wait_for("ssehub_subscribers", 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_server_that_is_told_to_end_does(serve: Callable[..., ServedHub], kind: Kind, number: signal.Signals) -> None:
    hub = serve()
    token = hub.token()
    streams = [listen(hub.port, token) for _ in range(100)]
    hub.wait_for("ssehub_subscribers", 100)
    began = time.monotonic()

    hub.signal(number)
    hub.wait()

    assert time.monotonic() - began < kind.ends_in_seconds
    for stream in streams:
        stream.read_to_end()
        if kind.says_goodbye:
            assert [event.event for event in stream.events] == ["stream-drain"]


def test_second_process_is_refused_in_one_line() -> None:
    first = ServedHub(KINDS["uvicorn"])
    first.wait_until_ready()
    second = ServedHub(KINDS["uvicorn"], SSEHUB_CONTROL_BIND=f"127.0.0.1:{first.control_port}")

    assert second.wait() == 3
    assert "Traceback" not in second.log
    assert f"can't listen on 127.0.0.1:{first.control_port}: the port is in use" in second.log
    first.stop()
    second.stop()


def test_wrong_setting_is_one_line_that_names_it() -> None:
    hub = ServedHub(KINDS["uvicorn"], SSEHUB_HEARTBEAT_SECONDS="often")

    assert hub.wait() == 1
    assert [line for line in hub.log.splitlines() if "ssehub" in line] == [
        "ssehub: SSEHUB_HEARTBEAT_SECONDS 'often': input should be a valid number, unable to parse string as a number"
    ]
    hub.stop()
