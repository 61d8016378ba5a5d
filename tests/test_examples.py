"""The examples, started as their first lines say."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Route, expect

from conftest import connects, free_port, wait_until
from streams import RawStream, get

EXAMPLES = Path(__file__).parent.parent / "examples"
SCREENSHOT = os.environ.get("CHAT_SCREENSHOT")


@contextmanager
def running(*command: str, port: int, **env: str) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, *command], cwd=EXAMPLES, env={**os.environ, **env}, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: connects(port) or process.poll() is not None, 20)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


@pytest.fixture
def start() -> Iterator[Callable[..., int]]:
    """Start an example under uvicorn and return its port."""
    with ExitStack() as stack:

        def run(app: str, **env: str) -> int:
            port = free_port()
            arguments = ("-m", "uvicorn", app, "--port", str(port), "--http", "ssehub.server:HttpProtocol")
            stack.enter_context(running(*arguments, port=port, **env))
            return port

        yield run


def test_fastapi_example_uses_its_own_login(start: Callable[..., int]) -> None:
    port = start("fastapi_app:app")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as alex:
        assert alex.get("/sse/events/").status_code == 401
        alex.post("/login", data={"name": "alex"})
        stream = RawStream(port, get("/sse/events/", f"Cookie: session={alex.cookies['session']}"))
        stream.read_until(b"stream-hello")
        alex.post("/messages", json={"to": "alex", "text": "hi"}).raise_for_status()
    stream.read_until(b"event: message\n")
    stream.read_until(b"\n\n")
    stream.close()

    assert json.loads(stream.events[0].data) == {"from": "alex", "text": "hi"}


def test_starlette_example_ticks_and_accepts_events(start: Callable[..., int]) -> None:
    port = start("starlette_app:app", CONTROL_KEY="a-random-control-key-of-yours")
    base = f"http://127.0.0.1:{port}"
    stream = RawStream(port, get(f"/sse/events/?token={httpx.get(f'{base}/token').text}"))
    stream.read_until(b"event: tick\n")
    form = {"userId": "*", "channel": "clock", "data": "by hand"}
    key = {"Authorization": "Bearer a-random-control-key-of-yours"}

    assert httpx.post(f"{base}/control/emit/", data=form).status_code == 401
    assert httpx.post(f"{base}/control/emit/", data=form, headers=key).text == "OK"
    stream.read_event("by hand")
    stream.close()


def test_django_example_publishes_from_a_view_and_a_thread(start: Callable[..., int]) -> None:
    port = start("django_app:app")
    base = f"http://127.0.0.1:{port}"
    stream = RawStream(port, get(f"/sse/events/?token={httpx.get(f'{base}/token').text}"))
    stream.read_until(b"stream-hello")
    httpx.post(f"{base}/say", data={"text": "hi"}).raise_for_status()
    stream.read_event("hi")
    httpx.post(f"{base}/remind", data={"seconds": "0.1"}).raise_for_status()
    stream.read_until(b"event: reminder\n")
    stream.close()


def chat_ports() -> dict[str, str]:
    """Return the variables that give the chat and its hub free ports."""
    return {name: str(free_port()) for name in ("CHAT_PORT", "CHAT_HUB_PORT", "CHAT_CONTROL_PORT")}


@pytest.fixture
def start_chat() -> Iterator[Callable[..., int]]:
    """Start the chat and return its port."""
    with ExitStack() as stack:

        def run(**env: str) -> int:
            ports = chat_ports()
            stack.enter_context(running("chat", port=int(ports["CHAT_PORT"]), **ports, **env))
            wait_until(lambda: connects(int(ports["CHAT_CONTROL_PORT"])))
            return int(ports["CHAT_PORT"])

        yield run


@pytest.mark.e2e
def test_chat_is_used_by_two_people_and_outlives_its_tokens(browser: Browser) -> None:
    ports = chat_ports()
    port = int(ports["CHAT_PORT"])
    with running("chat", port=port, CHAT_TOKEN_SECONDS="6", **ports):
        alex, sam = (browser.new_context(viewport={"width": 1100, "height": 800}).new_page() for _ in range(2))
        for page, name in ((alex, "Alex"), (sam, "Sam")):
            page.goto(f"http://127.0.0.1:{port}")
            page.get_by_placeholder("Your name").fill(name)
            page.get_by_role("button", name="Join").click()
            expect(page.locator("#status")).to_have_text(f"{name}, connected")
        expect(alex.get_by_text("Sam has joined")).to_be_visible()

        alex.locator("#text").fill("Hello everyone!")
        alex.keyboard.press("Enter")
        expect(sam.get_by_text("Hello everyone!")).to_be_visible()
        sam.get_by_role("button", name="Alex").click()
        sam.locator("#text").fill("This is between us.")
        sam.keyboard.press("Enter")
        expect(alex.get_by_text("This is between us.")).to_be_visible()
        with sam.expect_response("**/state", timeout=10_000):
            pass  # which it fetches when its token is about to expire
        alex.locator("#text").fill("Still there?")
        alex.keyboard.press("Enter")
        expect(sam.get_by_text("Still there?")).to_be_visible()
        expect(sam.locator("#messages li:not(.note)")).to_have_count(3)
        if SCREENSHOT:
            alex.screenshot(path=SCREENSHOT)
        for page in (alex, sam):
            page.context.close()


@pytest.mark.e2e
def test_chat_loses_nothing_between_its_state_and_its_stream(browser: Browser) -> None:
    ports = chat_ports()
    port = int(ports["CHAT_PORT"])
    with (
        running("chat", port=port, **ports),
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as sam,
        closing(browser.new_context()) as context,
    ):
        wait_until(lambda: connects(int(ports["CHAT_CONTROL_PORT"])))
        sam.post("/login", json={"name": "Sam"}).raise_for_status()

        def publish_before_the_stream_opens(route: Route) -> None:
            sam.post("/messages", json={"text": "Just in between."}).raise_for_status()
            route.continue_()

        alex = context.new_page()
        alex.route("**/events/**", publish_before_the_stream_opens)
        alex.goto(f"http://127.0.0.1:{port}")
        alex.get_by_placeholder("Your name").fill("Alex")
        alex.get_by_role("button", name="Join").click()

        expect(alex.get_by_text("Just in between.")).to_be_visible()


@pytest.mark.e2e
def test_chat_fits_a_phone_and_gives_names_back(browser: Browser, start_chat: Callable[..., int]) -> None:
    port = start_chat()
    phone, other = (browser.new_context(viewport={"width": 390, "height": 844}).new_page() for _ in range(2))
    for page in (phone, other):
        page.goto(f"http://127.0.0.1:{port}")
        for _ in range(3):
            page.keyboard.press("Escape")  # which closes a dialog
        page.get_by_placeholder("Your name").fill("Alex")
    phone.get_by_role("button", name="Join").click()
    expect(phone.locator("#status")).to_have_text("Alex, connected")
    phone.locator("#text").fill("x" * 300)
    phone.keyboard.press("Enter")
    expect(phone.locator("#messages li")).to_have_count(1)
    width = phone.evaluate("document.documentElement.scrollWidth")
    send = phone.get_by_role("button", name="Send").bounding_box()
    other.get_by_role("button", name="Join").click()
    expect(other.locator("#error")).to_have_text("Choose another name, please.")

    phone.get_by_role("button", name="Leave").click()
    expect(phone.get_by_placeholder("Your name")).to_be_visible()
    other.get_by_role("button", name="Join").click()

    expect(other.locator("#status")).to_have_text("Alex, connected")
    for page in (phone, other):
        page.context.close()
    assert width == 390
    assert send is not None and send["x"] + send["width"] <= 390


@pytest.mark.e2e
def test_chat_says_why_its_seventh_tab_waits(browser: Browser, start_chat: Callable[..., int]) -> None:
    port = start_chat()
    with closing(browser.new_context()) as context:
        tabs = [context.new_page() for _ in range(7)]
        for tab in tabs:
            tab.goto(f"http://127.0.0.1:{port}")
            if tab is tabs[0]:
                tab.get_by_placeholder("Your name").fill("Alex")
                tab.get_by_role("button", name="Join").click()
            if tab is not tabs[6]:
                expect(tab.locator("#status")).to_have_text("Alex, connected")

        expect(tabs[6].locator("#status")).to_contain_text("six streams", timeout=10_000)
        tabs[0].close()

        expect(tabs[6].locator("#status")).to_have_text("Alex, connected")


def test_name_of_a_page_that_has_gone_is_given_to_the_next(start_chat: Callable[..., int]) -> None:
    url = f"http://127.0.0.1:{start_chat(CHAT_TOKEN_SECONDS='1')}/login"
    httpx.post(url, json={"name": "Sam"}).raise_for_status()

    assert httpx.post(url, json={"name": "Sam"}).status_code == 409
    wait_until(lambda: httpx.post(url, json={"name": "Sam"}).status_code == 200, 10)


@pytest.mark.parametrize("name", ["CHAT_PORT", "CHAT_HUB_PORT", "CHAT_CONTROL_PORT"])
def test_chat_fails_without_naming_its_page_if_a_port_is_in_use(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ports = chat_ports() | {name: str(port)}
        chat = subprocess.run(
            [sys.executable, "chat"], cwd=EXAMPLES, env={**os.environ, **ports}, capture_output=True, timeout=30
        )

    assert chat.returncode == 1
    assert f"port {port}: Address already in use".encode() in chat.stderr and name.encode() in chat.stderr
    assert b"Open http" not in chat.stderr


def test_chat_fails_if_its_hub_ends_by_itself() -> None:
    chat = subprocess.run(
        [sys.executable, "chat"],
        cwd=EXAMPLES,
        env={**os.environ, **chat_ports(), "SSEHUB_HEARTBEAT_SECONDS": "never"},
        capture_output=True,
        timeout=30,
    )

    assert chat.returncode == 1
    assert b"HEARTBEAT" in chat.stderr and b"the hub has ended by itself" in chat.stderr
    assert b"Open http" not in chat.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_chat_stops_its_hub_when_it_stops(number: signal.Signals) -> None:
    ports = chat_ports()
    port, hub_port = int(ports["CHAT_PORT"]), int(ports["CHAT_HUB_PORT"])
    chat = subprocess.Popen([sys.executable, "chat"], cwd=EXAMPLES, env={**os.environ, **ports})
    wait_until(lambda: connects(port) and connects(hub_port), 20)

    chat.send_signal(number)

    assert chat.wait(20) == 0
    assert not connects(hub_port)


@pytest.mark.parametrize("name, path", [("htmx", "/htmx2"), ("turbo", "/"), ("datastar", "/")])
def test_live_page_runs_a_hub_until_it_is_stopped(name: str, path: str) -> None:
    ports = {variable: str(free_port()) for variable in ("PORT", "HUB_PORT", "CONTROL_PORT")}
    url = f"http://127.0.0.1:{ports['PORT']}{path}"
    backend = subprocess.Popen([sys.executable, name], cwd=EXAMPLES, env={**os.environ, **ports, "SECONDS": "0.1"})
    try:
        wait_until(lambda: connects(int(ports["PORT"])), 20)
        wait_until(lambda: "<li>3</li>" in httpx.get(url).text, 20)
    finally:
        backend.terminate()
        backend.wait(20)

    assert not connects(int(ports["HUB_PORT"]))


@pytest.mark.parametrize("name", ["htmx", "turbo", "datastar"])
def test_live_page_fails_if_the_address_of_its_hub_is_in_use(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ports = {"HUB_PORT": str(server.getsockname()[1]), "PORT": str(free_port()), "CONTROL_PORT": str(free_port())}
        backend = subprocess.run(
            [sys.executable, name], cwd=EXAMPLES, env={**os.environ, **ports}, stderr=subprocess.PIPE, timeout=30
        )

    assert b"the port is in use" in backend.stderr
    assert backend.returncode == 1
