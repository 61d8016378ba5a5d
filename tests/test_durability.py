"""Hubs that are killed, clients that are disconnected, and what clients receive when they reconnect."""

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

from commands import run
from conftest import SECRET, RunningHub, free_port, report, wait_until
from small_disk import run_on_small_disk
from ssehub.subscription import MessageReader
from streams import RawStream, get, listen, unchunked

SOAK = bool(os.environ.get("SOAK"))
ADDRESSES = ("--bind", "127.0.0.1:0", "--control-bind", "127.0.0.1:0")


class Client:
    """A client that is disconnected at random bytes and reconnects with its last event id, as a browser would."""

    def __init__(self, port: int, token: str, chance: random.Random) -> None:
        self._port = port
        self._token = token
        self._chance = chance
        self._stop = threading.Event()
        self.last_id = ""
        self.received: list[str] = []
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
                self.received.append(message.data)
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
    """Return the complete frames in a response that may end anywhere."""
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
def test_d1_client_disconnected_at_random_bytes_receives_the_exact_sequence(
    kind: str, start_hub: Callable[..., RunningHub], tmp_path: Path
) -> None:
    broker = "memory://" if kind == "memory" else f"sqlite:///{tmp_path}/log.db"
    hub = start_hub("--broker", broker, "--heartbeat-seconds", "0.2")
    connections = 0
    for first in range(0, 200 if SOAK else 20, 10):
        connections += cut_and_compare(hub, range(first, first + 10))
    report(f"D1 {kind}: {first + 10} seeds, {connections} connections, nothing missed")


def cut_and_compare(hub: RunningHub, seeds: range) -> int:
    """Run a client for each seed, on two channels of its own; return the number of connections.

    In turn, its token grants them by their names, by a pattern, and one of them by a pattern.
    """
    chances = {seed: random.Random(seed) for seed in seeds}
    expected: dict[int, list[str]] = {seed: [] for seed in seeds}
    clients = {}
    with httpx.Client() as http, contextlib.ExitStack() as stack:
        for seed, chance in chances.items():
            busy, quiet = f"{seed}.busy", f"{seed}.quiet"
            grants = [
                {"channels": [busy, quiet]},
                {"patterns": [f"{seed}.*"]},
                {"channels": [busy], "patterns": [f"{seed}.q*"]},
            ]
            claims = {"userId": "alex", **grants[seed % 3]}
            token = http.post(f"{hub.control_url}/token/", json=claims).raise_for_status().json()["token"]
            clients[seed] = stack.enter_context(Client(hub.port, token, chance))
        wait_until(lambda: all(client.last_id for client in clients.values()))
        for number in range(40):
            batch = [
                event
                for seed, chance in chances.items()
                for event in random_events(seed, chance, number, expected[seed])
            ]
            http.post(f"{hub.control_url}/emit/", json=batch).raise_for_status()
            time.sleep(0.03)
        wait_until(lambda: all(clients[seed].received[-1:] == expected[seed][-1:] for seed in seeds), 30)
    for seed, client in clients.items():
        assert client.resets == [], f"seed {seed}"
        assert without_repetitions(client.received) == expected[seed], f"seed {seed}"
    return sum(client.connections for client in clients.values())


def random_events(seed: int, chance: random.Random, number: int, expected: list[str]) -> list[dict[str, str]]:
    """Return an event of a random kind and one for another user; append the former's data to `expected`.

    The event is on the busy channel or the quiet one, has an id of its own or not, and one block or several.
    """
    event = {"userId": "*", "channel": f"{seed}.quiet" if chance.random() < 0.1 else f"{seed}.busy"}
    kind = chance.randrange(4)
    if kind < 2:
        event |= {"data": f"{number}"} | ({"id": f"mine-{number}"} if kind else {})
        expected.append(f"{number}")
    else:
        own = f"id: inner-{number}\n" if kind == 2 else ""
        last = f"id: last-{number}\n" if chance.random() < 0.5 else ""
        event["payload"] = f"{own}data: {number}a\n\ndata: {number}b\n\n{last}data: {number}c\n\n"
        expected += [f"{number}{block}" for block in "abc"]
    return [event, {"userId": "another user", "channel": f"{seed}.busy", "data": "not for alex"}]


def without_repetitions(received: list[str]) -> list[str]:
    """Return `received` without blocks sent again because the client was disconnected inside their payload."""
    found: list[str] = []
    for data in received:
        if data[-1] in "abc" and data in found:
            assert found[-1][:-1] == data[:-1], "only the last payload may be repeated"
        else:
            found.append(data)
    return found


