"""The log in a file, under a hub that is killed, and what those who come back are given."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from conftest import SECRET, RunningHub, free_port, report, require, wait_until
from ssehub.subscription import MessageReader
from streams import RawStream, get, listen, unchunked
from test_cli import run

SOAK = bool(os.environ.get("SOAK"))


class Client:
    """A client that is cut off at random bytes and comes back with its last event id, as a browser would."""

    def __init__(self, port: int, token: str, chance: random.Random) -> None:
        self._port = port
        self._token = token
        self._chance = chance
        self._stop = threading.Event()
        self.last_id = ""
        self.had: list[str] = []
        self.resets: list[str] = []
        self.connections = 0
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._listen(self._chance.choice([300, 1_500, 6_000, 10**9]))
            except OSError:
                time.sleep(0.02)

    def _listen(self, limit: int) -> None:
        headers = [f"Last-Event-ID: {self.last_id}"] if self.last_id else []
        stream = RawStream(self._port, get(f"/events/?token={self._token}", *headers))
        self.connections += 1
        try:
            self._read(stream, self._chance.randint(150, 150 + limit))
        finally:
            stream.reset() if self._chance.random() < 0.5 else stream.close()
        reader = MessageReader()
        for message in reader.read(whole_frames(stream.bytes).decode()):
            if message.type == "stream-reset":
                self.resets.append(message.data)
            elif not message.type.startswith("stream-"):
                self.had.append(message.data)
        self.last_id = reader.last_id or self.last_id

    def _read(self, stream: RawStream, count: int) -> None:
        stream.socket.settimeout(0.05)
        end = time.monotonic() + self._chance.uniform(0.05, 0.4)
        while len(stream.bytes) < count and not self._stop.is_set() and time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                received = stream.socket.recv(min(4_096, count - len(stream.bytes)))
                if not received:
                    return
                stream.bytes += received

    def __enter__(self) -> Client:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def whole_frames(data: bytes) -> bytes:
    head, _, rest = data.partition(b"\r\n\r\n")
    if b" 200 " not in head:
        return b""
    while rest:
        try:
            body = unchunked(rest)
            break
        except AssertionError:
            rest = rest[:-1]
    else:
        return b""
    return body[: body.rfind(b"\n\n") + 2]


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_d1_cut_at_random_bytes_the_union_is_the_exact_sequence(
    kind: str, start_hub: Callable[..., RunningHub], tmp_path: Path
) -> None:
    broker = "memory://" if kind == "memory" else f"sqlite:///{tmp_path}/log.db"
    hub = start_hub("--broker", broker, "--heartbeat-seconds", "0.2")
    connections = 0
    for first in range(0, 200 if SOAK else 30, 10):
        connections += cut_and_compare(hub, range(first, first + 10))
    report(f"D1 {kind}: {first + 10} seeds, {connections} connections, nothing missed")


def cut_and_compare(hub: RunningHub, seeds: range) -> int:
    """A client for each seed, on two channels of its own; returns how often they connected."""
    chances = {seed: random.Random(seed) for seed in seeds}
    wanted: dict[int, list[str]] = {seed: [] for seed in seeds}
    clients = {}
    with httpx.Client() as http, contextlib.ExitStack() as stack:
        for seed, chance in chances.items():
            claims = {"userId": "alex", "channels": [f"busy-{seed}", f"quiet-{seed}"]}
            token = http.post(f"{hub.control_url}/token/", json=claims).raise_for_status().json()["token"]
            clients[seed] = stack.enter_context(Client(hub.port, token, chance))
        wait_until(lambda: all(client.last_id for client in clients.values()))
        for number in range(40):
            batch = [event for seed, chance in chances.items() for event in some(seed, chance, number, wanted[seed])]
            http.post(f"{hub.control_url}/emit/", json=batch).raise_for_status()
            time.sleep(0.03)
        wait_until(lambda: all(clients[seed].had[-1:] == wanted[seed][-1:] for seed in seeds), 30)
    for seed, client in clients.items():
        assert client.resets == [], f"seed {seed}"
        assert unrepeated(client.had) == wanted[seed], f"seed {seed}"
    return sum(client.connections for client in clients.values())


def some(seed: int, chance: random.Random, number: int, wanted: list[str]) -> list[dict[str, str]]:
    """One event of any kind: on the busy channel or the quiet one, with our id or its own, of one block or several."""
    event = {"userId": "*", "channel": f"quiet-{seed}" if chance.random() < 0.1 else f"busy-{seed}"}
    kind = chance.randrange(4)
    if kind < 2:
        event |= {"data": f"{number}"} | ({"id": f"mine-{number}"} if kind else {})
        wanted.append(f"{number}")
    else:
        own = f"id: inner-{number}\n" if kind == 2 else ""
        last = f"id: last-{number}\n" if chance.random() < 0.5 else ""
        event["payload"] = f"{own}data: {number}a\n\ndata: {number}b\n\n{last}data: {number}c\n\n"
        wanted += [f"{number}{block}" for block in "abc"]
    return [event, {"userId": "somebody else", "channel": f"busy-{seed}", "data": "not for us"}]


def unrepeated(had: list[str]) -> list[str]:
    """`had` without the blocks of a payload that were given again, because a client was cut inside it."""
    found: list[str] = []
    for data in had:
        if data[-1] in "abc" and data in found:
            assert found[-1][:-1] == data[:-1], "only the last payload may come again"
        else:
            found.append(data)
    return found


@pytest.mark.soak
def test_d10_subscribers_that_are_kicked_all_the_time_miss_nothing(start_hub: Callable[..., RunningHub]) -> None:
    count, seconds = (200, 10) if SOAK else (40, 3)
    hub = start_hub()
    code = (Path(__file__).parent / "kicked.py").as_posix()
    command = [sys.executable, code, str(hub.port), hub.token(), str(count), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    began, sent = time.monotonic(), 0
    with httpx.Client() as http:
        while time.monotonic() - began < seconds:
            batch = [{"userId": "*", "channel": "chat", "data": f"{sent + n}"} for n in range(10)]
            http.post(f"{hub.control_url}/emit/", json=batch).raise_for_status()
            sent += 10
            time.sleep(max(0.0, began + sent / 500 - time.monotonic()))
        http.post(f"{hub.control_url}/emit/", json={"userId": "*", "channel": "chat", "data": "end"})
    out, _ = process.communicate(timeout=60)
    found = json.loads(out)
    report(f"D10: {found['connections']} connections, {found['received']} received of {count} x {sent}")

    assert found == {"wrong": 0, "resets": 0, "received": count * sent, "connections": found["connections"]}
    assert found["connections"] > count * 3


def kill(hub: RunningHub) -> None:
    hub.signal(signal.SIGKILL)
    hub.wait()


@pytest.mark.soak
def test_kill_9_at_any_moment_loses_nothing_that_was_answered(
    start_hub: Callable[..., RunningHub], tmp_path: Path
) -> None:
    rounds = 50 if SOAK else 6
    port = free_port()
    arguments = ("--broker", f"sqlite:///{tmp_path}/log.db", "--bind", f"127.0.0.1:{port}")
    answered: list[tuple[str, str]] = []
    chance = random.Random(1)
    for round in range(rounds):
        hub = start_hub(*arguments)
        killer = threading.Timer(chance.uniform(0.05, 0.5), hub.signal, [signal.SIGKILL])
        killer.start()
        with httpx.Client() as http:
            try:
                for number in range(100_000):
                    body = {"userId": "*", "channel": "chat", "data": f"{round}-{number}"}
                    response = http.post(f"{hub.control_url}/emit/", json=body)
                    answered.append((response.raise_for_status().json()["id"], body["data"]))
            except httpx.TransportError:
                pass
        killer.join()
        hub.wait()
    hub = start_hub(*arguments, "--history-events", "1000000")
    stream = RawStream(hub.port, get(f"/events/?token={hub.token()}&since=earliest"))
    stream.read_until(f"data: {answered[-1][1]}\n\n".encode(), 30)
    stream.close()
    given = [(event.id, event.data) for event in stream.events]
    report(f"kill -9: {rounds} times, {len(answered)} events answered, {len(given)} in the log")

    assert len(set(given)) == len(given)
    missing = set(answered) - set(given)
    assert not missing
    order = {pair: place for place, pair in enumerate(given)}
    places = [order[pair] for pair in answered]
    assert places == sorted(places)


def test_a_restart_on_sqlite_is_resumed_and_on_memory_told(
    start_hub: Callable[..., RunningHub], tmp_path: Path
) -> None:
    for broker, shown in ((f"sqlite:///{tmp_path}/log.db", ["2", "3"]), ("memory://", ['{"reason":"log-lost"}', "3"])):
        port = free_port()
        hub = start_hub("--broker", broker, "--bind", f"127.0.0.1:{port}")
        token, first = hub.token(), hub.emit(data="1")
        hub.emit(data="2")
        kill(hub)
        hub = start_hub("--broker", broker, "--bind", f"127.0.0.1:{port}")
        stream = listen(port, token, f"Last-Event-ID: {first}")
        hub.emit(data="3")
        stream.read_until(b"data: 3\n\n")
        stream.close()
        assert [event.data for event in stream.events] == shown


def test_a_clock_set_back_an_hour_across_a_restart(start_hub: Callable[..., RunningHub], tmp_path: Path) -> None:
    """F13: ids go on, and a client that was there before gets what it missed."""
    faketime = "import time, runpy, sys; real = time.time; time.time = lambda: real() - 3600; " + (
        "sys.argv[0] = 'ssehub'; runpy.run_module('ssehub', run_name='__main__', alter_sys=True)"
    )
    broker = f"sqlite:///{tmp_path}/log.db"
    hub = start_hub("--broker", broker)
    first = hub.emit(data="1")
    hub.emit(data="2")
    kill(hub)
    hub = start_hub("--broker", broker, code=faketime)
    exp = int(time.time()) + 600
    hub_token = run("token", "--user-id", "a", "--channel", "chat", "--exp", str(exp), SSEHUB_SECRET=SECRET).stdout
    stream = listen(hub.port, hub_token.strip(), f"Last-Event-ID: {first}")
    third = hub.emit(data="3")
    stream.read_until(b"data: 3\n\n")
    stream.close()

    assert [event.data for event in stream.events] == ["2", "3"]
    assert int(third.partition("-")[0]) >= int(first.partition("-")[0])


BAD_PATHS = {
    "folder": ("sqlite:///{0}", "it is a folder"),
    "no-folder": ("sqlite:///{0}/nowhere/log.db", "No such file or directory"),
    "proc": ("sqlite:////proc/log.db", "can't be opened"),
    "not-ours": ("sqlite:////etc/passwd", "is damaged"),
}


@pytest.mark.parametrize("kind", BAD_PATHS)
def test_a_log_that_can_not_be_used_is_one_line_and_exit_3(kind: str, tmp_path: Path) -> None:
    url, says = BAD_PATHS[kind]
    result = run(
        "--bind",
        "127.0.0.1:0",
        "--control-bind",
        "127.0.0.1:0",
        "--broker",
        url.format(tmp_path),
        SSEHUB_SECRET=SECRET,
        SSEHUB_LOG_LEVEL="error",
    )

    assert result.returncode == 3
    assert result.stderr.count("\n") == 1 and says in result.stderr


def test_a_second_process_is_refused_in_one_line(start_hub: Callable[..., RunningHub], tmp_path: Path) -> None:
    broker = f"sqlite:///{tmp_path}/log.db"
    start_hub("--broker", broker)
    result = run(
        "--bind",
        "127.0.0.1:0",
        "--control-bind",
        "127.0.0.1:0",
        "--broker",
        broker,
        SSEHUB_SECRET=SECRET,
        SSEHUB_LOG_LEVEL="error",
    )

    assert result.returncode == 3
    assert "another process has the log" in result.stderr and result.stderr.count("\n") == 1


def test_log_shows_what_is_in_it_beside_the_hub(start_hub: Callable[..., RunningHub], tmp_path: Path) -> None:
    broker = f"sqlite:///{tmp_path}/log.db"
    hub = start_hub("--broker", broker)
    ids = [hub.emit(data=f"{number}", channel=f"c{number % 2}") for number in range(6)]

    last = run("log", "--broker", broker, "--last", "2")
    one = run("log", "--channel", "c0", SSEHUB_BROKER=broker)
    lines = [json.loads(line) for line in last.stdout.splitlines()]

    assert [(line["position"], line["data"]) for line in lines] == [(ids[4], "4"), (ids[5], "5")]
    assert lines[0]["channels"] == ["c0"] and lines[0]["time"].endswith("+00:00")
    assert [json.loads(line)["data"] for line in one.stdout.splitlines()] == ["0", "2", "4"]
    for arguments, code in ((["--broker", f"sqlite:///{tmp_path}/none.db"], 3), (["--broker", "memory://"], 2)):
        result = run("log", *arguments)
        assert result.returncode == code and result.stderr.count("\n") == 1


UNSHARE = (["unshare", "-rm"], ["unshare", "-m", "--propagation", "unchanged"])
"""For any user; for root in a chroot, where user namespaces are refused and `/` is not a mount point."""


def works(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def test_f9_a_full_disk_is_503_and_outlived(tmp_path: Path) -> None:
    """A file system of 1 MiB, mounted in a namespace of its own."""
    unshare = next((command for command in UNSHARE if works(*command, "true")), None)
    require(unshare, "unshare, or the right to mount")
    assert unshare is not None
    script = Path(__file__).parent / "full_disk.py"
    result = subprocess.run(
        [*unshare, sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=60
    )

    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["refused"] == 503 and "the disk is full" in found["why"]
    assert found["not ready"] == 503 and found["ready again"] == 200
    assert found["lost"] == 0 and found["after"] == 200
