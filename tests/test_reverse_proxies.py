"""The configurations of docs/proxies.md, in front of a hub that is killed and comes back."""

from __future__ import annotations

import os
import re
import ssl
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser

from conftest import StartHub, free_port, report, require, wait_until
from reverse_proxies import PAGE, PROXIES, Place, adapted, printed, program, running_proxy
from streams import HELLO, RawStream, decode, get

pytestmark = pytest.mark.e2e
SOAK = "SOAK" in os.environ
NAMES = tuple(PROXIES) if SOAK else ("apache", "haproxy")
"""`make soak` installs the others."""
ORIGIN = "https://app.example"
LISTEN = """([name, url]) => {
  const stream = (window.streams = window.streams || {})[name] = {numbers: [], resets: 0, opened: 0, state: 0};
  const source = new EventSource(url);
  source.onopen = () => stream.opened++;
  source.onmessage = event => stream.numbers.push(Number(event.data));
  source.onerror = () => stream.state = source.readyState;
  source.addEventListener("stream-reset", () => stream.resets++);
}"""
WATCHING = """([code, port, token]) => {
  const stream = window.streams["watchdog"] = {numbers: [], resets: 0};
  const show = event => stream.numbers.push(Number(event.data));
  new Function("hub", "token", "show", code)(`http://localhost:${port}`, token, show);
}"""
"""Runs the code of docs/proxies.md."""
HEARING = "number => Object.values(window.streams).filter(stream => stream.numbers.includes(number)).length"
GIVEN_UP = "() => Object.values(window.streams).filter(stream => stream.state === EventSource.CLOSED).length"
CLOSED = 2
"""The `readyState` of an EventSource that has given up."""


def insecure() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@contextmanager
def running_proxies(
    hub_port: int, control_port: int, folder: Path, texts: Mapping[str, str] | None = None
) -> Iterator[dict[str, Place]]:
    for name in NAMES:
        require(program(name), name)
    with ExitStack() as stack:
        proxies = {
            name: running_proxy(name, hub_port, control_port, folder / name, (texts or {}).get(name)) for name in NAMES
        }
        yield {name: stack.enter_context(proxy) for name, proxy in proxies.items()}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that Apache's user may enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="ssehub-proxies-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def comes_back_by_fetch(name: str, http: httpx.Client, url: str, headers: Mapping[str, str]) -> bool:
    """True if the answer is one after which clients built on `fetch` come back, where the proxy can give it."""
    try:
        response = http.get(url, headers=headers)
    except httpx.RemoteProtocolError:
        return name != "apache"
    if name == "apache" and headers:
        return decode(response.content)[0].event == "stream-busy"
    return name == "apache" and response.is_server_error


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_f19_while_the_hub_is_away_a_proxy_tells_clients_to_come_back(
    name: str, start_hub: StartHub, folder: Path
) -> None:
    """Its own 502 would end every EventSource for good."""
    port, control_port = free_port(), free_port()
    require(program(name), name)
    with running_proxy(name, port, control_port, folder) as place, httpx.Client(verify=insecure(), http2=True) as http:
        for url in (f"http://localhost:{place.plain_port}", f"https://localhost:{place.tls_port}"):
            response = http.get(f"{url}/events/?token=x", headers={"Origin": ORIGIN})

            assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream")
            assert response.headers["cache-control"] == "no-store"
            assert response.headers["access-control-allow-origin"] == ORIGIN
            assert response.headers["access-control-allow-credentials"] == "true"
            (busy,) = decode(response.content)
            assert (busy.event, busy.data) == ("stream-busy", "{}")
            assert busy.retry is not None and 2_000 <= busy.retry <= 7_000

            for query, headers in (("?end=cut", {}), ("", {"Datastar-Request": "true"})):
                wait_until(partial(comes_back_by_fetch, name, http, f"{url}/events/{query}", headers))

            for path in ("login", "backchannel-logout"):
                assert http.post(f"{url}/events/{path}?token=x").status_code in (502, 503, 504), "it has not been done"

        # Apache notices that a client has left, and then ends, when it next writes: at a heartbeat.
        addresses = ("--bind", f"127.0.0.1:{port}", "--control-bind", f"127.0.0.1:{control_port}")
        hub = start_hub(*addresses, "--heartbeat-seconds", "0.5", "--cors-origins", ORIGIN, "--token-cookie", "sse")
        request = partial(http.get, f"http://localhost:{place.plain_port}/events/?token=x", headers={"Origin": ORIGIN})
        wait_until(lambda: request().status_code == 401)
        refused = request()
        url = f"https://localhost:{place.tls_port}/events/?token={hub.token()}"
        own = f"https://localhost:{place.tls_port}"
        login = http.post(f"{own}/events/login", headers={"Origin": own, "Authorization": f"Bearer {hub.token()}"})
        with http.stream("GET", url, headers={"Origin": ORIGIN}) as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: stream-hello"
            hub.emit(data="hello")
            assert any(line == "data: hello" for line in lines)

    assert (login.status_code, "Path=/events; " in login.headers["set-cookie"]) == (204, True)
    assert "; Secure; " in login.headers["set-cookie"], "the hub cannot see TLS, but the origin of the page"
    assert refused.text == "a valid token is required\n", "answers of the hub pass unchanged"
    assert refused.headers.get_list("access-control-allow-origin") == [ORIGIN]


