"""The process: how it starts, drains and ends, whatever its clients do."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from conftest import SECRET, RunningHub, connects, free_port, until, wait_until
from ssehub.hub import Hub
from ssehub.server import HttpProtocol
from ssehub.tokens import Tokens
from ssehub.web.client import create_client_app
from streams import RawStream, get, listen

TROUBLE = re.compile(r"ERROR|Traceback|Exception")


def test_start_says_where_to_listen_and_publish_and_what_to_try(start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub("--secret", "MySuperPassword42")

    assert "the secret is short: 32 bytes or more" in hub.log
    assert f"listening for browsers on {hub.url}/events/" in hub.log
    assert f"listening for publishers on {hub.control_url}/" in hub.log
    assert "broker memory://" in hub.log
    assert f"try: curl -d 'userId=alex&channel=chat' {hub.control_url}/token/" in hub.log
    assert "MySuperPassword42" not in hub.log


def test_without_a_secret_one_is_made_and_never_shown(start_hub: Callable[..., RunningHub]) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SSEHUB_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "ssehub", "--bind", "127.0.0.1:0", "--control-bind", "127.0.0.1:0"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stderr is not None
    lines = [process.stderr.readline() for _ in range(3)]
    process.terminate()
    rest = process.stderr.read()
    process.stderr.close()

    assert process.wait(10) == 0
    assert "no secret is set: one was made for this run" in lines[0]
    assert not re.search(r"[A-Za-z0-9_-]{40,}", "".join(lines) + rest)


def test_unix_sockets_serve_both_apps_and_go_with_the_process(
    tmp_path: Path, start_hub: Callable[..., RunningHub]
) -> None:
    client, control = tmp_path / "client.sock", tmp_path / "control.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(client))
    stale.close()

    hub = start_hub("--bind", f"unix:{client}", "--control-bind", f"unix:{control}")
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(control))) as http:
        token = http.post("http://localhost/token/", data={"userId": "a", "channel": "b"}).text
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(client))) as http:
        status = http.head("http://x/events/", params={"token": token}).status_code
    modes = [oct(path.stat().st_mode)[-3:] for path in (client, control)]
    second = subprocess.run(
        [sys.executable, "-m", "ssehub", "--bind", f"unix:{client}", "--control-bind", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        env={**os.environ, "SSEHUB_SECRET": SECRET},
        timeout=20,
    )
    hub.signal()

    assert status == 200
    assert modes == ["666", "660"]
    assert second.returncode == 3 and "somebody listens there already" in second.stderr
    assert hub.wait() == 0
    assert not client.exists() and not control.exists()


@pytest.mark.parametrize("is_unix", [False, True], ids=["tcp", "unix"])
def test_first_curl_to_try_works_as_printed(
    is_unix: bool, tmp_path: Path, start_hub: Callable[..., RunningHub]
) -> None:
    address = f"unix:{tmp_path}/control.sock" if is_unix else "127.0.0.1:0"
    hub = start_hub("--control-bind", address, "--control-key", "k")
    command = re.search(r"try: (.*)", hub.log)
    assert command
    environment = {**os.environ, "KEY": "k"}
    printed = subprocess.run(["bash", "-c", command[1]], capture_output=True, text=True, env=environment, timeout=20)

    assert Tokens(SECRET).verify(printed.stdout).user_id == "alex", printed


def test_curl_lines_of_the_readme_work_as_printed(start_hub: Callable[..., RunningHub]) -> None:
    use_as_the_readme_says(start_hub())


def use_as_the_readme_says(hub: RunningHub) -> None:
    """Its curl lines, on this hub's ports; ends the hub, and with it the stream and curl."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    lines = re.findall(r"^    ((?:TOKEN=|curl ).*)$", readme, re.MULTILINE)
    ports = {"127.0.0.1:8000": f"127.0.0.1:{hub.port}", "127.0.0.1:8001": f"127.0.0.1:{hub.control_port}"}
    token, listening, emit = (re.sub("|".join(ports), lambda found: ports[found[0]], line) for line in lines)
    listener = subprocess.Popen(["bash", "-c", f"{token}\nexec {listening}"], stdout=subprocess.PIPE, text=True)
    hub.wait_for("ssehub_subscribers", 1)
    emitted = subprocess.run(["bash", "-c", emit], capture_output=True, text=True, timeout=20)
    hub.signal()
    heard, _ = listener.communicate(timeout=20)

    assert emitted.stdout == "OK"
    assert "data: hello\n" in heard and "event: stream-drain\n" in heard


