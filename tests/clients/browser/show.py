"""Show a page in Chromium, and print what it reports: `python show.py PAGE URL TYPES`.

A server on loopback serves the page, and below /modules/ the npm packages of the folder `node`. The page's script finds
URL and TYPES in `location.hash`, and reports with `report(line)`.
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import Error, sync_playwright

HERE = Path(__file__).parent
MODULES = HERE.parent / "node" / "node_modules"
CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


class Site(BaseHTTPRequestHandler):
    """Serves pages and modules. A module without a suffix is a file in `.js`, as bundlers resolve it."""

    def do_GET(self) -> None:
        is_module = self.path.startswith("/modules/")
        file = MODULES / self.path.removeprefix("/modules/") if is_module else HERE / self.path.lstrip("/")
        if is_module and not file.suffix:
            file = file.with_suffix(".js")
        self.send_response(200 if file.is_file() else 404)
        self.send_header("Content-Type", "text/javascript" if is_module else "text/html; charset=utf-8")
        self.end_headers()
        if file.is_file():
            self.wfile.write(file.read_bytes())

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def complain(error: Error) -> None:
    sys.stderr.write(f"{error}\n")


def report(line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main(page_name: str, url: str, types: str) -> None:
    site = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.expose_function("report", report)
        page.on("pageerror", complain)
        argument = quote(json.dumps([url, types.split(",")]))
        page.goto(f"http://127.0.0.1:{site.server_port}/{page_name}#{argument}")
        page.wait_for_function("window.hasEnded", timeout=0)


main(*sys.argv[1:])
