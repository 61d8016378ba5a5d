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
from pathlib import Path

import httpx
import psutil
import pytest

from conftest import SECRET, RunningHub, connects, free_port, wait_until
from streams import listen
from test_server import use_as_the_readme_says

ROOT = Path(__file__).parent.parent
BAD_LINES = re.compile(r"Traceback|Exception|ERROR")


@dataclass(frozen=True)
class Kind:
    """How a server is started, and what it can do."""

    command: tuple[str, ...]
    ends_in_seconds: float = 5.0
    says_goodbye: bool = True
    waits_for_streams: bool = False


UVICORN = ("-m", "uvicorn", "{app}", "--host", "127.0.0.1", "--port", "{port}", "--no-access-log")
HYPERCORN = ("-m", "hypercorn", "{app}", "--bind", "127.0.0.1:{port}")
KINDS = {
    "uvicorn": Kind(UVICORN),
    "uvicorn-h11": Kind((*UVICORN, "--http", "h11")),
    "uvicorn-fast": Kind((*UVICORN, "--http", "ssehub.server:HttpProtocol")),
    "hypercorn": Kind((*HYPERCORN, "--worker-class", "uvloop"), says_goodbye=False),
    # Since Python 3.12.1 hypercorn 0.18 waits for open connections without end (pgjones/hypercorn#308).
    "hypercorn-asyncio": Kind(HYPERCORN, says_goodbye=False, waits_for_streams=sys.version_info >= (3, 12, 1)),
    "granian": Kind(
        (
            *("-m", "granian", "{app}", "--interface", "asgi", "--host", "127.0.0.1", "--port", "{port}"),
            *("--workers-kill-timeout", "3"),
        ),
        says_goodbye=False,
    ),
}


WORKERS = Kind((*UVICORN, "--workers", "2"))


