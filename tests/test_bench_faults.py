"""The load test against faulty servers: each fault is found in time, and reported in one sentence."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Mapping

import pytest

from commands import run_bench
from conftest import free_port
from faulty_servers import (
    Fault,
    disconnecting,
    dropping,
    duplicating,
    faulty_server,
    scripted_server,
    sleeping,
    splitting,
    stalling,
    swapping,
)

EVENTS = 30
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("make_fault", "counts"),
    [
        pytest.param(lambda: dropping, {"lost": 3, "gaps": 3}, id="drops an event"),
        pytest.param(lambda: duplicating, {"duplicates": 3}, id="duplicates an event"),
        pytest.param(swapping, {"reordered": 3}, id="swaps two events"),
        pytest.param(lambda: stalling, {"lost": 3 * (EVENTS - 10), "gaps": 0}, id="stalls"),
        pytest.param(lambda: splitting, {}, id="splits events"),
    ],
)
def test_fault_is_counted(make_fault: Callable[[], Fault], counts: Mapping[str, int]) -> None:
    with faulty_server(make_fault()) as url:
        result = run_bench(url, events=EVENTS)

    report = json.loads(result.stdout)
    names = ("lost", "gaps", "duplicates", "reordered")
    assert {name: report[name] for name in names} == {**dict.fromkeys(names, 0), **counts}
    assert result.returncode == (1 if counts else 0)
    assert "Traceback" not in result.stderr


def test_closed_stream_is_reported() -> None:
    with faulty_server(disconnecting) as url:
        result = run_bench(url)

    assert result.returncode == 1
    assert json.loads(result.stdout)["problem"] is not None


@pytest.mark.parametrize(
    ("statuses", "message"),
    [
        ({"/events/": 401}, "connecting: 3 of 3 subscribers failed: 401 Unauthorized"),
        ({"/token/": 401}, r"the hub refused /token/: 401 Unauthorized: .*"),
        ({"/token/": 503}, r"the hub refused /token/: 503 .*"),
    ],
)
def test_refusal_is_one_sentence(statuses: Mapping[str, int], message: str) -> None:
    with faulty_server(statuses=statuses) as url:
        result = run_bench(url)

    assert result.returncode == 1
    assert re.fullmatch(f"ssehub: {message}\n", result.stderr)


def test_refused_event_is_reported() -> None:
    with faulty_server(statuses={"/emit/": 503}) as url:
        result = run_bench(url)

    assert result.returncode == 1
    assert "the hub refused /emit/: 503" in json.loads(result.stdout)["problem"]


def test_failed_connection_and_invalid_option_are_one_sentence() -> None:
    closed = f"http://127.0.0.1:{free_port()}"

    results = [
        run_bench(closed),
        run_bench(closed, SSEHUB_TOKEN="t"),
        run_bench("ftp://127.0.0.1"),
        run_bench(closed, "--batch", "0"),
    ]

    assert [result.returncode for result in results] == [1, 1, 2, 2]
    assert re.fullmatch(r"ssehub: cannot connect to http://\S+: .*\n", results[0].stderr)
    assert re.fullmatch(r"ssehub: connecting: \d of 3 subscribers failed: .*refused.*\n", results[1].stderr)
    assert "invalid URL 'ftp://127.0.0.1': expected one such as" in results[2].stderr
    assert all(result.stderr.count("\n") == 1 for result in results[:3])


def test_chunked_response_is_read() -> None:
    with faulty_server(is_chunked=True) as url:
        result = run_bench(url, events=EVENTS)

    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(result.stdout)["delivered"] == 3 * EVENTS


def test_chunked_refusal_is_one_sentence() -> None:
    with faulty_server(statuses={"/token/": 503}, is_chunked=True) as url:
        result = run_bench(url)

    assert result.returncode == 1
    assert re.fullmatch(r"ssehub: the hub refused /token/: 503 .*\{\"token\": \"t\"\}\n", result.stderr)


@pytest.mark.parametrize(
    ("parts", "closes", "message"),
    [
        pytest.param(
            (OK + b"Content-Le", b"ngth: 2\r\n\r", b"\n{", b"}"),
            False,
            "unexpected response to /token/: b'{}'",
            id="response in four reads",
        ),
        pytest.param(
            (OK + b"Content-Length: 20\r\n\r\n{}",), False, r"no token within 0\.7 s", id="part of a body, then silence"
        ),
        pytest.param(
            (OK + b"Content-Length: 20\r\n\r\n{}",),
            True,
            "closed a publisher's connection without a response",
            id="part of a body, then the end",
        ),
        pytest.param(
            (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",),
            False,
            "the response to /token/ is not valid HTTP",
            id="chunk without a size",
        ),
        pytest.param(
            (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}",),
            True,
            "closed a publisher's connection without a response",
            id="part of a chunk, then the end",
        ),
        pytest.param((OK + b"\r\n",), False, "unexpected response to /token/: b''", id="no body"),
        pytest.param(
            (b"220 mail.example ESMTP\r\n\r\n",), False, "the response to /token/ is not valid HTTP", id="not HTTP"
        ),
        pytest.param((b"220 mail.example ESMTP\r\n",), False, r"no token within 0\.7 s", id="not HTTP, then silence"),
        pytest.param((b"x" * 100_000,), False, "the response to /token/ is not valid HTTP", id="endless head"),
        pytest.param((), True, "closed a publisher's connection without a response", id="nothing"),
    ],
)
def test_server_that_is_not_a_hub_is_reported_in_one_sentence(
    parts: tuple[bytes, ...], closes: bool, message: str
) -> None:
    with scripted_server(*parts, closes=closes) as url:
        result = run_bench(url)

    assert result.returncode == 1
    assert re.fullmatch(rf"ssehub: [^\n]*{message}\n", result.stderr)


def test_options_that_exclude_each_other_are_one_sentence() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()

    with faulty_server() as url:
        no_process = run_bench(url, "--server-pid", str(ended.pid))
        two_users = run_bench(url, "--users", "2", SSEHUB_TOKEN="t")
        two_channels = run_bench(url, "--channels", "2", SSEHUB_TOKEN="t")

    assert [result.returncode for result in (no_process, two_users, two_channels)] == [2, 2, 2]
    assert no_process.stderr == f"ssehub: --server-pid {ended.pid}: no such process on this machine\n"
    assert "a token is for one user on one channel" in two_users.stderr
    assert "a token is for one user on one channel" in two_channels.stderr


def test_server_that_never_responds_is_given_up() -> None:
    with faulty_server(sleeping) as url:
        began = time.monotonic()
        result = run_bench(url)

    assert result.returncode == 1
    assert "did not respond to a publisher in time" in json.loads(result.stdout)["problem"]
    assert time.monotonic() - began < 8
