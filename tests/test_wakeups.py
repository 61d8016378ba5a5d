"""An idle hub sleeps: how often its process wakes up when nothing happens, on every broker and under another server."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from conftest import RunningHub, StartHub, report
from crowd import crowds
from redis_servers import RedisServer
from servers import UVICORN, ServedHub
from streams import listen
from wakeups import wakeups_per_second

pytest_plugins = ["redis_fixtures"]

MOST = 5.0
"""Wake-ups a second of an idle hub without streams, at most."""
UVICORN_TICKS = 10.0
"""How often uvicorn's own server wakes up, whatever it serves."""
SETTLE_SECONDS = 1.5


@pytest.mark.alone
@pytest.mark.parametrize("broker", ["memory", "sqlite"])
def test_f22_idle_hub_hardly_wakes_up(broker: str, tmp_path: Path, start_hub: StartHub) -> None:
    url = "memory://" if broker == "memory" else f"sqlite:///{tmp_path}/log.db"
    hub = start_hub("--broker", url)
    use_and_leave(hub)

    count = wakeups_per_second(hub.process.pid)
    report(f"{broker}: {count:.1f} wake-ups a second")

    assert count <= MOST


@pytest.mark.alone
def test_f22_idle_hub_with_redis_hardly_wakes_up(valkey: RedisServer, start_hub: StartHub) -> None:
    hub = start_hub("--broker", valkey.url)
    use_and_leave(hub)

    count = wakeups_per_second(hub.process.pid)
    report(f"redis: {count:.1f} wake-ups a second")

    assert count <= MOST


@pytest.mark.alone
def test_f22_idle_app_wakes_up_hardly_more_often_than_the_server_it_runs_under() -> None:
    with ExitStack() as stack:
        hub = ServedHub(UVICORN)
        stack.callback(hub.stop)
        hub.wait_until_ready()
        time.sleep(SETTLE_SECONDS)

        count = wakeups_per_second(hub.process.pid)
    report(f"uvicorn asgi:client_app: {count:.1f} wake-ups a second")

    assert count <= UVICORN_TICKS + MOST


@pytest.mark.alone
@pytest.mark.soak
@pytest.mark.only_soak
@pytest.mark.timeout(300)
def test_f22_idle_hub_wakes_up_for_heartbeats_only_however_many_streams_it_has(start_hub: StartHub) -> None:
    hub = start_hub()
    with crowds(hub, 5_000, 5_000):
        time.sleep(20)  # a heartbeat after the last stream was opened

        count = wakeups_per_second(hub.process.pid, 30)
    report(f"10,000 streams: {count:.1f} wake-ups a second")

    assert count <= 4 + MOST


def use_and_leave(hub: RunningHub) -> None:
    """Let a hub do what hubs do, so that whatever it needs for that exists, and leave it alone."""
    stream = listen(hub.port, hub.token())
    hub.emit(data="last")
    stream.read_event("last")
    stream.close()
    hub.wait_for("ssehub_subscribers", 0)
    run = {"userId": "alex", "channel": "chat", "finish": "done"}
    answer = httpx.post(f"{hub.control_url}/runs/answer", params=run, json=[{"data": "last"}])
    assert answer.status_code == 200, answer.text
    time.sleep(SETTLE_SECONDS)
