"""Debian's Chromium, Firefox and WebKitGTK, each remote-controlled and told to accept any certificate."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
from playwright.sync_api import Page, sync_playwright

from conftest import CHROMIUM, FLAGS, connects, free_port, wait_until

FIREFOX = Path("/usr/bin/firefox-esr")
WEBKIT_DRIVER = Path("/usr/bin/WebKitWebDriver")
XVFB = Path("/usr/bin/Xvfb")


class Tab(Protocol):
    """One page of a browser."""

    version: str
    """The browser's."""

    def go(self, url: str) -> None: ...

    def run(self, script: str) -> Any:
        """Run the body of a function in the page; return what it returns."""


class _ChromiumTab:
    def __init__(self, page: Page, version: str) -> None:
        self.version = version
        self._page = page

    def go(self, url: str) -> None:
        self._page.goto(url)

    def run(self, script: str) -> Any:
        return self._page.evaluate(f"() => {{ {script} }}")


@contextmanager
def chromium() -> Iterator[Tab]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield _ChromiumTab(browser.new_context(ignore_https_errors=True).new_page(), browser.version)
        browser.close()


class _FirefoxTab:
    """A session of Marionette, Firefox's own protocol: JSON behind its length and a colon."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 60)
        self._rest = b""
        self._receive()  # the greeting
        session = self._call("WebDriver:NewSession", {"acceptInsecureCerts": True})
        self.version = str(session["capabilities"]["browserVersion"])

    def go(self, url: str) -> None:
        self._call("WebDriver:Navigate", {"url": url})

    def run(self, script: str) -> Any:
        return self._call("WebDriver:ExecuteScript", {"script": script, "args": [], "sandbox": None})["value"]

    def close(self) -> None:
        self._socket.close()

    def _call(self, command: str, parameters: dict[str, Any]) -> Any:
        message = json.dumps([0, 1, command, parameters]).encode()
        self._socket.sendall(b"%d:%b" % (len(message), message))
        _, _, error, result = self._receive()
        assert error is None, error
        return result

    def _receive(self) -> Any:
        while b":" not in self._rest:
            self._read()
        length, _, self._rest = self._rest.partition(b":")
        while len(self._rest) < int(length):
            self._read()
        message, self._rest = self._rest[: int(length)], self._rest[int(length) :]
        return json.loads(message)

    def _read(self) -> None:
        received = self._socket.recv(65_536)
        assert received, "Firefox has closed the connection"
        self._rest += received


@contextmanager
def firefox() -> Iterator[Tab]:
    port = free_port()
    with ExitStack() as stack:
        # Firefox may still write into its profile for a moment after it has ended.
        profile = stack.enter_context(tempfile.TemporaryDirectory(prefix="ssehub-firefox-", ignore_cleanup_errors=True))
        Path(profile, "user.js").write_text(f'user_pref("marionette.port", {port});\n')
        command = [str(FIREFOX), "--headless", "--marionette", "--no-remote", "--profile", profile]
        stack.enter_context(_process(command, {"HOME": profile}))
        wait_until(lambda: connects(port), 60)
        tab = _FirefoxTab(port)
        stack.callback(tab.close)
        yield tab


class _WebKitTab:
    """A session of WebDriver."""

    def __init__(self, port: int, browser: Path) -> None:
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        options = {"binary": str(browser), "args": ["--automation"]}
        wanted = {"acceptInsecureCerts": True, "webkitgtk:browserOptions": options}
        session = self._call("/session", {"capabilities": {"alwaysMatch": wanted}})
        self.version = str(session["capabilities"]["browserVersion"])
        self._path = f"/session/{session['sessionId']}"

    def go(self, url: str) -> None:
        self._call(f"{self._path}/url", {"url": url})

    def run(self, script: str) -> Any:
        return self._call(f"{self._path}/execute/sync", {"script": script, "args": []})

    def close(self) -> None:
        self._http.delete(self._path)
        self._http.close()

    def _call(self, path: str, body: dict[str, Any]) -> Any:
        response = self._http.post(path, json=body)
        assert response.is_success, response.text
        return response.json()["value"]


@contextmanager
def webkit() -> Iterator[Tab]:
    browser = _mini_browser()
    assert browser
    port = free_port()
    with ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="ssehub-webkit-", ignore_cleanup_errors=True))
        display = stack.enter_context(_display())
        environment = {"HOME": home, "DISPLAY": display, "WEBKIT_DISABLE_COMPOSITING_MODE": "1", "NO_AT_BRIDGE": "1"}
        stack.enter_context(_process([str(WEBKIT_DRIVER), f"--port={port}"], environment))
        wait_until(lambda: connects(port), 60)
        tab = _WebKitTab(port, browser)
        stack.callback(tab.close)
        yield tab


@contextmanager
def _display() -> Iterator[str]:
    """Run an X server without a screen; yield its display."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as number:
        command = [str(XVFB), "-displayfd", str(writing), "-screen", "0", "1024x768x24", "-nolisten", "tcp"]
        process = subprocess.Popen(command, pass_fds=(writing,), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(writing)
        try:
            yield f":{number.readline().strip()}"
        finally:
            process.terminate()
            process.wait(20)


@contextmanager
def _process(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


@dataclass(frozen=True)
class Browser:
    run: Callable[[], AbstractContextManager[Tab]]
    is_installed: Callable[[], bool]


def _mini_browser() -> Path | None:
    return next(Path("/usr/lib").glob("*/webkit2gtk-4.*/MiniBrowser"), None)


BROWSERS = {
    "Chromium": Browser(chromium, CHROMIUM.exists),
    "Firefox": Browser(firefox, FIREFOX.exists),
    "WebKitGTK": Browser(webkit, lambda: WEBKIT_DRIVER.exists() and XVFB.exists() and _mini_browser() is not None),
}
