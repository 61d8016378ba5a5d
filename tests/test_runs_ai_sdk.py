"""The npm package ai: a chat whose stream is cut or drained gets the whole message from a run, by reconnecting."""

from __future__ import annotations

import json
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from conftest import RunningHub, StartHub, free_port, report, require, wait_until
from node import CHAT, NODE, NODE_MODULES
from proxy import Proxy
from ssehub import Publisher

pytestmark = pytest.mark.e2e

WORDS = [f"word{number} " for number in range(150)]
PER_SECOND = 100


@pytest.fixture(scope="module", autouse=True)
def ai() -> None:
    require(NODE.exists() and (NODE_MODULES / "ai").exists(), "node with the npm package ai")


def chunks(words: list[str] = WORDS) -> list[dict[str, str]]:
    """Return a message in the stream protocol of the package."""
    deltas = [{"type": "text-delta", "id": "t", "delta": word} for word in words]
    return [
        {"type": "start", "messageId": "m"},
        {"type": "text-start", "id": "t"},
        *deltas,
        {"type": "text-end", "id": "t"},
        {"type": "finish"},
    ]


@contextmanager
def redirecting(location: str) -> Iterator[str]:
    """Run a backend that answers every POST with 303 to `location`; yield its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(303)
            self.send_header("Location", location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api/chat"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class World:
    """A hub behind a proxy that can cut, and the run `answer`, which a thread writes."""

    def __init__(self, hub: RunningHub, stack: ExitStack) -> None:
        self.hub = hub
        self._stack = stack
        self.proxy = stack.enter_context(Proxy(hub.port))
        query = {"run": "answer", "dialect": "ai-sdk", "token": hub.token(exp=3600)}
        self.stream = f"http://127.0.0.1:{self.proxy.port}/events/?{urlencode(query)}"
        self._api = stack.enter_context(redirecting(f"{self.stream}&wait=20"))

    def write(self, events: list[dict[str, str]]) -> threading.Thread:
        """Write the events into the run, in a thread, and end it."""
        thread = threading.Thread(target=self._write, args=(events,))
        self._stack.callback(thread.join, 60)
        thread.start()
        return thread

    def _write(self, events: list[dict[str, str]]) -> None:
        with (
            Publisher(self.hub.control_url) as publisher,
            publisher.run("answer", channel="chat", user_id="alex") as run,
        ):
            for event in events:
                run.append(data=event)
                time.sleep(1 / PER_SECOND)

    def create(self, **fields: Any) -> None:
        body = {"channel": "chat", "userId": "alex", **fields}
        httpx.put(f"{self.hub.control_url}/runs/answer", json=body).raise_for_status()

    def append(self, events: list[dict[str, str]], **query: str) -> None:
        lines = "".join(json.dumps({"data": event}) + "\n" for event in events)
        headers = {"Content-Type": "application/x-ndjson"}
        url = f"{self.hub.control_url}/runs/answer"
        httpx.post(url, params=query, content=lines, headers=headers).raise_for_status()

    def post(self, call: str, **fields: Any) -> None:
        httpx.post(f"{self.hub.control_url}/runs/answer/{call}", json=fields).raise_for_status()

    def chat(self, *, resume: bool = False, query: str = "") -> subprocess.Popen[str]:
        command = [str(NODE), str(CHAT), self._api, self.stream + query, *(["resume"] if resume else [])]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._stack.callback(process.kill)
        return process

    def wait_for_watcher(self) -> None:
        self.hub.wait_for("ssehub_subscribers", 1)


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    result: dict[str, Any] = json.loads(printed)
    return result


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def world(start_hub: StartHub, stack: ExitStack) -> World:
    return World(start_hub(), stack)


def test_chat_that_is_cut_in_the_middle_gets_the_whole_message(world: World) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    chat = world.chat(query="&ended=replay")  # the run may end before the client is back
    writer = world.write(chunks())
    cuts = 0
    while writer.is_alive():
        world.proxy.cut_after(chance.randrange(100, 12_000 if cuts else 3_000))
        wait_until(lambda: world.proxy.has_cut or not writer.is_alive(), 30)
        cuts += world.proxy.has_cut

    result = result_of(chat)

    report(f"ai: seed {seed}, {cuts} cuts, {result['resumes']} resumes")
    assert (result["text"], result["status"]) == (["".join(WORDS)], "ready"), result
    assert result["resumes"] >= 1


def test_chat_that_is_drained_gets_the_whole_message_from_the_hub_that_follows(
    start_hub: StartHub, stack: ExitStack, tmp_path: Path
) -> None:
    ports = free_port(), free_port()
    binds = ("--bind", f"127.0.0.1:{ports[0]}", "--control-bind", f"127.0.0.1:{ports[1]}")
    arguments = (*binds, "--broker", f"sqlite:///{tmp_path / 'runs.db'}", "--drain-seconds", "2")
    world = World(start_hub(*arguments), stack)
    chat = world.chat(query="&ended=replay")
    world.write(chunks())
    world.wait_for_watcher()

    world.hub.signal()
    assert world.hub.wait() == 0
    world.hub = start_hub(*arguments)
    result = result_of(chat)

    assert (result["text"], result["status"]) == (["".join(WORDS)], "ready"), result
    assert result["resumes"] >= 1


def test_chat_shows_the_error_of_a_run_that_failed(world: World) -> None:
    world.create()
    world.append(chunks()[:5])
    chat = world.chat()
    world.wait_for_watcher()

    world.post("finish", error="the model is overloaded")
    result = result_of(chat)

    assert (result["status"], result["error"]) == ("error", "the model is overloaded")
    assert (result["text"], result["resumes"]) == (["".join(WORDS[:3])], 0)


def test_chat_knows_that_a_run_was_stopped(world: World) -> None:
    world.create()
    world.append(chunks()[:5])
    chat = world.chat()
    world.wait_for_watcher()

    world.post("stop")
    result = result_of(chat)

    assert (result["status"], result["text"], result["resumes"]) == ("ready", ["".join(WORDS[:3])], 0)


def test_chat_resumes_nothing_after_the_end_unless_it_asks_for_all_of_it(world: World) -> None:
    world.create()
    world.append(chunks(), finish="done")

    nothing = result_of(world.chat(resume=True))
    everything = result_of(world.chat(resume=True, query="&ended=replay"))

    assert (nothing["text"], nothing["status"]) == ([], "ready")
    assert (everything["text"], everything["status"]) == (["".join(WORDS)], "ready")


def test_end_of_a_provider_is_not_sent_twice_to_a_chat(world: World) -> None:
    world.create()
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks()) + "data: [DONE]\n\n"
    url, headers = f"{world.hub.control_url}/runs/answer?finish=done", {"Content-Type": "text/event-stream"}
    httpx.post(url, content=body, headers=headers).raise_for_status()

    response = httpx.get(f"{world.stream}&ended=replay")
    result = result_of(world.chat(resume=True, query="&ended=replay"))

    assert response.text.count("[DONE]") == 1
    assert response.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert {line.partition(":")[0] for line in response.text.split("\n")} == {"data", ""}
    assert (result["text"], result["status"]) == (["".join(WORDS)], "ready"), result
