"""The original deployment: Chromium, Apache with the original configuration, the Yaffle polyfill, PHP's curl."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Page

from apache import running_apache
from conftest import RunningHub, StartHub, require
from node import NODE_MODULES

pytestmark = pytest.mark.e2e

# The page of the original's README, with a list that shows the events.
POLYFILL_PAGE = """<!doctype html><title>polyfill</title><ul id="shown"></ul>
<script src="eventsource.min.js"></script>
<script>
fetch("chat.php").then(r => r.text()).then(token => {
  var sse = new EventSourcePolyfill("/api/sse/", {headers: {"Authorization": "Bearer " + token}});
  sse.addEventListener("open", () => document.title = "open");
  sse.addEventListener("message", e => {
    var data = JSON.parse(e.data);
    document.querySelector("#shown").innerHTML += "<li>" + data.text + "</li>";
  });
});
</script>
"""
NATIVE_PAGE = """<!doctype html><title>native</title><ul id="shown"></ul>
<script>
fetch("chat.php?cookie=" + (location.hash ? "1" : "")).then(r => r.text()).then(token => {
  const sse = new EventSource(location.hash ? "/api/sse/" : "/api/sse/?token=" + token);
  sse.onopen = () => document.title = "open";
  sse.onerror = () => document.title = "error " + sse.readyState;
  sse.addEventListener("stream-drain", () => document.querySelector("#shown").innerHTML += "<li>drain</li>");
  sse.onmessage = e => document.querySelector("#shown").innerHTML += "<li>" + JSON.parse(e.data).text + "</li>";
});
</script>
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[RunningHub]:
    # Apache notices a closed browser when it next writes to it, which here is a heartbeat.
    running = RunningHub("--token-cookie", "sse", "--heartbeat-seconds", "0.5")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def site(browser: Browser, hub: RunningHub) -> Iterator[str]:
    require(NODE_MODULES.exists(), "the npm package event-source-polyfill")
    with running_apache(hub, {"polyfill.html": POLYFILL_PAGE, "native.html": NATIVE_PAGE}) as url:
        yield url


@pytest.mark.parametrize("path", ["polyfill.html", "native.html", "native.html#cookie"])
def test_page_behind_apache_shows_what_php_emits(path: str, page: Page, site: str, hub: RunningHub) -> None:
    page.goto(f"{site}/{path}")
    page.wait_for_function("document.title == 'open'")  # before any event; with the original only at the first one

    answers = [httpx.get(f"{site}/chat.php", params={"text": text}).text for text in ("one", "zwei ✓")]
    page.wait_for_function("document.querySelectorAll('li').length == 2")

    assert answers == ["OK", "OK"]
    assert page.locator("li").all_inner_texts() == ["one", "zwei ✓"]


def test_closed_page_is_noticed_through_apache(browser: Browser, site: str, hub: RunningHub) -> None:
    hub.wait_for("ssehub_subscribers", 0, 20)
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{site}/native.html")
    page.wait_for_function("document.title == 'open'")
    before = hub.metric("ssehub_subscribers")

    context.close()

    assert before == 1
    hub.wait_for("ssehub_subscribers", 0, 20)


LISTEN = """url => {
  const sse = new EventSource(url);
  const show = e => document.querySelector("#shown").innerHTML += `<li>${e.type} ${e.data}</li>`;
  for (const type of ["message", "stream-drain", "stream-reset"]) sse.addEventListener(type, show);
  sse.onopen = () => document.title = "open";
}"""


ASK = """([granted, refused]) => {
  window.refused = new EventSource(refused);
  window.sse = new EventSource(granted);
  sse.onopen = () => document.title = "open";
  sse.onmessage = e => document.querySelector("#shown").innerHTML += `<li>${e.data}</li>`;
}"""


def test_b31_page_behind_apache_gets_the_channels_it_asks_for_and_stays_away_from_others(
    page: Page, site: str, hub: RunningHub
) -> None:
    before = hub.metric('ssehub_refused_total{reason="not-granted"}')
    stream = f"/api/sse/?token={hub.issue(channel='chat', patterns=['orders.*'])}&channel=orders.7&channel="
    page.goto(f"{site}/chat.php")  # it sets no cookie, which would take precedence
    page.set_content("<!doctype html><title>page</title><ul id=shown></ul>")
    page.evaluate(ASK, [f"{stream}orders.8", f"{stream}other"])
    page.wait_for_function("document.title == 'open' && refused.readyState == EventSource.CLOSED")

    for channel in ("orders.7", "chat", "orders.9", "orders.8"):
        hub.emit(channel=channel, data=channel)
    page.wait_for_function("document.querySelectorAll('li').length == 2")

    assert page.locator("li").all_inner_texts() == ["orders.7", "orders.8"]
    assert page.evaluate("refused.readyState") == 2
    assert hub.metric('ssehub_refused_total{reason="not-granted"}') == before + 1


def test_native_event_source_reconnects_after_a_drain(page: Page, start_hub: StartHub) -> None:
    first = start_hub("--drain-seconds", "1", "--cors-origins", "*")
    port = first.port
    page.goto(f"{first.control_url}/healthz")
    page.set_content("<!doctype html><title>page</title><ul id=shown></ul>")
    page.evaluate(LISTEN, f"{first.url}/events/?token={first.token()}")
    page.wait_for_function("document.title == 'open'")
    first.emit(data="before")
    page.wait_for_function("document.querySelectorAll('li').length == 1")

    first.stop()
    page.wait_for_function("document.querySelectorAll('li').length == 2")
    second = start_hub("--bind", f"127.0.0.1:{port}", "--cors-origins", "*")
    page.wait_for_function("document.querySelectorAll('li').length == 3", timeout=20_000)
    second.emit(data="after")
    page.wait_for_function("document.querySelectorAll('li').length == 4")

    assert page.locator("li").all_inner_texts() == [
        "message before",
        "stream-drain {}",
        'stream-reset {"reason":"log-lost"}',
        "message after",
    ]
