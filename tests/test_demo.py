"""`ssehub --demo`: a page that hears its first event, on this machine only."""

from __future__ import annotations

import json
import re
import subprocess

import httpx
import pytest
from playwright.sync_api import Browser

from commands import run
from conftest import RunningHub, StartHub
from ssehub.web.demo import CHANNEL

WITHOUT_SECRET: dict[str, str | None] = {"SSEHUB_SECRET": None}


@pytest.fixture
def demo(start_hub: StartHub) -> RunningHub:
    return start_hub("--demo", env=WITHOUT_SECRET)


def hub_of(page: str) -> dict[str, str]:
    """Return what the hub wrote into the page."""
    found = re.search(r'<script type="application/json" id="hub">(.*?)</script>', page)
    assert found
    written: dict[str, str] = json.loads(found[1])
    return written


def test_command_on_the_demo_page_sends_an_event_that_its_token_hears(demo: RunningHub) -> None:
    page = hub_of(httpx.get(demo.url + "/").raise_for_status().text)

    with httpx.stream("GET", f"{demo.url}/events/", params={"token": page["token"]}) as stream:
        emitted = subprocess.run(page["command"], shell=True, capture_output=True, text=True, timeout=20)
        lines = stream.iter_lines()
        data = next(line for line in lines if line == "data: hello")

    assert emitted.stdout == "OK"
    assert data


def test_each_load_of_the_demo_page_gets_a_token_for_its_channel_only(demo: RunningHub) -> None:
    first, second = (hub_of(httpx.get(demo.url + "/").text)["token"] for _ in range(2))

    assert first != second
    other = httpx.get(f"{demo.url}/events/", params={"token": first, "channel": "other"})
    assert other.status_code == 403
    assert httpx.head(f"{demo.url}/events/", params={"token": first, "channel": CHANNEL}).status_code == 200


def test_demo_page_gives_no_token_under_a_foreign_name(demo: RunningHub) -> None:
    response = httpx.get(demo.url + "/", headers={"Host": "evil.example"})

    assert response.status_code == 403
    assert "token" not in response.text
    assert demo.metric('ssehub_refused_total{reason="page"}') == 1
    assert "request refused, page: the demo was opened by another name; GET /, from 127.0.0.1" in demo.log


@pytest.mark.parametrize("path", ["/", "/token/", "/nothing"])
def test_without_demo_the_client_port_says_where_things_are(path: str, hub: RunningHub) -> None:
    response = httpx.get(hub.url + path)

    assert response.status_code == 404
    assert "/events/" in response.text and "control_bind" in response.text


@pytest.mark.parametrize("path", ["/", "/events/"])
def test_the_control_port_says_where_things_are(path: str, hub: RunningHub) -> None:
    response = httpx.get(hub.control_url + path)

    assert response.status_code == 404
    assert "/emit/" in response.text and "127.0.0.1:8000" in response.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bind", "0.0.0.0:0"], "bind is 0.0.0.0:0, and must be a loopback address"),
        (["--bind", ":0"], "must be a loopback address"),
        (["--control-bind", "0.0.0.0:0", "--control-key", "k" * 40], "control_bind is 0.0.0.0:0"),
        (["--bind", "unix:/tmp/demo.sock"], "must be a loopback address"),
        (["--control-bind", "off"], "control_bind is off"),
        (["--workers", "2", "--broker", "redis://127.0.0.1:1"], "leave out workers 2"),
        (["--secret", "s" * 40], "random secret"),
        (["--control-key", "k" * 40], "leave out the control key"),
    ],
)
def test_demo_is_refused_with_settings_that_reach_further(options: list[str], message: str) -> None:
    result = run("--demo", *options)

    assert result.returncode == 2
    assert "--demo" in result.stderr and message in result.stderr


@pytest.mark.e2e
@pytest.mark.parametrize("width", [900, 380])
def test_demo_page_shows_the_event_that_its_command_sends(demo: RunningHub, browser: Browser, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 700})
    page.goto(demo.url + "/")
    page.wait_for_selector(".state.open")

    subprocess.run(page.inner_text("#command"), shell=True, check=True, timeout=20)

    page.wait_for_selector("#events >> text=hello")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