class ServedHub(RunningHub):
    """`ssehub.asgi` under somebody else's server."""

    def __init__(
        self,
        kind: Kind,
        app: str = "ssehub.asgi:client_app",
        *,
        python: str = sys.executable,
        cwd: Path | None = None,
        **env: str,
    ) -> None:
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115  # closed by stop()
        port, control_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.control = f"127.0.0.1:{control_port}"
        self.control_url = f"http://{self.control}"
        command = [part.format(app=app, port=port) for part in kind.command]
        settings = {"SSEHUB_SECRET": SECRET, "SSEHUB_CONTROL_BIND": self.control, **env}
        self.process = subprocess.Popen(
            [python, *command], stdout=self._log, stderr=self._log, env={**os.environ, **settings}, cwd=cwd
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


def test_client_that_stalls_is_bounded_and_the_others_go_on(serve: Callable[..., ServedHub]) -> None:
    hub = serve(SSEHUB_GRACE_SECONDS="1", SSEHUB_HISTORY_BYTES=str(2**20))
    good = listen(hub.port, hub.token())
    stalled = listen(hub.port, hub.token(), receive_buffer=4_096)
    before = hub.memory_bytes()
    for start in range(0, 150, 5):
        padded = [f"{number} {'x' * 190_000}" for number in range(start, start + 5)]
        hub.emit_batch([{"userId": "*", "channel": "chat", "data": data} for data in padded])
        good.read_until(b"data: %d x" % (start + 4))
        good.bytes = b""

    hub.wait_for('ssehub_endings_total{reason="slow"}', 1)
    assert hub.memory_bytes() - before < 15 * 2**20  # of 30 MB that were sent
    stalled.close()
    good.close()
    hub.wait_for("ssehub_subscribers", 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_server_that_is_told_to_end_does(serve: Callable[..., ServedHub], kind: Kind, number: signal.Signals) -> None:
    hub = serve()
    token = hub.token()
    streams = [listen(hub.port, token) for _ in range(100)]
    hub.wait_for("ssehub_subscribers", 100)
    stalled = listen(hub.port, hub.token("stalled"), receive_buffer=4_096)
    for _ in range(20):
        hub.emit(userId="stalled", data="x" * 190_000)
    began = time.monotonic()

    hub.signal(number)
    if kind.waits_for_streams:
        for stream in (*streams, stalled):
            stream.close()
    hub.wait()

    assert time.monotonic() - began < kind.ends_in_seconds
    for stream in [] if kind.waits_for_streams else streams:
        stream.read_to_end()
        if kind.says_goodbye:
            assert [event.event for event in stream.events] == ["stream-drain"]
    stalled.close()


def test_curl_lines_of_the_readme_work_under_uvicorn_in_a_checkout() -> None:
    hub = ServedHub(KINDS["uvicorn"], "asgi:client_app", cwd=ROOT)
    hub.wait_until_ready()
    use_as_the_readme_says(hub)
    hub.stop()


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

    assert hub.wait() == 3
    assert [line for line in hub.log.splitlines() if "ssehub" in line] == [
        "ssehub: SSEHUB_HEARTBEAT_SECONDS 'often': must be a valid number, unable to parse string as a number"
    ]
    hub.stop()


def test_both_apps_in_one_need_a_key_and_hold_the_control_address() -> None:
    without = ServedHub(KINDS["uvicorn"], "ssehub.asgi:app")
    assert without.wait() == 3
    assert "asgi:app serves control on the public port: set SSEHUB_CONTROL_KEY" in without.log
    assert "Traceback" not in without.log
    without.stop()

    hub = ServedHub(KINDS["uvicorn"], "ssehub.asgi:app", SSEHUB_CONTROL_KEY="the key")
    wait_until(lambda: connects(hub.port), 20)
    key = {"Authorization": "Bearer the key"}
    form = {"userId": "alex", "channel": "chat"}
    assert httpx.post(f"{hub.url}/control/token/", data=form).status_code == 401
    token = httpx.post(f"{hub.url}/control/token/", data=form, headers=key).text
    stream = listen(hub.port, token)
    httpx.post(f"{hub.url}/control/emit/", data={**form, "data": "hi"}, headers=key).raise_for_status()
    stream.read_until(b"data: hi\n\n")
    stream.close()
    assert httpx.get(f"{hub.url}/control/healthz").status_code == 200
    assert httpx.get(f"{hub.url}/healthz").status_code == 404
    assert not connects(hub.control_port)
    second = ServedHub(KINDS["uvicorn"], "ssehub.asgi:app", SSEHUB_CONTROL_KEY="x", SSEHUB_CONTROL_BIND=hub.control)
    assert second.wait() == 3
    assert "the port is in use" in second.log
    for started in (second, hub):
        started.stop()


def test_unix_socket_that_was_only_held_is_gone_afterwards(tmp_path: Path) -> None:
    held = tmp_path / "control.sock"
    env = {"SSEHUB_CONTROL_KEY": "x", "SSEHUB_CONTROL_BIND": f"unix:{held}"}
    hub = ServedHub(KINDS["uvicorn"], "ssehub.asgi:app", **env)
    wait_until(lambda: connects(hub.port), 20)
    second = ServedHub(KINDS["uvicorn"], "ssehub.asgi:app", **env)
    assert second.wait() == 3
    assert "somebody listens there already" in second.log
    second.stop()
    assert held.exists()

    hub.stop()

    assert not held.exists()


def test_control_can_be_switched_off() -> None:
    hub = ServedHub(KINDS["uvicorn"], SSEHUB_CONTROL_BIND="off")
    wait_until(lambda: connects(hub.port), 20)

    assert httpx.get(f"{hub.url}/events/").status_code == 401
    hub.stop()


@pytest.mark.parametrize("bind", ["off", "127.0.0.1:0"])
@pytest.mark.parametrize("broker", ["memory://", "sqlite://{path}"])
def test_both_apps_in_one_need_an_address_that_only_one_process_can_hold(
    broker: str, bind: str, tmp_path: Path
) -> None:
    env = {"SSEHUB_CONTROL_KEY": "x", "SSEHUB_CONTROL_BIND": bind}
    hub = ServedHub(
        KINDS["uvicorn"], "ssehub.asgi:app", **env, SSEHUB_BROKER=broker.format(path=tmp_path / "events.db")
    )

    assert hub.wait() == 3
    assert "ssehub: control_bind has to be an address with a port" in hub.log
    assert "Traceback" not in hub.log
    hub.stop()


def test_control_alone_leaves_its_address_to_the_server_that_it_is_given_to() -> None:
    port = free_port()
    hub = ServedHub(KINDS["uvicorn"], "ssehub.asgi:control_app", SSEHUB_CONTROL_BIND=f"127.0.0.1:{port}")
    wait_until(lambda: connects(hub.port), 20)

    assert not connects(port)
    form = {"userId": "*", "channel": "chat", "data": "hi"}
    assert httpx.post(f"{hub.url}/emit/", data=form).text == "OK"
    assert httpx.get(f"{hub.url}/readyz").status_code == 200
    assert httpx.get(f"{hub.url}/events/").status_code == 404
    hub.stop()


def test_workers_with_the_memory_broker_are_refused() -> None:
    hub = ServedHub(WORKERS)

    hub.wait()
    refused = [line for line in hub.log.splitlines() if "the port is in use" in line]
    assert len(refused) == 1 and refused[0].endswith(
        "with memory:// a hub is one process, so start it without --workers"
    )
    assert "Traceback" not in hub.log
    hub.stop()


def test_workers_with_a_wrong_setting_are_not_started_again_and_again() -> None:
    hub = ServedHub(WORKERS, SSEHUB_HEARTBEAT_SECONDS="often")

    hub.wait()
    assert 1 <= hub.log.count("ssehub: SSEHUB_HEARTBEAT_SECONDS 'often'") <= 2
    hub.stop()


def test_server_that_shows_why_it_can_not_start_shows_no_traceback_of_ours() -> None:
    first = ServedHub(KINDS["uvicorn"])
    first.wait_until_ready()
    second = ServedHub(KINDS["hypercorn"], SSEHUB_CONTROL_BIND=first.control)

    second.wait()
    assert "the port is in use" in second.log
    assert "AddressError" not in second.log
    first.stop()
    second.stop()


def children(hub: ServedHub) -> set[int]:
    return {process.pid for process in psutil.Process(hub.process.pid).children()}


@pytest.mark.parametrize("protocol", ["auto", "ssehub.server:HttpProtocol"])
def test_reload_comes_back_with_open_streams(protocol: str, tmp_path: Path) -> None:
    module = tmp_path / "mine.py"
    module.write_text("from ssehub.asgi import client_app\n")
    kind = Kind((*UVICORN, "--http", protocol, "--reload", "--reload-dir", str(tmp_path), "--app-dir", str(tmp_path)))
    hub = ServedHub(kind, "mine:client_app")
    hub.wait_until_ready()
    streams = [listen(hub.port, hub.token()) for _ in range(20)]
    old = children(hub)
    began = time.monotonic()

    module.write_text("from ssehub.asgi import client_app  # changed\n")
    for stream in streams:
        stream.read_to_end(10)
    # The old process answers on the control port until it has ended; only then is the new one started.
    wait_until(lambda: children(hub) - old and connects(hub.control_port), 10)

    assert time.monotonic() - began < 10
    again = listen(hub.port, hub.token())
    again.close()
    hub.stop()


@pytest.mark.e2e
def test_wheel_works_in_an_empty_environment(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT], check=True, timeout=120
    )
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=120)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, *pip[1:], "install", next(tmp_path.glob("*.whl"))], check=True, timeout=300)
    code = "import time; began = time.perf_counter(); import ssehub; print(time.perf_counter() - began)"
    seconds = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    hub = ServedHub(KINDS["uvicorn"], python=str(python), cwd=tmp_path)
    hub.wait_until_ready()
    use_as_the_readme_says(hub)
    hub.stop()

    assert float(seconds) < 0.3
