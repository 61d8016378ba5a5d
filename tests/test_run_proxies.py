"""Proxies in front of the control port: which of them hold back an append, as docs/runs.md says."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from conftest import CONTROL_KEY, RunningHub, require, wait_until
from reverse_proxies import program, running_proxy
from ssehub import Publisher

pytestmark = pytest.mark.e2e

PAGE = Path(__file__).parent.parent / "docs" / "runs.md"
LOCATION = re.findall(r"^```nginx\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)[0]
NGINX = """server {{
    listen 443 ssl http2;
    ssl_certificate /etc/ssl/site.pem;
    ssl_certificate_key /etc/ssl/site.pem;
    {location}
}}
"""
HAPROXY = """defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    option http-no-delay

frontend control
    bind :443 ssl crt /etc/ssl/site.pem
    default_backend hub

backend hub
    server hub 127.0.0.1:8000 check port 8001
"""
APACHE = """<VirtualHost *:443>
    SSLEngine on
    SSLCertificateFile /etc/ssl/site.pem
    ProxyPass / http://127.0.0.1:8000/
    Alias /come-back /etc/apache2/come-back.asis
</VirtualHost>
"""
CADDY = """example.org {
    reverse_proxy 127.0.0.1:8000
}
"""
BARE = "location /runs/ { proxy_pass http://127.0.0.1:8000; }"
PROXIES = {
    "nginx": ("nginx", NGINX.format(location=LOCATION.replace("127.0.0.1:8001", "127.0.0.1:8000")), True),
    "nginx-as-it-is": ("nginx", NGINX.format(location=BARE), False),
    "haproxy": ("haproxy", HAPROXY, True),
    "apache": ("apache", APACHE, False),
    "caddy": ("caddy", CADDY, True),
}
"""By a name: the proxy, its configuration, and True if it passes a line on at once."""
HEADERS = {"Authorization": f"Bearer {CONTROL_KEY}", "Content-Type": "application/x-ndjson"}
AT_ONCE_SECONDS = 1.0


@pytest.fixture(scope="module")
def hub() -> Iterator[RunningHub]:
    running = RunningHub(env={"SSEHUB_CONTROL_KEY": CONTROL_KEY})
    yield running
    running.stop()


@pytest.fixture(params=PROXIES)
def proxy(request: pytest.FixtureRequest, hub: RunningHub, tmp_path: Path) -> Iterator[tuple[str, bool]]:
    """A proxy in front of the control port; yields its URL, and whether it passes a line on at once."""
    name, text, passes = PROXIES[request.param]
    require(program(name), name)
    tmp_path.parent.chmod(0o755)
    with running_proxy(name, hub.control_port, hub.control_port, tmp_path, text) as place:
        yield f"http://localhost:{place.plain_port}", passes


def events_of(hub: RunningHub, run: str) -> int:
    response = httpx.get(f"{hub.control_url}/runs/{run}", headers=HEADERS)
    return int(response.json()["events"]) if response.status_code == 200 else 0


def test_line_passes_at_once_or_is_held_back_as_documented(proxy: tuple[str, bool], hub: RunningHub) -> None:
    url, passes = proxy
    run, seen = f"line-{time.monotonic_ns()}", threading.Event()

    def body() -> Iterator[bytes]:
        yield b'{"data": "one"}\n'
        seen.wait(20)
        yield b'{"data": "two"}\n'

    answers: list[httpx.Response] = []
    query = {"channel": "chat", "userId": "alex", "finish": "done"}
    sending = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{url}/runs/{run}", params=query, content=body(), headers=HEADERS))
    )
    sending.start()
    try:
        if passes:
            wait_until(lambda: events_of(hub, run) == 1, 5)
        else:
            time.sleep(AT_ONCE_SECONDS)
            assert events_of(hub, run) == 0
    finally:
        seen.set()
        sending.join(20)

    assert answers[0].json() == {"generation": 1, "state": "done", "events": 2}


def test_publisher_gets_its_events_through_every_proxy(proxy: tuple[str, bool], hub: RunningHub) -> None:
    url, _ = proxy
    name = f"publisher-{time.monotonic_ns()}"
    with (
        Publisher(url, control_key=CONTROL_KEY) as publisher,
        publisher.run(name, channel="chat", user_id="alex") as run,
    ):
        run.append(data="one")
        wait_until(lambda: events_of(hub, name) == 1, 10)
        run.append(data="two")

    assert events_of(hub, name) == 2