@pytest.mark.soak
@pytest.mark.only_soak
@pytest.mark.parametrize("name", NAMES)
def test_proxy_does_not_take_a_hub_that_cuts_streams_for_broken(name: str, start_hub: StartHub, folder: Path) -> None:
    require(program(name), name)
    hub = start_hub("--stream-lifetime-seconds", "1")
    token = hub.token()
    with running_proxy(name, hub.port, hub.control_port, folder) as place:
        host = f"Host: localhost:{place.plain_port}"
        cut = [RawStream(place.plain_port, get(f"/events/?token={token}&end=cut", host)) for _ in range(200)]
        for stream in cut:
            stream.read_until(b"event: stream-lifetime\n")
        time.sleep(1.5)  # the hub cuts a stream a second after its last frame
        for stream in cut:
            stream.close()
        for _ in range(20):
            stream = RawStream(place.plain_port, get(f"/events/?token={token}", host))
            stream.read_until(HELLO)
            stream.close()


@pytest.mark.soak
@pytest.mark.only_soak
@pytest.mark.timeout(300)
def test_f19_pages_hear_everything_once_over_a_crash_unless_the_proxy_answers_502(
    browser: Browser, start_hub: StartHub, tmp_path: Path, folder: Path
) -> None:
    port, control_port = free_port(), free_port()
    addresses = ("--bind", f"127.0.0.1:{port}", "--control-bind", f"127.0.0.1:{control_port}")
    arguments = (*addresses, "--broker", f"sqlite:///{tmp_path}/log.db", "--cors-origins", "*")
    hub = start_hub(*arguments)
    token = hub.token()
    plain = {name: without_answers(name) for name in NAMES}
    with ExitStack() as stack:
        mended = stack.enter_context(running_proxies(port, control_port, folder / "mended"))
        unmended = stack.enter_context(running_proxies(port, control_port, folder / "unmended", plain))
        urls = {
            f"{kind} {name} {scheme}": f"{scheme}://localhost:{number}/events/?token={token}"
            for kind, places in (("mended", mended), ("unmended", unmended))
            for name, place in places.items()
            for scheme, number in (("http", place.plain_port), ("https", place.tls_port))
        }
        context = browser.new_context(ignore_https_errors=True)
        stack.callback(context.close)
        page = context.new_page()
        for url in urls.items():
            page.evaluate(LISTEN, list(url))
        page.evaluate(WATCHING, [watchdog(3_000), unmended["haproxy"].plain_port, token])
        wait_until(lambda: hub.metric("ssehub_subscribers") > len(urls))
        hub.emit(data="1")
        wait_until(lambda: page.evaluate(HEARING, 1) == len(urls) + 1)
        hub.process.kill()
        hub.wait()
        # Chromium comes back after 3 s, and meets the answer of the proxy.
        wait_until(lambda: page.evaluate(GIVEN_UP) == len(urls) // 2, 60)
        hub = start_hub(*arguments)
        began = time.monotonic()
        hub.emit(data="2")
        hub.emit(data="3")
        wait_until(lambda: page.evaluate(HEARING, 3) == len(urls) // 2 + 1, 60)
        report(
            f"{len(urls) // 2 + 1} pages have heard everything {time.monotonic() - began:.1f} s after the hub's return"
        )
        streams = page.evaluate("() => window.streams")

    for name, stream in streams.items():
        if name.startswith(("mended", "watchdog")):
            assert (stream["numbers"], stream["resets"]) == ([1, 2, 3], 0), name
        else:
            assert (stream["numbers"], stream["state"]) == ([1], CLOSED), name


def watchdog(milliseconds: int) -> str:
    """Return the code of docs/proxies.md, which listens to a hub at `hub` with `token` and shows events by `show`."""
    found = re.search(r"^```js\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    return adapted(found[1], {"60_000": str(milliseconds), "/events/?": "${hub}/events/?"})


def without_answers(name: str) -> str:
    """Return the configuration without what it answers in place of its own errors."""
    text = re.sub(r"\n.*(error_page|ErrorDocument|http-error|http-after-response).*", "", printed(name))
    text = text.replace("handle_errors {", "handle /never {")
    assert text != printed(name)
    return text
