"""Clients of the field come back by themselves: Chromium, the Yaffle polyfill, npm eventsource, httpx-sse in a loop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from httpx_sse import connect_sse
from playwright.sync_api import Browser, Page

from apache import NODE_MODULES
from conftest import RunningHub, free_port, require, wait_until
from proxy import Proxy
from ssehub import Publisher

pytestmark = pytest.mark.e2e
POLYFILL = NODE_MODULES / "event-source-polyfill" / "src" / "eventsource.min.js"
NODE = Path(sys.executable).parent / "node"
LISTEN = Path(__file__).parent / "e2e" / "reconnect.mjs"
FOR_PAGES = ("--cors-origins", "*", "--retry-milliseconds", "300")
OPEN = """([name, url, token]) => {
  window.had = window.had || {};
  const had = window.had[name] = [];
  const source = name === "native"
    ? new EventSource(`${url}?token=${token}`)
    : new EventSourcePolyfill(url, {headers: {Authorization: `Bearer ${token}`}});
  source.addEventListener("message", event => had.push(event.data));
  source.addEventListener("stream-reset", event => had.push("reset " + JSON.parse(event.data).reason));
  source.addEventListener("open", () => { window.opened = (window.opened || 0) + 1; });
}"""


class Reader(threading.Thread):
    """httpx-sse in a loop of its own."""

    def __init__(self, url: str, token: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"}
        self._stop = threading.Event()
        self.had: list[str] = []
        self.last_id = ""

    def run(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(httpx.TransportError):
                self._listen()
            time.sleep(0.1)

    def _listen(self) -> None:
        headers = self._headers | ({"Last-Event-ID": self.last_id} if self.last_id else {})
        with httpx.Client(timeout=30) as http, connect_sse(http, "GET", self._url, headers=headers) as source:
            for event in source.iter_sse():
                self.last_id = event.id
                if event.event == "stream-reset":
                    self.had.append(f"reset {event.json()['reason']}")
                elif event.event == "message" and event.data:
                    self.had.append(event.data)
                if self._stop.is_set():
                    return

    def stop(self) -> None:
        self._stop.set()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    yield page
    context.close()


@contextlib.contextmanager
def four_clients(page: Page, hub: RunningHub) -> Iterator[Callable[[], dict[str, list[str]]]]:
    """All of them, listening; gives what each has had so far."""
    url, token = f"{hub.url}/events/", hub.token()
    page.goto(f"{hub.control_url}/healthz")
    page.add_script_tag(path=POLYFILL)
    for name in ("native", "polyfill"):
        page.evaluate(OPEN, [name, url, token])
    node = subprocess.Popen(
        [NODE, LISTEN, f"{url}?token={token}"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert node.stdout is not None
    lines: list[str] = []
    collecting = threading.Thread(target=_collect, args=(node, lines), daemon=True)
    collecting.start()
    reader = Reader(url, token)
    reader.start()
    hub.wait_for("ssehub_subscribers", 4, 20)

    def had() -> dict[str, list[str]]:
        return {**page.evaluate("window.had"), "node": [json.loads(line) for line in lines], "httpx": list(reader.had)}

    try:
        yield had
    finally:
        reader.stop()
        os.killpg(node.pid, signal.SIGKILL)  # what we started is Python, which started Node
        node.wait()
        collecting.join(5)
        node.stdout.close()


def _collect(node: subprocess.Popen[str], lines: list[str]) -> None:
    assert node.stdout is not None
    for line in node.stdout:
        lines.append(line)


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
def test_killed_and_restarted_under_clients_of_every_kind(
    kind: str, page: Page, start_hub: Callable[..., RunningHub], tmp_path: Path
) -> None:
    require(NODE_MODULES.exists(), "the npm packages event-source-polyfill and eventsource")
    broker = "memory://" if kind == "memory" else f"sqlite:///{tmp_path}/log.db"
    port = free_port()
    arguments = (
        "--broker",
        broker,
        "--bind",
        f"127.0.0.1:{port}",
        "--cors-origins",
        "*",
        "--retry-milliseconds",
        "300",
    )
    hub = start_hub(*arguments)
    with four_clients(page, hub) as had:
        numbers = [f"{number}" for number in range(60)]
        for number in numbers[:30]:
            hub.emit(data=number)
        wait_until(lambda: all("29" in data for data in had().values()))
        hub.signal(signal.SIGKILL)
        hub.wait()
        time.sleep(0.5)
        hub = start_hub(*arguments)
        if kind == "memory":
            hub.wait_for("ssehub_subscribers", 4, 30)
        with Publisher(hub.control_url) as publisher:
            for number in numbers[30:]:
                publisher.emit(channel="chat", user_id="*", data=number)
        wait_until(lambda: all(data[-1:] == ["59"] for data in had().values()), 60)

        told = ["reset log-lost"] if kind == "memory" else []
        expected = [*numbers[:30], *told, *numbers[30:]]
        assert had() == dict.fromkeys(("native", "polyfill", "node", "httpx"), expected)


def test_a_quiet_channel_beside_a_busy_one_resumes_without_a_reset(
    page: Page, start_hub: Callable[..., RunningHub]
) -> None:
    hub = start_hub(
        "--history-events", "20", "--heartbeat-seconds", "1", "--cors-origins", "*", "--retry-milliseconds", "300"
    )
    with Proxy(hub.port) as proxy:
        page.goto(f"{hub.control_url}/healthz")
        page.add_script_tag(path=POLYFILL)
        token = hub.token(channel="quiet")
        for name in ("native", "polyfill"):
            page.evaluate(OPEN, [name, f"http://127.0.0.1:{proxy.port}/events/", token])
        hub.wait_for("ssehub_subscribers", 2)
        hub.emit(channel="quiet", data="1")
        for number in range(3):
            hub.emit_batch([{"userId": "*", "channel": "busy", "data": f"{number}"}] * 50)
            time.sleep(0.8)
        proxy.cut()
        page.wait_for_function("window.opened >= 4", timeout=20_000)
        hub.wait_for("ssehub_subscribers", 2)
        hub.emit(channel="quiet", data="2")
        page.wait_for_function("Object.values(window.had).every(had => had.length >= 2)")

        assert page.evaluate("window.had") == {"native": ["1", "2"], "polyfill": ["1", "2"]}
        assert hub.metric('ssehub_resets_total{reason="too-old"}') == 0
