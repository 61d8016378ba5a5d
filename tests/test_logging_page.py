"""The lines of log that docs/logging.md shows are those of real hubs."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from conftest import CONTROL_KEY, SECRET, RunningHub, StartHub, wait_until
from redis_servers import RedisServer
from ssehub import Tokens
from ssehub.loglimit import BURST
from ssehub.server.logs import JsonLineFormatter
from streams import RawStream, listen

PAGE = (Path(__file__).parent.parent / "docs" / "logging.md").read_text()
BLOCKS = re.findall(r"((?:^    .*\n)+)", PAGE, re.MULTILINE)
EXAMPLES = [line.strip() for block in BLOCKS for line in block.splitlines() if re.match(r"    (\d{4}-|\{)", line)]
_NUMBERS = re.compile(r"\d+-\d+\.\w+|\d+(?:[.,-]\d+)*")


def shape(line: str) -> str:
    """Return a line without what differs between two hubs: times, numbers, positions, and the folder of files."""
    return _NUMBERS.sub("N", re.sub(r"(?:/[\w.+-]+)*/(?=\w+\.(?:toml|txt))", "FOLDER/", line))


def written(hub: RunningHub, text: str) -> bool:
    return text in hub.log


def log_of_a_hub(start_hub: StartHub, folder: Path) -> str:
    """Return the log of a hub that has met everything that the page shows of one process."""
    config, secrets = folder / "hub.toml", folder / "secrets.txt"
    config.write_text('log_level = "info"\n')
    secrets.write_text(SECRET)
    hub = start_hub(
        *("--config", str(config), "--secret-file", str(secrets), "--max-streams-per-user", "2"),
        *("--user-limit-policy", "refuse"),
        env={"SSEHUB_SECRET": None, "SSEHUB_CONTROL_KEY": CONTROL_KEY},
    )
    key = {"Authorization": f"Bearer {CONTROL_KEY}"}
    now = time.time()
    token = Tokens(SECRET).issue("alex", ["chat"], expires_at=now + 3_600)
    expired = Tokens(SECRET).issue("alex", ["chat"], expires_at=now - 60)
    events, agent = f"{hub.url}/events/", {"User-Agent": "page/1.0"}

    with httpx.stream("GET", events, params={"token": token}, headers=agent) as stream:
        lines = stream.iter_lines()
        next(lines)
        event = {"userId": "*", "channel": "chat", "data": "hello"}
        httpx.post(f"{hub.control_url}/emit/", json=event, headers=key).raise_for_status()
        next(line for line in lines if line == "data: hello")
    wait_until(lambda: written(hub, "stream ended"))
    httpx.get(events, params={"token": expired}, headers=agent)
    httpx.get(events, params={"token": token, "channel": "orders"}, headers=agent)
    httpx.post(f"{hub.control_url}/emit/", json={"chanel": "x"}, headers={**key, **agent})
    httpx.post(f"{hub.control_url}/emit/", json={}, headers=agent)
    RawStream(hub.port, b"nonsense\r\n\r\n").read_to_end()
    httpx.post(f"{hub.control_url}/disconnect/", json={"userId": "anna"}, headers=key).raise_for_status()
    httpx.post(f"{hub.control_url}/revoke/", json={"userId": "anna"}, headers=key).raise_for_status()

    for content in ('log_level = "info"\ndrain_seconds = 5\n', 'log_level = "loud"\n'):
        config.write_text(content)
        expected = "hub.toml has been read again" if "drain" in content else "hub.toml: line 1"
        hub.signal(signal.SIGHUP)
        wait_until(partial(written, hub, expected))
    secrets.write_text(f"{SECRET} and another\n{SECRET}\n")
    hub.signal(signal.SIGHUP)
    wait_until(lambda: written(hub, "secrets.txt has been read again: "))

    held = [listen(hub.port, token) for _ in range(2)]
    with contextlib.suppress(httpx.RemoteProtocolError):  # it is cut off
        httpx.get(events, params={"token": token}, headers=agent)
    with httpx.Client() as client:
        for _ in range(BURST + 100):
            client.get(events, params={"token": "nonsense"})
    hub.signal()
    hub.wait()
    log = hub.log
    for one in held:
        one.close()
    return log


def log_of_workers(start_hub: StartHub, redis: RedisServer) -> str:
    hub = start_hub("--broker", redis.url, "--workers", "2")
    wait_until(lambda: hub.log.count("has started") == 2)
    process = re.search(r"worker 1 has started, process (\d+)", hub.log)
    assert process
    os.kill(int(process[1]), signal.SIGKILL)
    wait_until(lambda: hub.log.count("has started") == 3)
    token = hub.token()
    while "[worker 1] INFO ssehub.hub: stream opened" not in hub.log:  # each stream is given to a worker at random
        listen(hub.port, token).close()
    return hub.log


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    running = RedisServer("valkey", tmp_path_factory.mktemp("valkey"))
    yield running
    running.kill()


def test_every_line_of_the_page_is_written_by_a_hub(start_hub: StartHub, redis: RedisServer, tmp_path: Path) -> None:
    text = log_of_a_hub(start_hub, tmp_path) + log_of_workers(start_hub, redis)

    real = {shape(line) for line in text.splitlines()}
    assert [line for line in EXAMPLES if line[0] != "{" and shape(line) not in real] == []
    assert len(EXAMPLES) > 20


def test_object_of_the_page_is_what_its_line_of_text_says() -> None:
    (shown,) = [json.loads(line) for line in EXAMPLES if line[0] == "{"]
    rows = re.findall(r"^\| `(\w+)` \| ", PAGE.partition("## Levels")[0], re.MULTILINE)

    record = logging.LogRecord(shown["logger"], logging.INFO, "", 0, shown["message"], None, None)
    written = json.loads(JsonLineFormatter(1).format(record))
    assert f"INFO {shown['logger']}: {shown['message']}" in PAGE
    assert list(shown) == [name for name in written if name != "worker"]
    assert [*written, "exception"] == rows
