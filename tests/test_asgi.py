"""`ssehub.asgi` under other servers: one contract for all of them, and how a start is refused."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import CONTROL_KEY, ERROR_LINES, SECRET, connects, free_port, report, wait_until
from readme import check_curl_lines
from servers import HYPERCORN, SERVERS, UVICORN, UVICORN_WORKERS, ServedHub, Server, reloading_uvicorn
from streams import HELLO, RawStream, get, listen

SOAK = "SOAK" in os.environ
SHARED_SECONDS = 3.0
"""How much longer servers may take to stop because others, which stop at once, use the processors, too."""
ROOT = Path(__file__).parent.parent
Serve = Callable[..., ServedHub]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start hubs, with the arguments of `ServedHub`, and stop them after the test."""
    with ExitStack() as stack:

        def start(*arguments: Any, **options: Any) -> ServedHub:
            hub = ServedHub(*arguments, **options)
            stack.callback(hub.stop)
            return hub

        yield start


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Server:
    return SERVERS[request.param]


@pytest.fixture
def start(server: Server, serve: Serve) -> Serve:
    """Start hubs under each of the servers in turn, and wait until they listen."""

    def start(**env: str) -> ServedHub:
        hub = serve(server, **env)
        hub.wait_until_ready()
        return hub

    return start


def test_f15_thousand_events_arrive_in_order(start: Serve) -> None:
    hub = start()
    stream = listen(hub.port, hub.token())

    for first in range(0, 1_000, 100):
        hub.emit_batch([{"userId": "*", "channel": "chat", "data": str(first + number)} for number in range(100)])
    stream.read_event("999")
    stream.close()

    assert [event.data for event in stream.events] == [str(number) for number in range(1_000)]


def test_client_that_disconnects_is_noticed(start: Serve) -> None:
    hub = start(SSEHUB_HEARTBEAT_SECONDS="0.5")
    stream = listen(hub.port, hub.token())
    hub.wait_for("ssehub_subscribers", 1)

    stream.close()

    hub.wait_for("ssehub_subscribers", 0, 5)
    assert not ERROR_LINES.search(hub.log), hub.log


def test_stream_ends_with_its_token(start: Serve) -> None:
    hub = start()
    stream = listen(hub.port, hub.token(exp=2))

    stream.read_until(b"0\r\n\r\n")
    stream.close()

    assert [event.event for event in stream.events] == ["stream-expiring", "stream-expired"]


def test_response_is_cut_off_for_a_client_that_needs_it_and_complete_otherwise(start: Serve) -> None:
    hub = start(SSEHUB_STREAM_LIFETIME_SECONDS="2", SSEHUB_MAX_CONNECTIONS="1")
    path = f"/events/?token={hub.token()}"
    stream = RawStream(hub.port, get(f"{path}&end=cut"))
    stream.read_until(HELLO)
    refused = [RawStream(hub.port, get(f"{path}&end={end}")) for end in ("cut", "clean")]

    cut, complete = (one.read_to_end() for one in refused)
    ended = stream.read_to_end()

    assert [one.events[-1].event for one in (*refused, stream)] == ["stream-busy", "stream-busy", "stream-lifetime"]
    assert [one.endswith(b"\r\n0\r\n\r\n") for one in (cut, complete, ended)] == [False, True, False]
    assert not ERROR_LINES.search(hub.log), hub.log


def test_client_that_stalls_is_bounded_and_the_others_go_on(start: Serve) -> None:
    hub = start(SSEHUB_GRACE_SECONDS="1", SSEHUB_HISTORY_BYTES=str(2**20))
    good = listen(hub.port, hub.token())
    stalled = listen(hub.port, hub.token(), receive_buffer=4_096)
    before = hub.memory_bytes()

    for first in range(0, 150, 5):
        padded = [f"{number} {'x' * 190_000}" for number in range(first, first + 5)]
        hub.emit_batch([{"userId": "*", "channel": "chat", "data": data} for data in padded])
        good.read_until(b"data: %d x" % (first + 4))
        good.bytes = b""

    hub.wait_for('ssehub_endings_total{reason="slow"}', 1)
    assert hub.memory_bytes() - before < 15 * 2**20  # of 30 MB that were sent
    stalled.close()
    good.close()
    hub.wait_for("ssehub_subscribers", 0)


