"""Programs that publish: each asks for a token and publishes awkward texts, and every event must arrive exactly.

`make clients` runs them; `make clients ARGS=--publish` runs nothing else.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from httpx_sse import connect_sse

from conftest import RunningHub
from node import NODE

from .catalogue import Python

PYTHON = Python()
FOLDER = Path(__file__).parent / "publish"
RESULTS = Path(__file__).parent / "publishing.json"
SECONDS = 120.0
"""In which a program must have published everything."""
TYPE = "größer & 100 % +1"
TEXTS = [
    "plain",
    "Grüße, 漢字, 🎈",
    "a + b & c = d; e # f ? g",
    "100 %, %41, %zz, %",
    "two\nlines\n\nand an empty one",
    "\nbegins and ends with a line end\n",
    "line ends of\r\nWindows and of an\rold Mac",
    "  spaces around  ",
    "\"quotes\", 'quotes', \\backslashes\\, \\n, \\:, \\=",
    "\u2028 and \u0085 and \x0b and \x1c are no line ends",
    "<b>&amp;</b> $HOME `id` ${x}",
    "@file, <file;type=text/html",
    "data: x\nid: 5\n: comment",
    '{"json": [1, null, "é"]}',
    "",
    "x" * 100_000,
    "é" * 500_000,
]


def received(text: str) -> str:
    """Return what a listener receives: line ends of all kinds are `\\n` in an event stream."""
    return re.sub(r"\r\n?", "\n", text)


@dataclass(frozen=True, slots=True)
class Publisher:
    """A program of `publish/`, in one form."""

    tool: str
    """As in the table."""
    form: str
    """The argument of the program, and how the table calls it."""
    how: str
    command: tuple[str, ...]
    needs: tuple[str, ...]
    """Programs without which it cannot run."""
    version: tuple[str, ...]
    """Command that prints the version of the tool."""

    @property
    def name(self) -> str:
        return f"{self.tool}, {self.how}"

    @property
    def asks_for_http2(self) -> bool:
        return self.tool in ("curl --http2", "Java HttpClient, default")

    def missing(self) -> str | None:
        return next((program for program in self.needs if not shutil.which(program)), None)


def _publishers() -> Iterator[Publisher]:
    php = ("php", "-d", "display_errors=stderr")
    curl_of_php = ("php", "-r", "echo curl_version()['version'];")
    forms = {"array": "array", "file": "array with `CURLStringFile`", "string": "`http_build_query`", "json": "JSON"}
    for form, how in forms.items():
        yield Publisher("PHP curl", form, how, (*php, str(FOLDER / "curl.php")), ("php",), curl_of_php)
    for form, how in {"form": "`http_build_query`", "json": "JSON"}.items():
        yield Publisher("PHP streams", form, how, (*php, str(FOLDER / "streams.php")), ("php",), ("php", "--version"))
    for form, how in {"FormData": "`FormData`", "Blob": "`FormData` with a `Blob`"}.items():
        yield _node(form, how)
    for form, how in {"URLSearchParams": "`URLSearchParams`", "json": "JSON"}.items():
        yield _node(form, how)
    for form, how in {
        "data": "`data=`",
        "files": "`files=` without file names",
        "file": "`files=` with a file name",
        "json": "`json=`",
    }.items():
        python, program = PYTHON.command("publish-requests.py")
        yield Publisher(
            "Python requests",
            form,
            how,
            (python, program),
            (),
            (python, "-c", "import requests; print(requests.__version__)"),
        )
    go = str(FOLDER / "build" / "post")
    for form, how in {
        "PostForm": "`PostForm`",
        "multipart": "`multipart.Writer`",
        "file": "`CreateFormFile`",
        "json": "JSON",
    }.items():
        yield Publisher("Go net/http", form, how, (go,), ("go",), ("go", "version"))
    for client, name in {
        "HttpClient": "Java HttpClient, default",
        "HttpClient-1.1": "Java HttpClient, HTTP/1.1",
        "HttpURLConnection": "Java HttpURLConnection",
    }.items():
        for form, how in {"form": "urlencoded", "json": "JSON"}.items():
            java = ("java", "-cp", str(FOLDER / "build"), "Publish")
            yield Publisher(name, f"{client}/{form}", how, java, ("java", "javac"), ("java", "--version"))
    for form, how in {
        "form": "`set_form_data`",
        "multipart": "`set_form`",
        "file": "`set_form` with a file",
        "json": "JSON",
    }.items():
        ruby = ("ruby", str(FOLDER / "net_http.rb"))
        yield Publisher("Ruby Net::HTTP", form, how, ruby, ("ruby",), ("ruby", "--version"))
    for tool, name in {"curl": "curl", "curl2": "curl --http2"}.items():
        for form, how in {
            "urlencoded": "`--data-urlencode`",
            "form": "`--form 'data=<FILE'`",
            "file": "`--form 'data=@FILE'`",
            "json": "JSON",
        }.items():
            yield _command(name, "curl", f"{tool}/{form}", how)
    for form, how in {"form": "`--post-file`, urlencoded", "json": "`--post-file`, JSON"}.items():
        yield _command("wget", "wget", f"wget/{form}", how)
    for form, how in {
        "form": "`--form`",
        "multipart": "`--multipart`",
        "file": "`--multipart`, `data@FILE`",
        "json": "JSON",
    }.items():
        yield _command("httpie", "http", f"http/{form}", how)


def _node(form: str, how: str) -> Publisher:
    command = (str(NODE), "--no-warnings", str(FOLDER / "fetch.mjs"))
    return Publisher("Node fetch", form, how, command, (str(NODE),), (str(NODE), "--version"))


def _command(name: str, program: str, form: str, how: str) -> Publisher:
    command = (sys.executable, str(FOLDER / "command.py"))
    return Publisher(name, form, how, command, (program,), (program, "--version"))


PUBLISHERS = list(_publishers())


class Recorder:
    """Forwards connections to a port on loopback, and keeps the requests."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.requests: list[bytearray] = []
        """What was sent on each connection."""
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def sent(self, header: str) -> list[str]:
        """Return the values of a header of all requests, each once."""
        pattern = re.compile(rf"^{header}: *([^\r;]+)".encode(), re.I | re.M)
        return sorted({value.decode() for request in self.requests for value in pattern.findall(request)})

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                thread = threading.Thread(target=self._connect, args=(client,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _connect(self, client: socket.socket) -> None:
        request = bytearray()
        self.requests.append(request)
        with client, socket.create_connection(("127.0.0.1", self._target), 5) as server:
            server.settimeout(None)
            answers = threading.Thread(target=_forward, args=(server, client, bytearray()), daemon=True)
            answers.start()
            _forward(client, server, request)
            answers.join()


def _forward(source: socket.socket, target: socket.socket, record: bytearray) -> None:
    """Forward until `source` ends, then end both."""
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            record += data
            target.sendall(data)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True, slots=True)
class Outcome:
    text: str
    is_fine: bool
    sends: str
    """Content types, and a header that asks for HTTP/2."""
    details: tuple[str, ...] = ()


_channels = itertools.count()


def publish(hub: RunningHub, publisher: Publisher) -> Outcome:
    """Run the program for a channel of its own, then listen with its token, from the first event on."""
    channel = f"Räume & 100 % +{next(_channels)}"
    recorder = Recorder(hub.control_port)
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = []
            for index, text in enumerate(TEXTS):
                files.append(str(Path(folder) / f"{index}.txt"))
                Path(files[-1]).write_bytes(text.encode())
            done = subprocess.run(
                [*publisher.command, recorder.url, publisher.form, channel, TYPE, *files],
                capture_output=True,
                text=True,
                encoding="utf-8",
                timeout=SECONDS,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
                cwd=folder,
            )
    finally:
        recorder.close()
    sends = ", ".join(recorder.sent("content-type") + [f"`Upgrade: {value}`" for value in recorder.sent("upgrade")])
    token, _, rest = done.stdout.partition("\n")
    if done.returncode or rest.strip():
        return Outcome("error", False, sends, (f"exit code {done.returncode}", done.stderr[-2000:], rest[-500:]))
    expected = [(TYPE, received(text)) for text in TEXTS]
    heard = _listen(hub, token, len(expected))
    wrong = [f"sent {a!r:.200}, received {b!r:.200}" for a, b in zip(expected, heard, strict=False) if a != b]
    if heard == expected:
        return Outcome("all exact", True, sends)
    return Outcome(f"{len(wrong)} altered, {len(expected) - len(heard)} missing", False, sends, tuple(wrong))


def _listen(hub: RunningHub, token: str, count: int) -> list[tuple[str, str]]:
    """Return the first `count` events, fewer if there are none for a while."""
    heard: list[tuple[str, str]] = []
    parameters = {"token": token, "since": "earliest"}
    with (
        httpx.Client(timeout=10) as client,
        connect_sse(client, "GET", f"{hub.url}/events/", params=parameters) as source,
        contextlib.suppress(httpx.ReadTimeout),
    ):
        source.response.raise_for_status()
        for event in source.iter_sse():
            if not event.event.startswith("stream-"):
                heard.append((event.event, event.data))
            if len(heard) == count:
                break
    return heard


def install(publishers: Sequence[Publisher]) -> None:
    """Build the programs that have to be built."""
    tools = {publisher.tool for publisher in publishers if not publisher.missing()}
    build = FOLDER / "build"
    build.mkdir(exist_ok=True)
    if "Python requests" in tools:
        PYTHON.install()
    if "Go net/http" in tools:
        subprocess.run(["go", "build", "-o", "build/post", "post.go"], cwd=FOLDER, check=True, timeout=300)
    if any(tool.startswith("Java") for tool in tools):
        javac = ["javac", "-encoding", "UTF-8", "-d", str(build), "Publish.java"]
        subprocess.run(javac, cwd=FOLDER, check=True, timeout=300)


def run_all(publishers: Sequence[Publisher] = PUBLISHERS) -> list[tuple[Publisher, Outcome]]:
    """Run the programs one after the other, and print the outcomes. Those whose tool is missing are skipped by name."""
    install(publishers)
    done = []
    hub = RunningHub()
    try:
        for publisher in publishers:
            if missing := publisher.missing():
                _say(f"{publisher.name:50} skipped: {missing} is missing")
                continue
            outcome = publish(hub, publisher)
            _say(f"{publisher.name:50} {outcome.text:10} {outcome.sends}", *outcome.details)
            done.append((publisher, outcome))
    finally:
        hub.stop()
    return done


def save(done: Sequence[tuple[Publisher, Outcome]]) -> None:
    """Keep the results, with those of earlier runs for programs that were skipped."""
    found = load()
    today = datetime.now(UTC).date().isoformat()
    for publisher, outcome in done:
        found[publisher.name] = {
            "version": _version(publisher),
            "sends": outcome.sends,
            "text": outcome.text,
            "fine": outcome.is_fine,
            "date": today,
        }
    kept = {publisher.name: found[publisher.name] for publisher in PUBLISHERS if publisher.name in found}
    RESULTS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def load() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def problems() -> list[str]:
    """Return what is wrong with the latest results: every event must have arrived as it was sent."""
    found = load()
    missing = [f"{publisher.name}: it has not been run" for publisher in PUBLISHERS if publisher.name not in found]
    return missing + [f"{name}: {entry['text']}" for name, entry in found.items() if not entry["fine"]]


def table() -> str:
    """Return the table of docs/clients.md, from the latest results."""
    found = load()
    rows = ["| tool | version | how | sends | result |", "|---|---|---|---|---|"]
    for publisher in PUBLISHERS:
        if entry := found.get(publisher.name):
            result = "✓" if entry["fine"] else entry["text"]
            rows.append(f"| {publisher.tool} | {entry['version']} | {publisher.how} | {entry['sends']} | {result} |")
    return "\n".join(rows)


def _version(publisher: Publisher) -> str:
    output = subprocess.run(publisher.version, capture_output=True, text=True, check=True, timeout=60).stdout
    found = re.search(r"\d+(\.\d+)+", output)
    assert found, output
    return found[0]


def _say(*lines: str) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
