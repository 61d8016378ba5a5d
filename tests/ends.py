"""How streams end behind proxies, and what browsers make of it: `make browsers` writes the table of docs/proxies.md.

Every browser opens a stream on every path with every kind of end, all in one page. The hub ends each stream after two
seconds, as it ends one at its maximum lifetime, and the browser has to come back twice.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from browsers import BROWSERS
from conftest import RunningHub
from reverse_proxies import PAGE, PROXIES, Place, printed, program, running_proxy
from tap import Tap, Visit, tapped

ENDS = ("clean", "cut", "auto")
RETURNS = 2
BACK_SECONDS = 30.0
"""How long a browser may take to return as often."""
CURLS = 5
VERSION_OPTIONS = {"caddy": "version"}
MARKS = ("<!-- make browsers: begin -->", "<!-- make browsers: end -->")
LISTEN = """
window.streams = {};
for (const [name, url] of URLS) {
  const stream = window.streams[name] = {numbers: [], resets: 0};
  const source = new EventSource(url);
  source.onmessage = event => stream.numbers.push(Number(event.data));
  source.addEventListener("stream-reset", () => stream.resets++);
}
"""


@dataclass(frozen=True)
class Way:
    """A path from a browser to the hub."""

    name: str
    http: str
    url: str
    place: Place | None = None

    def stream_name(self, client: str, end: str) -> str:
        return re.sub(r"\W+", "-", f"{client} {self.name} {self.http} {end}")

    def stream_url(self, client: str, end: str, token: str) -> str:
        chosen = "" if end == "auto" else f"&end={end}"
        return f"{self.url}/events/?token={token}{chosen}&name={self.stream_name(client, end)}"

    def log_lines(self) -> int:
        return 0 if self.place is None else self.place.log.read_text().count("\n")


def configurations() -> dict[str, tuple[str, str]]:
    """Return the configurations to try: by name, the server and its text."""
    nginx, haproxy = printed("nginx"), printed("haproxy")
    default = re.sub(r' *proxy_(http_version 1\.1|set_header Connection "");\n', "", nginx)
    assert default.count("\n") == nginx.count("\n") - 2
    return {
        "nginx": ("nginx", nginx),
        "nginx, HTTP/1.0 to the hub": ("nginx", default),
        "Apache": ("apache", printed("apache")),
        "HAProxy, `option httplog`": (
            "haproxy",
            haproxy.replace("mode http\n", "mode http\n    log global\n    option httplog\n"),
        ),
        "Caddy": ("caddy", printed("caddy")),
    }


@contextmanager
def running_ways(tap: Tap, control_port: int, folder: Path) -> Iterator[list[Way]]:
    """Start the proxies that are installed; yield the ways to the hub."""
    with ExitStack() as stack:
        ways = [Way("direct", "1.1", f"http://localhost:{tap.port}")]
        for number, (name, (server, text)) in enumerate(configurations().items()):
            if program(server) is None:
                say(f"{name}: not installed, left out")
                continue
            place = stack.enter_context(running_proxy(server, tap.port, control_port, folder / str(number), text))
            ways.append(Way(name, "1.1", f"http://localhost:{place.plain_port}", place))
            ways.append(Way(name, "2", f"https://localhost:{place.tls_port}", place))
        yield ways


@contextmanager
def publishing(hub: RunningHub) -> Iterator[None]:
    """Publish increasing numbers, five a second."""
    stopped = threading.Event()

    def publish() -> None:
        number = 0
        with httpx.Client() as http:
            while not stopped.wait(0.2):
                number += 1
                event = {"userId": "*", "channel": "chat", "data": str(number)}
                http.post(f"{hub.control_url}/emit/", json=event).raise_for_status()

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def try_browser(browser: str, ways: Sequence[Way], tap: Tap, token: str) -> tuple[str, dict[Way, str]]:
    """Return the browser's version and, for each way, what it made of the ends."""
    urls = {way.stream_name(browser, end): way.stream_url(browser, end, token) for way in ways for end in ENDS}
    with BROWSERS[browser].run() as tab:
        tab.go(f"http://localhost:{tap.port}/page")
        tab.run(LISTEN.replace("URLS", str([list(item) for item in urls.items()])))
        deadline = time.monotonic() + BACK_SECONDS
        while time.monotonic() < deadline and not all(_is_back(tap.visits[name]) for name in urls):
            time.sleep(0.1)
        streams = tab.run("return window.streams;")
        version = f"{browser} {tab.version}"
    return version, {way: _summary(browser, way, tap.visits, streams) for way in ways}


def _is_back(visits: Sequence[Visit]) -> bool:
    return len(visits) > RETURNS and visits[RETURNS].last_id is not None


