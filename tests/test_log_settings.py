"""`log_level` and `log_format` are read again while hubs run: from real processes, by SIGHUP and by themselves."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import CONTROL_KEY, RunningHub, StartHub, wait_until
from redis_servers import RedisServer
from servers import UVICORN, ServedHub
from streams import listen


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "hub.toml"
    path.write_text("")
    return path


def replace(path: Path, content: str) -> None:
    """Write a file as a careful editor does, so that nobody reads half of it."""
    beside = path.with_suffix(".new")
    beside.write_text(content)
    beside.rename(path)


def sighup(hub: RunningHub, times: int = 1) -> str:
    """Let the hub read its config file again; return what it has logged since, when `times` processes have."""
    before = len(hub.log)
    hub.signal(signal.SIGHUP)
    wait_until(lambda: len(re.findall(r"config \S+( has been read again|.*stays in use)", hub.log[before:])) == times)
    return hub.log[before:]


def is_logged(hub: RunningHub, text: str, act: Callable[[], object]) -> bool:
    """Return True if `act` is followed by a line with `text`. That the hub has read its file again ends the wait."""
    before = len(hub.log)
    act()
    hub.signal(signal.SIGHUP)
    wait_until(lambda: "has been read again: no change" in hub.log[before:])
    return text in hub.log[before:]


def test_f7_sighup_changes_the_level_and_the_format_of_the_log(start_hub: StartHub, file: Path) -> None:
    hub = start_hub("--config", str(file))

    def open_stream() -> None:
        listen(hub.port, hub.token()).close()
        hub.wait_for("ssehub_subscribers", 0)

    assert is_logged(hub, "INFO ssehub.hub: stream opened", open_stream)
    replace(file, 'log_format = "JSON"')
    assert "hub.toml has been read again: log_level is info, log_format is json" in sighup(hub)
    assert is_logged(hub, '"logger": "ssehub.hub", "message": "stream opened', open_stream)
    replace(file, 'log_level = "warning"')
    hub.signal(signal.SIGHUP)
    wait_until(lambda: re.search(r"^\{.*SIGHUP.*\n\Z", hub.log, re.MULTILINE))
    wait_until(lambda: opens_without_a_line(hub, open_stream))
    replace(file, 'log_level = "Debug"')
    assert "log_level is debug, log_format is text" in sighup(hub)
    ask_to_upgrade(hub)
    wait_until(lambda: " DEBUG ssehub.http: a client asked to upgrade" in hub.log)


def ask_to_upgrade(hub: RunningHub) -> None:
    """Send a request that leaves a line at level debug."""
    httpx.get(f"{hub.url}/", headers={"Connection": "Upgrade", "Upgrade": "other"})


def opens_without_a_line(hub: RunningHub, open_stream: Callable[[], None]) -> bool:
    before = len(hub.log)
    open_stream()
    return len(hub.log) == before


def test_f7_command_line_and_environment_count_before_a_config_file_that_is_read_again(
    start_hub: StartHub, file: Path
) -> None:
    hub = start_hub("--config", str(file), "--log-level", "info", env={"SSEHUB_LOG_FORMAT": "text"})

    replace(file, 'log_level = "debug"\nlog_format = "json"')

    assert "log_level is info, log_format is text" in sighup(hub)


def test_f7_changes_of_other_settings_are_named_and_need_a_restart(start_hub: StartHub, file: Path) -> None:
    file.write_text('drain_seconds = 5\nlog_level = "info"')
    hub = start_hub("--config", str(file))

    replace(file, f'log_level = "debug"\ngrace_seconds = 7\ncontrol_key = "{CONTROL_KEY}"')
    logged = sighup(hub)

    changed = "changed in the config file, but not in use before a restart: control_key, drain_seconds, grace_seconds"
    assert f"WARNING ssehub.server: {changed}\n" in logged
    assert httpx.get(f"{hub.control_url}/metrics").status_code == 200  # no key is required yet


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param('log_level = "debug"\nlog_format = xml', "Invalid value (at line 2, column 14)", id="syntax"),
        pytest.param('# level\nlog_level = "loud"', "line 2: log_level 'loud': must be 'debug'", id="value"),
        pytest.param(
            'log_level = "debug"\nlog_fromat = 5', "line 2: unknown key log_fromat: did you mean log_format?", id="key"
        ),
        pytest.param('log_level = "debug"\ngrace_seconds = 0', "line 2: grace_seconds 0: must be greater", id="bound"),
        pytest.param(None, "can't be read: No such file or directory", id="missing"),
    ],
)
def test_f7_config_file_that_cannot_be_used_changes_nothing_and_one_line_says_why(
    start_hub: StartHub, file: Path, content: str | None, problem: str
) -> None:
    hub = start_hub("--config", str(file))
    assert hub.metric('ssehub_reload_failures_total{file="config"}') == 0

    if content is None:
        file.unlink()
    else:
        replace(file, content)
    logged = sighup(hub)

    (line,) = [line for line in logged.splitlines() if "config" in line and "SIGHUP" not in line]
    assert f"ERROR ssehub.watched: config {file}" in line and problem in line
    assert line.endswith("; what was read before stays in use")
    assert hub.metric('ssehub_reload_failures_total{file="config"}') == 1
    assert hub.metric('ssehub_reload_failed{file="config"}') == 1
    listen(hub.port, hub.token()).close()
    wait_until(lambda: "INFO ssehub.hub: stream ended" in hub.log)
    assert "DEBUG" not in hub.log
    replace(file, "")
    assert "has been read again: no change" in sighup(hub)
    assert hub.metric('ssehub_reload_failed{file="config"}') == 0


def test_f7_config_that_comes_from_a_pipe_is_read_once(start_hub: StartHub) -> None:
    script = 'exec "$@" --config <(echo log_level=\\"debug\\")'
    hub = start_hub(prefix=("bash", "-c", script, "bash"))

    hub.signal(signal.SIGHUP)
    wait_until(lambda: "SIGHUP" in hub.log)

    assert hub.emit(data="goes on")
    assert "config" not in hub.log.partition("SIGHUP: ")[2].partition("\n")[2]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    running = RedisServer("valkey", tmp_path_factory.mktemp("valkey"))
    yield running
    running.kill()


def test_f7_sighup_changes_the_log_of_all_workers_and_one_that_replaces_another_begins_with_it(
    start_hub: StartHub, redis: RedisServer, file: Path
) -> None:
    hub = start_hub("--broker", redis.url, "--workers", "2", "--config", str(file))
    wait_until(lambda: hub.log.count("has started") == 2)
    workers = [int(found) for found in re.findall(r"has started, process (\d+)", hub.log)]

    replace(file, 'log_format = "json"\nlog_level = "debug"')
    logged = sighup(hub, 3)
    replace(file, "broken")
    os.kill(workers[1], signal.SIGKILL)
    wait_until(lambda: hub.log.count("has started") == 3)

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in hub.log.splitlines() if line.startswith("{")]

    changed = [
        line for line in map(json.loads, re.findall(r"\{.*", logged)) if "has been read again" in line["message"]
    ]
    assert {line["process"] for line in changed} == {hub.process.pid, *workers}
    assert sorted(line.get("worker", "") for line in changed) == ["", "0", "1"]
    for _ in range(20):  # each is answered by one of the workers at random
        ask_to_upgrade(hub)
    wait_until(lambda: len({line["process"] for line in lines() if line["level"] == "DEBUG"}) == 2)


def test_f7_app_under_another_server_reads_its_config_file_again_by_itself(file: Path) -> None:
    hub = ServedHub(UVICORN, SSEHUB_CONFIG=str(file))
    try:
        hub.wait_until_ready()
        replace(file, 'log_format = "json"')

        wait_until(lambda: '"message": "config ' in hub.log, 20)
        listen(hub.port, hub.token()).close()
        wait_until(lambda: '"message": "stream ended' in hub.log)
    finally:
        hub.stop()
