#!/usr/bin/env python3
"""How soon a newcomer hears a first event: the seconds from `git clone` on, by the commands that the README prints.

    make newcomer        # or: python3 tests/first_event.py [--within SECONDS] [page | curl | fastapi]…

It needs git, make, curl, and python3 with venv, and for `page` Chromium or Firefox; no Python packages, and no `.venv`:
each way begins with a clone of this checkout, of what is committed, in a new folder, and pip may not use its cache. The
ports are those of the README, so 8000, 8001 and 3000 must be free.

- `page`: the hub with `--cors-origins`, and the README's `<script>` in a page of http://localhost:3000, in a browser.
  The event is heard when the page writes it to its console.
- `curl`: `make run`, and the three curl commands under "From your backend".
- `fastapi`: the README's `pip install` into a new virtual environment, and what examples/fastapi_app.py says.

It prints a row for each way, and exits with 1 if one took longer than `--within` or heard nothing.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGE_PORT = 3000
GIVE_UP_SECONDS = 600.0
AGAIN_SECONDS = 0.5
"""Publishing is repeated after this time: the stream may not have been open yet."""


def commands(text: str = README) -> list[str]:
    """Return the lines of the indented blocks of commands."""
    return [line[1] for line in re.finditer(r"^    (\S.*)$", text, re.MULTILINE)]


def printed(pattern: str, text: str = README) -> str:
    """Return the one piece of inline code, or line of a block, that matches `pattern` as a whole."""
    inline = [code[1] for code in re.finditer(r"`([^`\n]+)`", text)]
    found = {code for code in [*inline, *commands(text)] if re.fullmatch(pattern, code)}
    if len(found) != 1:
        raise SystemExit(f"README.md: expected one command like {pattern!r}, found {sorted(found)}")
    return found.pop()


def page_of_ones_own(token: str, heard: str) -> str:
    """Return the README's page, with the URL for another origin. Its console is sent to `heard`."""
    (script,) = re.findall(r"^```html\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    of_same_origin, of_other_origin = re.findall(r"new EventSource\(\"[^\"]+\" \+ token\)", README)
    assert of_same_origin in script
    console = f'console.log = (text) => fetch("{heard}", {{method: "POST", body: text}})'
    before = f"<!doctype html><script>const token = {json.dumps(token)}; {console}</script>\n"
    return before + str(script.replace(of_same_origin, of_other_origin))


class Heard(NamedTuple):
    installed: float
    first_event: float


class Newcomer:
    """Somebody with a shell in a fresh clone. What was started is ended with the `with` block."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []
        self._folder = tempfile.TemporaryDirectory(prefix="ssehub-newcomer-", ignore_cleanup_errors=True)
        self.clone = Path(self._folder.name) / "ssehub"
        self._begun = time.monotonic()
        self._env = {name: value for name, value in os.environ.items() if not name.startswith("SSEHUB_")}
        self._env |= {"PIP_NO_CACHE_DIR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        for name in ("VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS"):
            self._env.pop(name, None)

    def __enter__(self) -> Newcomer:
        subprocess.run(["git", "clone", "-q", str(ROOT), str(self.clone)], check=True)
        return self

    def __exit__(self, *exc: object) -> None:
        for process in reversed(self._started):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
        self._folder.cleanup()

    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def run(self, command: str) -> str:
        done = subprocess.run(["bash", "-c", command], cwd=self.clone, env=self._env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def start(self, command: str) -> Callable[[], str]:
        """Start `command`, and return a function that returns what it has written so far."""
        log = Path(self._folder.name) / f"log-{len(self._started)}"
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-c", command],
                cwd=self.clone,
                env=self._env,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return lambda: log.read_text(errors="replace")

    def wait_for(self, text: str, output: Callable[[], str], again: Callable[[], object] = lambda: None) -> float:
        """Return the seconds until `output` has `text`, repeating `again` meanwhile."""
        until = time.monotonic() + GIVE_UP_SECONDS
        while text not in output():
            if time.monotonic() > until or any(process.poll() for process in self._started):
                raise SystemExit(f"{text!r} did not come:\n{output()}")
            again()
            time.sleep(AGAIN_SECONDS)
        return self.seconds()


def by_curl(newcomer: Newcomer) -> Heard:
    hub = newcomer.start(printed(r"make run"))
    installed = newcomer.wait_for("listening for browsers", hub)
    listen = newcomer.start(f"{printed(r'TOKEN=.*')}\n{printed(r'curl -N .*')}")
    emit = printed(r"curl -d 'userId=alex.*")
    return Heard(installed, newcomer.wait_for("data: hello", listen, lambda: newcomer.run(emit)))


def in_a_page(newcomer: Newcomer) -> Heard:
    browser = browser_command()
    hub = newcomer.start(printed(r"make run ARGS=\"--cors-origins .*\""))
    installed = newcomer.wait_for("listening for browsers", hub)
    token = newcomer.run(f"{printed(r'TOKEN=.*')}\necho -n $TOKEN")
    with page_server(page_of_ones_own(token, "/heard")) as heard:
        newcomer.start(f"{browser} http://localhost:{PAGE_PORT}/")
        emit = printed(r"curl -d 'userId=alex.*")
        return Heard(installed, newcomer.wait_for("hello", lambda: "\n".join(heard), lambda: newcomer.run(emit)))


def in_fastapi(newcomer: Newcomer) -> Heard:
    text = ast.get_docstring(ast.parse((ROOT / "examples/fastapi_app.py").read_text())) or ""
    serve, login, listen, publish = (line for line in text.split("\n") if re.match(r"(uvicorn|curl) ", line))
    install = [printed(r"pip install '\.\[cli\]'"), printed(r"pip install fastapi", text)]
    newcomer.run(f"python3 -m venv own && . own/bin/activate && {' -q && '.join(install)} -q")
    shell = ". own/bin/activate && cd examples &&"
    server = newcomer.start(f"{shell} {serve}")
    installed = newcomer.wait_for("Application startup complete", server)
    newcomer.run(f"{shell} {login}")
    stream = newcomer.start(f"{shell} {listen}")
    return Heard(installed, newcomer.wait_for('"text":"hi"', stream, lambda: newcomer.run(f"{shell} {publish}")))


WAYS = {"page": in_a_page, "curl": by_curl, "fastapi": in_fastapi}


def browser_command() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            # The sandbox does not work for root; the page is our own.
            return f"{path} --headless --no-sandbox --disable-gpu --no-first-run --user-data-dir=$(mktemp -d)"
    for name in ("firefox-esr", "firefox"):
        if path := shutil.which(name):
            return f"{path} --headless --no-remote --profile $(mktemp -d)"
    raise SystemExit("neither Chromium nor Firefox is installed, which `page` needs: apt-get install chromium")


@contextlib.contextmanager
def page_server(page: str) -> Iterator[list[str]]:
    """Serve `page`, and yield a list of what is POSTed."""
    heard: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(page.encode() if self.path == "/" else b"")

        def do_POST(self) -> None:
            heard.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.answer(b"")

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("localhost", PAGE_PORT), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield heard
        finally:
            server.shutdown()


def tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def require_free_ports() -> None:
    for port in (8000, 8001, PAGE_PORT):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
            raise SystemExit(f"port {port} is in use: stop what uses it, as the README's commands need it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ways", nargs="*", metavar="WAY", help=f"{', '.join(WAYS)}; all of them, if none is named")
    parser.add_argument("--within", type=float, default=120.0, metavar="SECONDS", help="the most that is good (120)")
    options = parser.parse_args()
    for way in options.ways:
        if way not in WAYS:
            parser.error(f"unknown way {way!r}: expected {', '.join(WAYS)}")
    system = platform.freedesktop_os_release()["PRETTY_NAME"]
    tell(f"{system}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}, {os.cpu_count()} CPUs")
    tell("way      listening after   first event after")
    slowest = 0.0
    for name in options.ways or WAYS:
        require_free_ports()
        with Newcomer() as newcomer:
            heard = WAYS[name](newcomer)
        tell(f"{name:8} {heard.installed:13.1f} s {heard.first_event:17.1f} s")
        slowest = max(slowest, heard.first_event)
    if slowest > options.within:
        sys.exit(f"one took longer than {options.within:g} s")


if __name__ == "__main__":
    main()
