"""The load generator in C of `make bench`, compiled and run against a hub, and against servers with faults."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from conftest import SECRET, RunningHub, require
from faulty_servers import (
    Fault,
    disconnecting,
    dropping,
    duplicating,
    faulty_server,
    scripted_server,
    splitting,
    stalling,
    swapping,
)
from ssehub import Tokens

SOURCES = Path(__file__).parent.parent / "benchmarks" / "sseload"
MARK = r"{\"ts\":{TS},\"seq\":{SEQ},\"pad\":\"{PAD:40}\"}"
EVENTS = 12


@pytest.fixture(scope="module")
def sseload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, compiled with every warning as an error."""
    compiler = shutil.which("cc")
    require(compiler, "a C compiler (cc)")
    program = tmp_path_factory.mktemp("sseload") / "sseload"
    warnings = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror")
    subprocess.run([str(compiler), "-O2", *warnings, "-o", program, *SOURCES.glob("*.c")], check=True, timeout=60)
    return program


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(
    ("options", "tokens", "target"),
    [
        pytest.param(["--rate", 500], 1, "*", id="at a rate"),
        pytest.param(["--publishers", 4], 1, "*", id="closed loop"),
        pytest.param(["--publishers", 4, "--audiences", 5], 5, "user-{AUDIENCE}", id="to single users"),
    ],
)
def test_hub_delivers_every_event(
    sseload: Path, hub: RunningHub, tmp_path: Path, options: list[object], tokens: int, target: str
) -> None:
    signer = Tokens(SECRET)
    lines = [signer.issue(f"user-{number}", ["load"], expires_at=4e9) for number in range(tokens)]
    (tmp_path / "tokens").write_text("\n".join(lines) + "\n")
    streams = ["--url", f"{hub.url}/events/", "--tokens", tmp_path / "tokens", "--subscribers", 20, "--settle", 0.1]
    events = ["--publish-url", f"{hub.control_url}/emit/", "--header", "Content-Type: application/json"]
    body = f'{{"userId":"{target}","channel":"load","data":"{MARK}"}}'

    result = run(
        sseload,
        *streams,
        *events,
        "--body",
        body,
        "--events",
        200,
        "--warmup",
        20,
        *options,
        "--server-pid",
        hub.process.pid,
    )

    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report["delivered"] == report["expected"] == 200 * 20 // tokens
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p99"] <= report["latency_ms"]["max"] < 20_000
    assert report["bytes_per_subscriber"] is not None
    assert min(report[name] for name in ("server_cpu_seconds", "deliveries_per_cpu_second", "own_cpu_share")) > 0


def test_idle_streams_show_how_often_the_server_wakes_up(sseload: Path, hub: RunningHub) -> None:
    token = Tokens(SECRET).issue("user", ["load"], expires_at=4e9)
    server = ["--url", f"{hub.url}/events/?token={token}", "--server-pid", hub.process.pid]

    result = run(sseload, *server, "--subscribers", 3, "--settle", 0.1, "--hold", 1)

    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report["connections_per_cpu_second"] > 0
    assert 0 <= report["wakeups_per_second"] < 1_000


@pytest.mark.parametrize(
    ("make_fault", "counts"),
    [
        pytest.param(lambda: dropping, {"lost": 3}, id="drops an event"),
        pytest.param(lambda: duplicating, {"duplicates": 3}, id="duplicates an event"),
        pytest.param(swapping, {"reordered": 3}, id="swaps two events"),
        pytest.param(lambda: stalling, {"lost": 3 * (EVENTS - 10)}, id="stalls"),
        pytest.param(lambda: changing, {"lost": 3, "corrupt": 3}, id="changes an event"),
        pytest.param(lambda: splitting, {}, id="splits events"),
    ],
)
def test_fault_is_counted_by_the_generator_in_c(
    sseload: Path, make_fault: Callable[[], Fault], counts: Mapping[str, int]
) -> None:
    with faulty_server(make_fault()) as url:
        streams = [
            "--url",
            f"{url}/events/",
            "--subscribers",
            3,
            "--events",
            EVENTS,
            "--patience",
            0.5,
            "--settle",
            0.1,
        ]
        result = run(sseload, *streams, "--publish-url", f"{url}/emit/", "--body", f'{{"data":"{MARK}"}}')

    report = json.loads(result.stdout)
    names = ("lost", "duplicates", "reordered", "corrupt", "closed")
    assert {name: report[name] for name in names} == {**dict.fromkeys(names, 0), **counts}
    assert result.returncode == (1 if counts else 0)