@pytest.mark.alone
@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT] if SOAK else [signal.SIGTERM])
def test_server_stops_in_time_with_open_and_stalled_streams(number: signal.Signals, serve: Serve) -> None:
    """All servers at once: each spends most of its time waiting for the client that has stalled."""
    hubs = {name: serve(server) for name, server in SERVERS.items()}
    streams, stalled = dict[str, list[RawStream]](), dict[str, RawStream]()
    for name, hub in hubs.items():
        hub.wait_until_ready()
        token = hub.token()
        streams[name] = [listen(hub.port, token) for _ in range(100 if SOAK else 30)]
        hub.wait_for("ssehub_subscribers", len(streams[name]))
        stalled[name] = listen(hub.port, hub.token("stalled"), receive_buffer=4_096)
        hub.emit_batch([{"userId": "stalled", "channel": "chat", "data": "x" * 190_000}] * 20)

    began = {}
    for name, hub in hubs.items():
        began[name] = time.monotonic()
        hub.signal(number)
        if SERVERS[name].waits_for_streams:
            for stream in (*streams[name], stalled[name]):
                stream.close()
    took = dict[str, float]()
    while len(took) < len(hubs):
        for name in hubs.keys() - took:
            if hubs[name].process.poll() is not None:
                took[name] = time.monotonic() - began[name]
        assert time.monotonic() - min(began.values()) < 20, hubs.keys() - took
        time.sleep(0.01)
    report(", ".join(f"{name} {seconds:.1f} s" for name, seconds in took.items()))

    late = [name for name, seconds in took.items() if seconds >= SERVERS[name].stops_in_seconds + SHARED_SECONDS]
    assert late == []
    for name, server in SERVERS.items():
        for stream in [] if server.waits_for_streams else streams[name]:
            stream.read_to_end()
            if server.sends_drain:
                assert [event.event for event in stream.events] == ["stream-drain"], name
        stalled[name].close()


def test_curl_lines_of_the_readme_work_under_uvicorn_in_a_checkout(serve: Serve) -> None:
    hub = serve(UVICORN, "asgi:client_app", cwd=ROOT)
    hub.wait_until_ready()

    check_curl_lines(hub)


def test_second_process_is_refused_in_one_line(serve: Serve) -> None:
    first = serve(UVICORN)
    first.wait_until_ready()

    second = serve(UVICORN, SSEHUB_CONTROL_BIND=first.control_address)

    assert second.wait() == 3
    assert "Traceback" not in second.log
    assert f"can't listen on {first.control_address}: the port is in use" in second.log


def test_wrong_setting_is_one_line_that_names_it(serve: Serve) -> None:
    hub = serve(UVICORN, SSEHUB_HEARTBEAT_SECONDS="often")

    assert hub.wait() == 3
    assert [line for line in hub.log.splitlines() if "ssehub" in line] == [
        "ssehub: SSEHUB_HEARTBEAT_SECONDS 'often': must be a valid number, unable to parse string as a number"
    ]


def test_combined_app_without_a_key_is_refused(serve: Serve) -> None:
    hub = serve(UVICORN, "ssehub.asgi:app")

    assert hub.wait() == 3
    assert "asgi:app serves control on the public port: set SSEHUB_CONTROL_KEY" in hub.log
    assert "Traceback" not in hub.log