def _summary(browser: str, way: Way, visits: Mapping[str, Sequence[Visit]], streams: Mapping[str, Any]) -> str:
    names = {end: way.stream_name(browser, end) for end in ENDS}
    faults = {end: _faults(end, visits[name], streams[name]) for end, name in names.items()}
    return "; ".join(f"{end}: {', '.join(found)}" for end, found in faults.items() if found) or "back"


def _faults(end: str, visits: Sequence[Visit], stream: Mapping[str, Any]) -> list[str]:
    if not visits:
        return ["never opened"]
    faults = []
    if len(visits) <= RETURNS:
        faults.append(f"returned {len(visits) - 1} of {RETURNS} times")
    numbers = stream["numbers"]
    if stream["resets"] or not numbers or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        faults.append("events lost or repeated")
    returns = list(pairwise(visits))
    if any(visit.cursor is None for visit in visits[1:]):
        faults.append("no `Last-Event-ID`")
    if not all(_keeps_retry(before, then) for before, then in returns):
        faults.append("`retry:` not kept")
    if any(before.is_clean != (end != "cut") for before, _ in returns if before.may_be_cut):
        faults.append("the hub chose another end")
    return faults


def _keeps_retry(before: Visit, then: Visit) -> bool:
    if before.ended is None or before.retry_seconds is None:
        return False
    return -0.1 <= then.began - before.ended - before.retry_seconds <= 1.5


def try_curl(ways: Sequence[Way], end: str, tap: Tap, token: str) -> dict[Way, tuple[str, float]]:
    """Return, for each way, how an end arrives at curl, and how many lines the proxy logs for it.

    No two of `ways` may have the same proxy.
    """
    lines = {way: way.log_lines() for way in ways}
    running = {way: [_curl(way, end, token) for _ in range(CURLS)] for way in ways}
    codes = {way: {process.wait() for process in processes} for way, processes in running.items()}
    time.sleep(0.5)  # for the logs
    return {way: (_arrival(codes[way]), (way.log_lines() - lines[way]) / CURLS) for way in ways}


def _curl(way: Way, end: str, token: str) -> subprocess.Popen[bytes]:
    version = "--http2" if way.http == "2" else "--http1.1"
    command = ["curl", "-skN", "-m", "15", version, way.stream_url("curl", end, token)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def _arrival(codes: set[int]) -> str:
    """`codes` are those that curl exits with: 18 without the last chunk, 92 if an HTTP/2 stream is reset."""
    return " or ".join(sorted({0: "clean", 18: "cut", 92: "cut", 28: "no end"}.get(code, f"{code}") for code in codes))


def measure(names: Sequence[str]) -> str:
    """Return the table, and what it was measured with."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ssehub-ends-")))
        folder.chmod(0o755)
        hub = RunningHub("--stream-lifetime-seconds", "2", "--cors-origins", "*")
        stack.callback(hub.stop)
        stack.enter_context(publishing(hub))
        tap = stack.enter_context(tapped(hub.port))
        ways = stack.enter_context(running_ways(tap, hub.control_port, folder))
        token = hub.token()
        arrivals: dict[str, dict[Way, tuple[str, float]]] = {"clean": {}, "cut": {}}
        for end, found in arrivals.items():
            for http in ("1.1", "2"):
                found |= try_curl([way for way in ways if way.http == http], end, tap, token)
        results = {name: try_browser(name, ways, tap, token) for name in names}
    rows = [
        [
            way.name,
            way.http,
            arrivals["cut"][way][0],
            f"{arrivals['clean'][way][1]:g}, {arrivals['cut'][way][1]:g}" if way.place else "none",
            *[cells[way] for _, cells in results.values()],
        ]
        for way in ways
    ]
    table = _table(["path", "HTTP", "a cut arrives as", "log lines of a clean end, of a cut", *names], rows)
    versions = [*_server_versions(), *[version for version, _ in results.values()]]
    said = f"Measured on {datetime.now(UTC):%Y-%m-%d} with {', '.join(versions)}."
    return f"{table}\n\n{textwrap.fill(said, 120)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _server_version(program: str, option: str) -> str:
    result = subprocess.run([program, option], capture_output=True, text=True, timeout=60)
    found = re.search(r"\d+(?:\.\d+)+", result.stdout + result.stderr)
    assert found, f"{program} {option} prints no version"
    return found[0]


def _server_versions() -> list[str]:
    programs = {name: binary for name in PROXIES if (binary := program(name))}
    return [f"{name} {_server_version(path, VERSION_OPTIONS.get(name, '-v'))}" for name, path in programs.items()]


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> None:
    if not shutil.which("curl"):
        sys.exit("curl is missing: install it")
    names = [name for name, browser in BROWSERS.items() if browser.is_installed()]
    for name in BROWSERS.keys() - names:
        say(f"{name}: not installed, left out")
    found = measure(names)
    say(found)
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{found}\n\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main()