def test_closed_streams_are_counted(sseload: Path) -> None:
    with scripted_server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0\r\n\r\n") as url:
        result = run(sseload, "--url", f"{url}/", "--hold", 0.3)

    assert json.loads(result.stdout)["closed"] == 1
    assert result.returncode == 1


def test_idle_publisher_connects_again(sseload: Path) -> None:
    """A publisher that no event needs is idle for longer than the server keeps its connection."""
    with faulty_server(keep_alive_seconds=0.2) as url:
        streams = ["--url", f"{url}/events/", "--events", 4, "--rate", 5, "--publishers", 2]
        result = run(sseload, *streams, "--publish-url", f"{url}/emit/", "--body", f'{{"data":"{MARK}"}}')

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["delivered"] == 4


def test_closed_publisher_is_one_sentence(sseload: Path) -> None:
    with faulty_server(disconnecting) as url:
        streams = ["--url", f"{url}/events/", "--events", EVENTS]
        result = run(sseload, *streams, "--publish-url", f"{url}/emit/", "--body", f'{{"data":"{MARK}"}}')

    assert (result.returncode, result.stderr) == (2, "sseload: the server closed a publisher's connection\n")


def changing(number: int, frame: bytes) -> list[bytes]:
    """A fault: one event has another due time than the one that was sent."""
    return [frame.replace(b'"ts":', b'"ts":1') if number == 7 else frame]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--url", "http://192.0.2.1:80/"],
            "invalid URL 'http://192.0.2.1:80/': expected an address that begins with 127.",
        ),
        (["--url", "https://127.0.0.1"], "invalid URL 'https://127.0.0.1': expected http://127.0.0.1:PORT/PATH"),
        (["--subscribers", "many"], "invalid --subscribers 'many': expected a number from 0 on"),
        (["--publishers", "0"], "invalid --publishers '0': expected a number from 1 on"),
        ([], "--url is missing: see --help"),
        (["--url", "http://127.0.0.1:1/", "--events", "1"], "--publish-url or --body is missing: see --help"),
        (["--url", "http://127.0.0.1:1/"], "cannot connect to 127.0.0.1:1: Connection refused"),
        (["--url", "http://127.0.0.1:1/", "--server-pid", "4194304"], "--server-pid 4194304: no such process"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_sentence(sseload: Path, arguments: list[str], message: str) -> None:
    result = run(sseload, *arguments)

    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"sseload: {message}\n")


def test_refused_stream_is_one_sentence(sseload: Path, hub: RunningHub) -> None:
    result = run(sseload, "--url", f"{hub.url}/events/")

    assert (result.returncode, result.stderr) == (2, "sseload: a stream was refused: HTTP/1.1 401 Unauthorized\n")


def test_help_has_every_option(sseload: Path) -> None:
    source = (SOURCES / "options.c").read_text()
    options = [line.split('"')[1] for line in source.splitlines() if "_argument, NULL" in line]

    result = run(sseload, "--help")

    assert result.returncode == 0
    assert len(options) > 10
    assert [option for option in options if option != "help" and f"  --{option} " not in result.stdout] == []


def test_wrk_script_publishes_and_counts_refusals(hub: RunningHub, tmp_path: Path) -> None:
    require(shutil.which("wrk"), "wrk")
    body = tmp_path / "body"
    script, url = SOURCES.parent / "post.lua", f"{hub.control_url}/emit/"
    command = ["wrk", "-t1", "-c2", "-d1s", "-s", str(script), url, "--", str(body), "Content-Type: application/json"]

    reports = []
    for text in ('{"userId": "*", "channel": "wrk", "data": "x"}', '{"userId": "*", "data": "x"}'):
        body.write_text(text)
        result = subprocess.run(command, capture_output=True, text=True, timeout=30)
        reports.append(json.loads(result.stdout.splitlines()[-1]))

    taken, refused = reports
    assert taken["requests"] > 0 and taken["failed"] == 0
    assert refused["requests"] == refused["failed"] > 0
    assert 0.9 < taken["seconds"] < 10