def test_combined_app_serves_both_apps_and_reserves_the_control_address(serve: Serve) -> None:
    hub = serve(UVICORN, "ssehub.asgi:app", SSEHUB_CONTROL_KEY=CONTROL_KEY)
    wait_until(lambda: connects(hub.port), 20)
    key = {"Authorization": f"Bearer {CONTROL_KEY}"}
    form = {"userId": "alex", "channel": "chat"}

    assert httpx.post(f"{hub.url}/control/token/", data=form).status_code == 401
    token = httpx.post(f"{hub.url}/control/token/", data=form, headers=key).text
    stream = listen(hub.port, token)
    httpx.post(f"{hub.url}/control/emit/", data={**form, "data": "hi"}, headers=key).raise_for_status()
    stream.read_event("hi")
    stream.close()
    assert httpx.get(f"{hub.url}/control/healthz").status_code == 200
    assert httpx.get(f"{hub.url}/healthz").status_code == 404

    assert not connects(hub.control_port)
    second = serve(UVICORN, "ssehub.asgi:app", SSEHUB_CONTROL_KEY=CONTROL_KEY, SSEHUB_CONTROL_BIND=hub.control_address)
    assert second.wait() == 3
    assert "the port is in use" in second.log


def test_unix_socket_that_was_reserved_is_removed_at_the_end(tmp_path: Path, serve: Serve) -> None:
    path = tmp_path / "control.sock"
    env = {"SSEHUB_CONTROL_KEY": CONTROL_KEY, "SSEHUB_CONTROL_BIND": f"unix:{path}"}
    hub = serve(UVICORN, "ssehub.asgi:app", **env)
    wait_until(lambda: connects(hub.port), 20)
    second = serve(UVICORN, "ssehub.asgi:app", **env)
    assert second.wait() == 3
    assert "another process listens on this socket" in second.log
    assert path.exists()

    hub.signal()
    hub.wait()

    assert not path.exists()


def test_control_app_can_be_switched_off(serve: Serve) -> None:
    hub = serve(UVICORN, SSEHUB_CONTROL_BIND="off")
    wait_until(lambda: connects(hub.port), 20)

    assert httpx.get(f"{hub.url}/events/").status_code == 401


@pytest.mark.parametrize("bind", ["off", "127.0.0.1:0"])
@pytest.mark.parametrize("broker", ["memory://", "sqlite://{path}"])
def test_combined_app_needs_an_address_that_only_one_process_can_have(
    broker: str, bind: str, tmp_path: Path, serve: Serve
) -> None:
    url = broker.format(path=tmp_path / "events.db")

    hub = serve(UVICORN, "ssehub.asgi:app", SSEHUB_CONTROL_KEY=CONTROL_KEY, SSEHUB_CONTROL_BIND=bind, SSEHUB_BROKER=url)

    assert hub.wait() == 3
    assert f"ssehub: control_bind {bind}: asgi:app needs an address with a fixed port" in hub.log
    assert "Traceback" not in hub.log


def test_control_app_alone_does_not_use_the_control_address(serve: Serve) -> None:
    port = free_port()
    hub = serve(UVICORN, "ssehub.asgi:control_app", SSEHUB_CONTROL_BIND=f"127.0.0.1:{port}")
    wait_until(lambda: connects(hub.port), 20)

    assert not connects(port)
    form = {"userId": "*", "channel": "chat", "data": "hi"}
    assert httpx.post(f"{hub.url}/emit/", data=form).text == "OK"
    assert httpx.get(f"{hub.url}/readyz").status_code == 200
    assert httpx.get(f"{hub.url}/events/").status_code == 404


def test_workers_with_the_memory_broker_are_refused(serve: Serve) -> None:
    hub = serve(UVICORN_WORKERS)

    hub.wait()

    refused = [line for line in hub.log.splitlines() if "the port is in use" in line]
    assert len(refused) == 1 and refused[0].endswith(
        "with memory:// a hub is one process, so start it without --workers"
    )
    assert "Traceback" not in hub.log