def test_server_that_ends_by_itself_ends_the_hub_with_a_word_and_exit_code_1(
    start_hub: Callable[..., RunningHub],
) -> None:
    code = """
import asyncio
from ssehub import server
from ssehub.cli import main

class Failing(server._Server):
    async def serve(self, sockets=None):
        await asyncio.wait_for(super().serve(sockets), 1)

server._Server = Failing
main()
"""
    hub = start_hub("--drain-seconds", "1", code=code)

    assert hub.wait() == 1
    assert "a server has ended by itself, so all end: TimeoutError()" in hub.log
    assert "Traceback" not in hub.log


def test_a14_silent_connections_take_no_descriptors_from_publishers(start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub(prefix=("prlimit", "--nofile=128:128"))
    token = hub.token()
    listening = listen(hub.port, token)
    silent = [socket.create_connection(("127.0.0.1", hub.port)) for _ in range(200)]

    for number in range(5):
        assert httpx.get(f"{hub.control_url}/healthz", timeout=2).text == "ok\n"
        hub.emit(data=str(number))
    listening.read_until(b"data: 4\n\n")
    for connection in silent:
        connection.close()
    wait_until(lambda: opens(hub.port, token), 5)
    listening.close()
    assert not TROUBLE.search(hub.log)


def opens(port: int, token: str) -> bool:
    try:
        listen(port, token).close()
    except (OSError, AssertionError):
        return False
    return True


@pytest.mark.parametrize("is_chunked", [False, True], ids=["with-length", "chunked"])
def test_c6_client_that_reads_nothing_while_it_sends_10_mb_gets_its_413(is_chunked: bool, hub: RunningHub) -> None:
    body = b"x" * 10_000_000
    for path in ("/emit/", "/token/"):
        connection = http.client.HTTPConnection("127.0.0.1", hub.control_port, timeout=20)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", path, iter([body]) if is_chunked else body, headers, encode_chunked=is_chunked)
        response = connection.getresponse()

        assert response.status == 413
        assert b"8388608" in response.read()
        connection.close()


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param(["Content-Length: -1"], "FORM", id="negative-length"),
        pytest.param(["Content-Length: 32", "Transfer-Encoding: chunked"], "20\r\nFORM\r\n0\r\n\r\n", id="CL+TE"),
        pytest.param(["Content-Length: 32", "Content-Length: 3"], "FORM", id="two-lengths"),
    ],
)
def test_c6_body_of_unclear_length_is_refused_and_not_published(headers: list[str], body: str, hub: RunningHub) -> None:
    before = hub.metric("ssehub_events_published_total")
    form = "userId=*&channel=chat&data=smug1"
    assert len(form) == 32
    head = ["POST /emit/ HTTP/1.1", "Host: localhost", "Content-Type: application/x-www-form-urlencoded", *headers]
    stream = RawStream(hub.control_port, "\r\n".join([*head, "", body.replace("FORM", form)]))
    answer = stream.read_to_end()

    assert answer.startswith(b"HTTP/1.1 400") and answer.count(b"HTTP/1.1") == 1
    assert hub.metric("ssehub_events_published_total") == before


EMIT = "POST /emit/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n"
FORM = "userId=*&channel=chat&data=x"


@pytest.mark.parametrize(
    ("request_text", "end"),
    [
        pytest.param(f"{EMIT}Content-Length: {len(FORM)}\r\n\r\n{FORM}", b"OK", id="answer"),
        pytest.param(
            "GET /nothing/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"Not Found", id="close"
        ),
        pytest.param("HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\r\n\r\n", id="head alone"),
        pytest.param("HEAD /healthz HTTP/1.0\r\n\r\n", b"\r\n\r\n", id="head alone, and the end"),
    ],
)
def test_head_and_body_of_an_answer_come_in_one_packet(request_text: str, end: bytes, hub: RunningHub) -> None:
    client = RawStream(hub.control_port, request_text)
    received = client.read_until(end)
    packets = packets_with_data(client)
    client.close()

    assert received.startswith(b"HTTP/1.1 ") and received.endswith(end)
    assert packets == 1