@pytest.mark.soak
def test_d10_subscribers_that_are_disconnected_continually_miss_nothing(start_hub: Callable[..., RunningHub]) -> None:
    count, seconds = (200, 10) if SOAK else (40, 3)
    hub = start_hub()
    script = (Path(__file__).parent / "kicked.py").as_posix()
    command = [sys.executable, script, str(hub.port), hub.token(), str(count), str(seconds)]
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
    result = json.loads(out)
    report(f"D10: {result['connections']} connections, {result['received']} received of {count} x {sent}")

    assert result == {"wrong": 0, "resets": 0, "received": count * sent, "connections": result["connections"]}
    assert result["connections"] > count * 3


def kill(hub: RunningHub) -> None:
    hub.signal(signal.SIGKILL)
    hub.wait()


@pytest.mark.soak
def test_kill_9_at_any_moment_loses_nothing_that_was_answered(
    start_hub: Callable[..., RunningHub], tmp_path: Path
) -> None:
    rounds = 50 if SOAK else 4
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
    stream.read_event(answered[-1][1], 30)
    stream.close()
    received = [(event.id, event.data) for event in stream.events]
    report(f"kill -9: {rounds} times, {len(answered)} events answered, {len(received)} in the log")

    assert len(set(received)) == len(received)
    missing = set(answered) - set(received)
    assert not missing
    indices = {pair: index for index, pair in enumerate(received)}
    order = [indices[pair] for pair in answered]
    assert order == sorted(order)


def test_client_resumes_after_a_restart_on_sqlite_and_is_reset_on_memory(
    start_hub: Callable[..., RunningHub], tmp_path: Path
) -> None:
    for broker, expected in (
        (f"sqlite:///{tmp_path}/log.db", ["2", "3"]),
        ("memory://", ['{"reason":"log-lost"}', "3"]),
    ):
        port = free_port()
        hub = start_hub("--broker", broker, "--bind", f"127.0.0.1:{port}")
        token, first = hub.token(), hub.emit(data="1")
        hub.emit(data="2")
        kill(hub)
        hub = start_hub("--broker", broker, "--bind", f"127.0.0.1:{port}")
        stream = listen(port, token, f"Last-Event-ID: {first}")
        hub.emit(data="3")
        stream.read_event("3")
        stream.close()
        assert [event.data for event in stream.events] == expected


def test_f13_clock_set_back_an_hour_across_a_restart_keeps_ids_increasing_and_clients_resuming(
    start_hub: Callable[..., RunningHub], tmp_path: Path
) -> None:
    faketime = "import time, runpy, sys; real = time.time; time.time = lambda: real() - 3600; " + (
        "sys.argv[0] = 'ssehub'; runpy.run_module('ssehub', run_name='__main__', alter_sys=True)"
    )
    broker = f"sqlite:///{tmp_path}/log.db"
    hub = start_hub("--broker", broker)
    first = hub.emit(data="1")
    hub.emit(data="2")
    kill(hub)
    hub = start_hub("--broker", broker, code=faketime)
    stream = listen(hub.port, hub.token("a"), f"Last-Event-ID: {first}")
    third = hub.emit(data="3")
    stream.read_event("3")
    stream.close()

    assert [event.data for event in stream.events] == ["2", "3"]
    assert int(third.partition("-")[0]) >= int(first.partition("-")[0])


BAD_PATHS = {
    "directory": ("sqlite:///{0}", "it is a directory"),
    "no-directory": ("sqlite:///{0}/nowhere/log.db", "No such file or directory"),
    "proc": ("sqlite:////proc/log.db", "cannot open the log"),
    "not-a-log": ("sqlite:////etc/passwd", "is damaged"),
}


@pytest.mark.parametrize("kind", BAD_PATHS)
def test_log_that_cannot_be_used_is_one_line_and_exit_code_3(kind: str, tmp_path: Path) -> None:
    url, expected = BAD_PATHS[kind]

    result = run(*ADDRESSES, "--broker", url.format(tmp_path), SSEHUB_SECRET=SECRET, SSEHUB_LOG_LEVEL="error")

    assert result.returncode == 3
    assert result.stderr.count("\n") == 1 and expected in result.stderr


def test_second_process_is_refused_with_one_line(start_hub: Callable[..., RunningHub], tmp_path: Path) -> None:
    broker = f"sqlite:///{tmp_path}/log.db"
    start_hub("--broker", broker)

    result = run(*ADDRESSES, "--broker", broker, SSEHUB_SECRET=SECRET, SSEHUB_LOG_LEVEL="error")

    assert result.returncode == 3
    assert "another process is using the log" in result.stderr and result.stderr.count("\n") == 1


def test_log_command_prints_the_log_of_a_running_hub(start_hub: Callable[..., RunningHub], tmp_path: Path) -> None:
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


def test_f9_full_disk_is_503_until_there_is_space(tmp_path: Path) -> None:
    """The disk is a file system of 1 MiB in a mount namespace of the test."""
    found = run_on_small_disk("full_disk.py", tmp_path)

    assert found["refused"] == 503 and "the disk is full" in found["why"]
    assert found["not ready"] == 503 and found["ready again"] == 200
    assert found["lost"] == 0 and found["after"] == 200
