"""Common clients reconnect by themselves: Chromium, the Yaffle polyfill, npm eventsource, httpx-sse in a loop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from httpx_sse import connect_sse
from playwright.sync_api import Page

from conftest import RunningHub, StartHub, free_port, require, wait_until
from node import NODE, NODE_MODULES, POLYFILL, RECONNECT
from proxy import Proxy
from ssehub import Publisher

pytestmark = pytest.mark.e2e
FOR_PAGES = ("--cors-origins", "*", "--retry-milliseconds", "300")
OPEN = """([name, url, token]) => {
  window.received = window.received || {};
  const received = window.received[name] = [];
  const source = name === "native"
    ? new EventSource(`${url}?token=${token}`)
    : new EventSourcePolyfill(url, {headers: {Authorization: `Bearer ${token}`}});
  source.addEventListener("message", event => received.push(event.data));
  source.addEventListener("stream-reset", event => received.push("reset " + JSON.parse(event.data).reason));
  source.addEventListener("open", () => { window.opened = (window.opened || 0) + 1; });
}"""


class Reader(threading.Thread):
    """httpx-sse in a loop, with the last id of each connection sent on the next."""

    def __init__(self, url: str, token: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"}
        self._is_over = threading.Event()
        self._last_id = ""
        self.received: list[str] = []

    def run(self) -> None:
        while not self._is_over.is_set():
            with contextlib.suppress(httpx.TransportError):
                self._listen()
            time.sleep(0.1)

    def _listen(self) -> None:
        headers = self._headers | ({"Last-Event-ID": self._last_id} if self._last_id else {})
        with httpx.Client(timeout=30) as http, connect_sse(http, "GET", self._url, headers=headers) as source:
            for event in source.iter_sse():
                self._last_id = event.id or self._last_id
                if event.event == "stream-reset":
                    self.received.append(f"reset {event.json()['reason']}")
                elif event.event == "message" and event.data:
                    self.received.append(event.data)
                if self._is_over.is_set():
                    return

    def stop(self) -> None:
        self._is_over.set()


def open_in_page(page: Page, hub: RunningHub, url: str, token: str) -> None:
    """Open a native EventSource and a polyfill in the page. It is of another origin than the streams."""
    page.goto(f"{hub.control_url}/healthz")
    page.add_script_tag(path=POLYFILL)
    for name in ("native", "polyfill"):
        page.evaluate(OPEN, [name, url, token])


@contextlib.contextmanager
def four_clients(page: Page, hub: RunningHub) -> Iterator[Callable[[], dict[str, list[str]]]]:
    """Open all four; yield a function that returns what each has received so far."""
    url, token = f"{hub.url}/events/", hub.token()
    open_in_page(page, hub, url, token)
    node = subprocess.Popen(
        [NODE, RECONNECT, f"{url}?token={token}"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    lines: list[str] = []
    collecting = threading.Thread(target=_collect, args=(node, lines), daemon=True)
    collecting.start()
    reader = Reader(url, token)
    reader.start()
    hub.wait_for("ssehub_subscribers", 4, 20)

    def received() -> dict[str, list[str]]:
        of_node = [json.loads(line) for line in lines]
        return {**page.evaluate("window.received"), "node": of_node, "httpx": list(reader.received)}

    try:
        yield received
    finally:
        reader.stop()
        os.killpg(node.pid, signal.SIGKILL)  # NODE is a Python script, which starts the real Node
        node.wait()
        collecting.join(5)
        if node.stdout is not None:
            node.stdout.close()


def _collect(node: subprocess.Popen[str], lines: list[str]) -> None:
    assert node.stdout is not None
    for line in node.stdout:
        lines.append(line)


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
def test_clients_of_every_kind_reconnect_to_a_killed_and_restarted_hub(
    kind: str, page: Page, start_hub: StartHub, tmp_path: Path
) -> None:
    require(NODE_MODULES.exists(), "the npm packages event-source-polyfill and eventsource")
    broker = "memory://" if kind == "memory" else f"sqlite:///{tmp_path}/log.db"
    arguments = ("--broker", broker, "--bind", f"127.0.0.1:{free_port()}", *FOR_PAGES)
    numbers = [f"{number}" for number in range(60)]
    hub = start_hub(*arguments)
    with four_clients(page, hub) as received:
        for number in numbers[:30]:
            hub.emit(data=number)
        wait_until(lambda: all("29" in data for data in received().values()))

        hub.signal(signal.SIGKILL)
        hub.wait()
        time.sleep(0.5)
        hub = start_hub(*arguments)
        if kind == "memory":
            hub.wait_for("ssehub_subscribers", 4, 30)
        with Publisher(hub.control_url) as publisher:
            for number in numbers[30:]:
                publisher.emit(channel="chat", user_id="*", data=number)
        wait_until(lambda: all(data[-1:] == ["59"] for data in received().values()), 60)

        resets = ["reset log-lost"] if kind == "memory" else []
        expected = [*numbers[:30], *resets, *numbers[30:]]
        assert received() == dict.fromkeys(("native", "polyfill", "node", "httpx"), expected)


def test_a_quiet_channel_beside_a_busy_one_resumes_without_a_reset(page: Page, start_hub: StartHub) -> None:
    hub = start_hub("--history-events", "20", "--heartbeat-seconds", "1", *FOR_PAGES)
    with Proxy(hub.port) as proxy:
        open_in_page(page, hub, f"http://127.0.0.1:{proxy.port}/events/", hub.token(channel="quiet"))
        hub.wait_for("ssehub_subscribers", 2)
        hub.emit(channel="quiet", data="1")
        for number in range(3):
            hub.emit_batch([{"userId": "*", "channel": "busy", "data": f"{number}"}] * 50)
            time.sleep(0.8)

        proxy.cut()
        page.wait_for_function("window.opened >= 4", timeout=20_000)
        hub.wait_for("ssehub_subscribers", 2)
        hub.emit(channel="quiet", data="2")
        page.wait_for_function("Object.values(window.received).every(received => received.length >= 2)")

        assert page.evaluate("window.received") == {"native": ["1", "2"], "polyfill": ["1", "2"]}
        assert hub.metric('ssehub_resets_total{reason="too-old"}') == 0