def test_workers_with_a_wrong_setting_are_not_started_again_and_again(serve: Serve) -> None:
    hub = serve(UVICORN_WORKERS, SSEHUB_HEARTBEAT_SECONDS="often")

    hub.wait()

    assert 1 <= hub.log.count("ssehub: SSEHUB_HEARTBEAT_SECONDS 'often'") <= 2


def test_server_that_logs_the_failure_of_a_start_shows_no_exception_of_ours(serve: Serve) -> None:
    first = serve(UVICORN)
    first.wait_until_ready()

    second = serve(HYPERCORN, SSEHUB_CONTROL_BIND=first.control_address)
    second.wait()

    assert "the port is in use" in second.log
    assert "AddressError" not in second.log


@pytest.mark.parametrize("protocol", ["auto", "ssehub.server:HttpProtocol"])
def test_reload_comes_back_with_open_streams(protocol: str, tmp_path: Path, serve: Serve) -> None:
    module = tmp_path / "mine.py"
    module.write_text("from ssehub.asgi import client_app\n")
    hub = serve(reloading_uvicorn(protocol, tmp_path), "mine:client_app")
    hub.wait_until_ready()
    streams = [listen(hub.port, hub.token()) for _ in range(20)]

    module.write_text("from ssehub.asgi import client_app  # changed\n")
    for stream in streams:
        stream.read_to_end(30)
    # The old process answers on both ports until it exits. The new one is started after that.
    wait_until(lambda: hub.log.count("listening for publishers") == 2, 30)

    listen(hub.port, hub.token()).close()


def test_app_modules_export_the_apps() -> None:
    code = "import asgi, ssehub.asgi as inner; assert asgi.client_app is inner.client_app; print(type(asgi.app))"

    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "SSEHUB_SECRET": SECRET},
        capture_output=True,
        text=True,
        timeout=20,
    )

    assert "EmbeddedApp" in result.stdout, result.stderr


def test_token_of_the_command_opens_a_stream_under_uvicorn_with_our_protocol(serve: Serve) -> None:
    hub = serve(SERVERS["uvicorn-fast"])
    hub.wait_until_ready()
    token = subprocess.run(
        [sys.executable, "-m", "ssehub", "token", "-userId", "a", "-channel", "b", "-secret", SECRET],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    ).stdout.strip()

    listen(hub.port, token).close()
    hub.signal()

    assert hub.wait() in (0, -signal.SIGTERM)


@pytest.mark.e2e
@pytest.mark.parametrize("versions", ["newest", "oldest"])
def test_wheel_works_in_an_empty_environment(versions: str, tmp_path: Path, serve: Serve) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT], check=True, timeout=120
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True, timeout=120)
    python = tmp_path / "venv" / "bin" / "python"
    wheel = str(next(tmp_path.glob("*.whl")))
    constraints = tmp_path / "constraints"
    constraints.write_text("\n".join(oldest_dependencies()) if versions == "oldest" else "")
    install = ["--python", str(python), "install", "--no-compile", "-c", str(constraints), wheel]
    subprocess.run([*pip, *install], check=True, timeout=300)

    code = "import time; began = time.process_time(); import ssehub; print(time.process_time() - began)"
    seconds = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    subprocess.run([python, "-m", "ssehub", "version"], cwd=tmp_path, check=True, capture_output=True)
    hub = serve(UVICORN, python=str(python), cwd=tmp_path)
    hub.wait_until_ready()
    openmetrics = httpx.get(f"{hub.control_url}/metrics", headers={"Accept": "application/openmetrics-text"})
    check_curl_lines(hub)

    assert float(seconds) < 0.3
    assert openmetrics.text.endswith("# EOF\n")


def oldest_dependencies() -> list[str]:
    """Return the oldest versions that pyproject.toml allows, as pins."""
    requirements = "\n".join(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    return ["==".join(bound) for bound in re.findall(r"^([\w-]+)\S*?>=([\d.]+)", requirements, re.MULTILINE)]