def packets_with_data(client: RawStream) -> int:
    """How many have come: `tcpi_data_segs_in` in linux/tcp.h."""
    info = client.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("I", info, 152)[0])


def test_stream_begins_with_its_head_in_one_packet(hub: RunningHub) -> None:
    client = RawStream(hub.port, get(f"/events/?token={hub.token()}"))

    received = client.read_until(b"\n\n\r\n")
    packets = packets_with_data(client)
    client.close()

    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert packets == 1


def test_client_that_waits_to_be_told_to_go_on_is_told(hub: RunningHub) -> None:
    client = RawStream(hub.control_port, f"{EMIT}Expect: 100-continue\r\nContent-Length: {len(FORM)}\r\n\r\n")
    client.read_until(b"HTTP/1.1 100 Continue\r\n\r\n")
    client.socket.sendall(FORM.encode())

    assert client.read_until(b"OK", 5).count(b"HTTP/1.1 200 OK") == 1
    client.close()


def test_upgrade_requests_are_answered_as_others_without_a_warning(start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub()
    token = hub.token()
    for upgrade in ("websocket", "h2c"):
        listen(hub.port, token, "Connection: Upgrade", f"Upgrade: {upgrade}").close()

    assert "WARNING" not in hub.log and "websockets" not in hub.log


def test_every_interface_and_ipv6_can_be_bound(start_hub: Callable[..., RunningHub]) -> None:
    everywhere = start_hub("--bind", ":0")
    ipv6 = start_hub("--bind", "[::1]:0")

    assert everywhere.port and ipv6.url.startswith("http://[::1]:")
    assert httpx.get(f"{everywhere.url}/events/").status_code == 401
    assert httpx.get(f"{ipv6.url}/events/").status_code == 401


def test_control_off_loopback_runs_with_a_key(start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub("--control-bind", ":0", "--control-key", "k")

    answer = httpx.post(f"{hub.control_url}/token/", data={"userId": "a", "channel": "b"})

    assert answer.status_code == 401


@pytest.mark.parametrize(("count", "window"), [(200, 3), (99, 2)])
def test_f1_sigterm_ends_every_stream_politely_and_exits_0(
    count: int, window: int, start_hub: Callable[..., RunningHub]
) -> None:
    hub = start_hub("--drain-seconds", str(window))
    token = hub.token()
    streams = [listen(hub.port, token) for _ in range(count)]
    hub.emit(data="last")
    began = time.monotonic()
    hub.signal()
    wait_until(lambda: "draining" in hub.log)
    not_ready = httpx.get(f"{hub.control_url}/readyz")
    newcomer = httpx.get(f"{hub.url}/events/", params={"token": token})
    for stream in streams:
        stream.read_until(b"0\r\n\r\n")
        stream.close()

    assert hub.wait() == 0
    assert time.monotonic() - began < window + 2
    assert (not_ready.status_code, newcomer.status_code) == (503, 200)
    assert "retry: " in newcomer.text
    for stream in streams:
        assert [event.event for event in stream.events] == ["message", "stream-drain"]
        assert stream.events[-1].retry is not None and stream.events[-1].retry >= 2_000
    assert not TROUBLE.search(hub.log)


def test_f2_sigterm_with_clients_that_never_read_exits_in_time(start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub("--drain-seconds", "1.5")
    token = hub.token()
    stuck = [listen(hub.port, token, receive_buffer=4096) for _ in range(5)]
    for _ in range(4):
        hub.emit(data="x" * 200_000)
    began = time.monotonic()
    hub.signal()

    assert hub.wait() == 0
    assert time.monotonic() - began < 3.5
    assert not TROUBLE.search(hub.log)
    for stream in stuck:
        stream.close()


def test_f3_second_signal_ends_at_once(start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub("--drain-seconds", "30")
    streams = [listen(hub.port, hub.token()) for _ in range(100)]
    hub.signal(signal.SIGINT)
    wait_until(lambda: "draining" in hub.log)
    began = time.monotonic()
    hub.signal(signal.SIGINT)

    assert hub.wait() == 128 + signal.SIGINT
    assert time.monotonic() - began < 3
    for stream in streams:
        stream.close()


def test_f4_publish_during_the_drain_is_delivered_stored_or_refused(
    tmp_path: Path, start_hub: Callable[..., RunningHub]
) -> None:
    log = f"sqlite:///{tmp_path}/events.db"
    hub = start_hub("--drain-seconds", "3", "--broker", log)
    stream = listen(hub.port, hub.token())
    answered = []
    hub.signal()
    for number in itertools.count():
        body = {"userId": "*", "channel": "chat", "data": str(number)}
        try:
            answer = httpx.post(f"{hub.control_url}/emit/", json=body, timeout=5)
        except httpx.HTTPError:
            break
        if answer.status_code == 200:
            answered.append(str(number))
    stream.read_to_end()
    last_id = re.findall(rb"^id: (\S+)", stream.body, re.MULTILINE)[-1].decode()

    assert hub.wait() == 0
    assert stream.events[-1].event == "stream-drain"
    again = start_hub("--broker", log)
    end = again.emit(data="end")
    back = listen(again.port, again.token(), f"Last-Event-ID: {last_id}")
    back.read_until(end.encode())
    back.read_until(b"data: end\n\n")
    back.close()
    heard = [event.data for event in [*stream.events, *back.events] if not event.event.startswith("stream-")]
    assert answered and heard == [*sorted({*answered, *heard[:-1]}, key=int), "end"]


def test_f17_whoever_checks_the_health_is_told_before_the_ports_close(start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub()  # without streams, so that there is nothing else to wait for
    checks = []
    with httpx.Client() as http:
        for _ in range(2):
            checks.append(http.get(f"{hub.control_url}/readyz").status_code)
            time.sleep(0.5)
        checks.append(http.get(f"{hub.control_url}/readyz").status_code)
        hub.signal()
        time.sleep(0.5)
        checks.append(http.get(f"{hub.control_url}/readyz").status_code)

    assert checks == [200, 200, 200, 503]
    assert hub.wait(5) == 0


def test_f17_where_nobody_checks_the_health_any_more_nobody_is_waited_for(start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub()
    for _ in range(2):
        httpx.get(f"{hub.control_url}/readyz")
        time.sleep(0.2)
    began = time.monotonic()
    hub.signal()

    assert hub.wait() == 0
    assert time.monotonic() - began < 5  # 0.6 on an idle machine; the window is 10


def test_f5_killed_hub_starts_again_on_the_same_port(start_hub: Callable[..., RunningHub]) -> None:
    first = start_hub()
    stream = listen(first.port, first.token())
    first.signal(signal.SIGKILL)
    first.wait()

    again = start_hub("--bind", f"127.0.0.1:{first.port}")
    stream.close()

    assert again.port == first.port


def test_f7_sighup_is_ignored_and_said(start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub()
    hub.signal(signal.SIGHUP)

    wait_until(lambda: "SIGHUP is ignored" in hub.log)
    assert httpx.get(f"{hub.control_url}/healthz").text == "ok\n"


def test_f10_hub_goes_on_when_nobody_reads_its_stderr() -> None:
    ports = [free_port(), free_port()]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "ssehub",
            *(f"--{name}=127.0.0.1:{port}" for name, port in zip(("bind", "control-bind"), ports, strict=True)),
        ],
        stderr=subprocess.PIPE,
        env={**os.environ, "SSEHUB_SECRET": SECRET},
    )
    control = f"http://127.0.0.1:{ports[1]}"
    wait_until(lambda: answers(control), 20)
    token = httpx.post(f"{control}/token/", data={"userId": "a", "channel": "c" * 200}).text
    for _ in range(500):  # a line of 300 bytes each: well over the 64 KiB of a pipe
        listen(ports[0], token).close()
    health = httpx.get(f"{control}/healthz").text
    process.terminate()

    assert health == "ok\n"
    assert process.wait(20) == 0
    assert process.stderr is not None
    process.stderr.close()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.ConnectError:
        return False


def test_c16_names_cannot_break_a_log_line(start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub()
    user = "evil\x1b[31m\u2028\x85name"
    stream = listen(hub.port, hub.token(user))
    stream.close()
    wait_until(lambda: "stream ended" in hub.log)

    line = next(line for line in hub.log.split("\n") if "stream ended" in line)
    assert "\x1b" not in hub.log and "\u2028" not in hub.log and "\x85" not in hub.log
    assert "evil" in line and line.endswith(" s")


def test_c17_no_token_is_in_the_log(start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub("--log-level", "debug")
    token = hub.token()
    listen(hub.port, token).close()
    httpx.get(f"{hub.url}/events/", params={"token": f"{token}x"})
    wait_until(lambda: "stream ended" in hub.log and "stream refused" in hub.log)

    assert token not in hub.log and SECRET not in hub.log


def test_lost_connection_while_the_headers_are_sent_leaves_nothing(hub: RunningHub) -> None:
    token = hub.token()
    for number in range(200):
        RawStream(hub.port, get(f"/events/?token={token}") * (1 + number % 3)).reset()

    hub.wait_for("ssehub_subscribers", 0)
    assert not TROUBLE.search(hub.log)


@pytest.mark.anyio
async def test_pipelined_requests_leave_no_task_behind() -> None:
    tokens = Tokens(SECRET)
    async with Hub() as hub, served(create_client_app(hub, tokens=tokens, drains_on_exit=False)) as (address, state):
        tasks = len(asyncio.all_tasks())
        request = get(f"/events/?token={tokens.issue('alex', ['chat'], expires_at=time.time() + 60)}").encode()
        for number in range(30):
            _, writer = await asyncio.open_connection(*address)
            writer.write(request * (1 + number % 3))
            await asyncio.sleep(0.001 * (number % 5))
            writer.transport.abort()
        await until(lambda: not state.connections and len(asyncio.all_tasks()) == tasks)

    assert not state.tasks


@asynccontextmanager
async def served(app: ASGIApp, **options: Any) -> AsyncIterator[tuple[tuple[str, int], ServerState]]:
    """`app` behind our protocol, in this loop."""
    config = uvicorn.Config(app, http=HttpProtocol, lifespan="off", **options)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: HttpProtocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    try:
        yield server.sockets[0].getsockname(), state
    finally:
        server.close()


@pytest.mark.anyio
async def test_head_of_an_answer_does_not_wait_for_an_app_that_has_no_body_yet() -> None:
    goes_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await goes_on.wait()
        await send({"type": "http.response.body", "body": b"late"})

    async with served(app) as (address, _), asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(get("/").encode())
        head = await reader.readuntil(b"\r\n\r\n")
        goes_on.set()
        body = await reader.readuntil(b"0\r\n\r\n")
        writer.close()

    assert head.startswith(b"HTTP/1.1 200 OK\r\n") and body == b"4\r\nlate\r\n0\r\n\r\n"


@pytest.mark.anyio
async def test_connection_that_becomes_a_websocket_is_somebody_elses() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()

    upgrade = (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {'A' * 22}==",
    )
    async with served(app, ws="wsproto") as (address, _), asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(get("/", *upgrade).encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()

    assert answer.startswith(b"HTTP/1.1 101 ")


def test_app_modules_export_the_apps() -> None:
    code = "import asgi, ssehub.asgi as inner; assert asgi.client_app is inner.client_app; print(type(asgi.app))"
    root = Path(__file__).parent.parent

    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, "SSEHUB_SECRET": SECRET},
        capture_output=True,
        text=True,
        timeout=20,
    )

    assert "Served" in result.stdout, result.stderr


def test_apps_run_under_uvicorn_with_our_protocol() -> None:
    port = free_port()
    arguments = ["ssehub.asgi:client_app", "--http", "ssehub.server:HttpProtocol", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", *arguments],
        env={**os.environ, "SSEHUB_SECRET": SECRET},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    token = subprocess.run(
        [sys.executable, "-m", "ssehub", "token", "-userId", "a", "-channel", "b", "-secret", SECRET],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    ).stdout.strip()
    wait_until(lambda: connects(port), 20)
    stream = listen(port, token)
    stream.close()
    process.terminate()

    assert process.wait(20) in (0, -signal.SIGTERM)
    assert process.stderr is not None
    process.stderr.close()
