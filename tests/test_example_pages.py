"""The pages of examples/htmx, examples/turbo and examples/datastar, in Chromium, while their hub and network fail.

The backends count, so that a page must show consecutive numbers. All pages share one hub, behind a proxy that can cut
their streams.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from playwright.sync_api import Browser, Page, Request

from cdn import DATASTAR_WHEEL, serve_libraries
from conftest import RunningHub, free_port, report, require, wait_until
from node import NODE_MODULES
from proxy import Proxy

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

EXAMPLES = Path(__file__).parent.parent / "examples"
PATHS = {"htmx": ("/htmx2", "/htmx4"), "turbo": ("/",), "datastar": ("/", "/beta")}
ITEM = re.compile(r"<li>(\d+)</li>")
RETRY_MILLISECONDS = 300
"""How long clients wait before they reconnect."""
CAUGHT_UP = """newest => {
  const numbers = [...document.querySelectorAll("#numbers li")].map(item => Number(item.textContent));
  const isConnected = document.getElementById("status").textContent == "connected";
  return isConnected && numbers.at(-1) >= newest && numbers;
}"""
"""The numbers of a page, if it is connected and shows `newest`."""
WAIT_SECONDS = 60


class Address(NamedTuple):
    name: str
    url: str


class LivePage:
    """A page of an example, and how often it has loaded its state again."""

    def __init__(self, page: Page, address: Address) -> None:
        self.name, self.url = address
        self.reloads = 0
        self._page = page
        page.goto(self.url, wait_until="commit")

    def start(self) -> None:
        """Wait until the page shows what is published, and count reloads from now on."""
        self.catch_up()
        self._page.on("request", self._count)

    def _count(self, request: Request) -> None:
        self.reloads += self._is_own(request.url)

    def _is_own(self, url: str) -> bool:
        return url.split("?")[0] == self.url

    def newest(self) -> int:
        """Return the newest number of the backend, as soon as the backend reaches the hub."""
        found: list[str] = []

        def is_found() -> bool:
            answer = httpx.get(self.url, timeout=20)
            found[:] = ITEM.findall(answer.text) if answer.status_code == 200 else []
            return bool(found)

        wait_until(is_found, 30)
        return int(found[-1])

    def catch_up(self) -> list[int]:
        """Wait until the page shows what the backend has published, and more. Return the numbers that it shows."""
        caught_up = self._page.wait_for_function(CAUGHT_UP, arg=self.newest() + 2, timeout=WAIT_SECONDS * 1000)
        numbers: list[int] = caught_up.json_value()
        return numbers

    def wait_for_reload(self) -> None:
        end = time.monotonic() + WAIT_SECONDS
        while not self.reloads:
            assert time.monotonic() < end, f"{self.name} did not load its state again within {WAIT_SECONDS} s"
            self._page.wait_for_timeout(50)  # in which Playwright calls _count

    def fail_next_loads(self) -> None:
        """Answer the next request for the page with an error, and the one after it not at all."""
        self._page.route(self._is_own, lambda route: route.abort(), times=1)
        self._page.route(self._is_own, lambda route: route.fulfill(status=503, body="The backend is busy."), times=1)


class World:
    """A hub that can be stopped and started again on the same ports, and the examples' backends."""

    def __init__(self, folder: Path, token_seconds: int) -> None:
        self._stack = ExitStack()
        self._log = folder / "log.db"
        port, control_port = free_port(), free_port()
        ports = {name: free_port() for name in PATHS}
        origins = ",".join(f"http://127.0.0.1:{number}" for number in ports.values())
        self._arguments = [
            *("--bind", f"127.0.0.1:{port}", "--control-bind", f"127.0.0.1:{control_port}"),
            *("--cors-origins", origins, "--broker", f"sqlite:///{self._log}"),
            *("--drain-seconds", "1", "--retry-milliseconds", str(RETRY_MILLISECONDS)),
        ]
        self.hub = RunningHub(*self._arguments)
        self._stack.callback(lambda: self.hub.stop())
        self.proxy = self._stack.enter_context(Proxy(port))
        for name, number in ports.items():
            variables = {
                **{"PORT": str(number), "HUB_PORT": str(self.proxy.port), "CONTROL_PORT": str(control_port)},
                **{"SECONDS": "0.1", "TOKEN_SECONDS": str(token_seconds)},
            }
            backend = subprocess.Popen(
                [sys.executable, str(EXAMPLES / name), "--without-hub"],
                env={**os.environ, **variables},
            )
            self._stack.callback(backend.wait, 20)
            self._stack.callback(backend.terminate)
        self.addresses = [
            Address(f"{name} {path}", f"http://127.0.0.1:{ports[name]}{path}")
            for name, paths in PATHS.items()
            for path in paths
        ]

    def start_hub(self, *, secret: str | None = None) -> None:
        self.hub.stop()
        self.hub = RunningHub(*self._arguments, env=None if secret is None else {"SSEHUB_SECRET": secret})

    def kill_hub(self) -> None:
        self.hub.process.kill()
        self.hub.wait()

    def delete_log(self) -> None:
        for path in self._log.parent.glob(f"{self._log.name}*"):
            path.unlink()

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("examples"), token_seconds=3600)
    yield world
    world.close()


@pytest.fixture
def pages(browser: Browser, world: World) -> Iterator[list[LivePage]]:
    with opened(browser, world) as pages:
        yield pages


@contextmanager
def opened(browser: Browser, world: World) -> Iterator[list[LivePage]]:
    """All pages of the examples."""
    require((NODE_MODULES / "htmx4").exists(), "the npm package htmx.org")
    require(DATASTAR_WHEEL.exists(), "Datastar 1.0, from the Python package starhtml")
    for address in world.addresses:
        wait_until(partial(answers, address.url), 30)
    # A browser opens six connections to a hub: a context of its own for each page.
    contexts = [browser.new_context() for _ in world.addresses]
    for context in contexts:
        serve_libraries(context)
    pages = [LivePage(context.new_page(), address) for context, address in zip(contexts, world.addresses, strict=True)]
    for page in pages:
        page.start()
    yield pages
    for context in contexts:
        context.close()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=20).status_code in (200, 503)
    except httpx.TransportError:
        return False


def check_every_number_once(pages: list[LivePage]) -> None:
    """Wait until all pages have caught up. Each must show consecutive numbers."""
    for page in pages:
        gaps = [pair for pair in itertools.pairwise(page.catch_up()) if pair[1] != pair[0] + 1]
        assert not gaps, f"{page.name}: the second of these numbers came after the first: {gaps}"


def wait_for_reloads(pages: list[LivePage]) -> None:
    for page in pages:
        page.wait_for_reload()


@pytest.mark.soak
def test_pages_hear_every_number_once_after_a_drain_and_a_crash_and_heal_a_gap(
    world: World, pages: list[LivePage]
) -> None:
    world.hub.signal()
    assert world.hub.wait() == 0
    world.start_hub()
    check_every_number_once(pages)
    world.kill_hub()
    world.start_hub()
    check_every_number_once(pages)
    assert not [page.name for page in pages if page.reloads]

    world.kill_hub()
    world.delete_log()
    world.start_hub()
    wait_for_reloads(pages)
    check_every_number_once(pages)


@pytest.mark.soak
@pytest.mark.only_soak
def test_pages_heal_when_their_tokens_are_refused_and_their_backend_fails(world: World, pages: list[LivePage]) -> None:
    for page in pages:
        page.fail_next_loads()

    world.kill_hub()
    world.start_hub(secret="another secret, with which no old token is valid")

    wait_for_reloads(pages)
    check_every_number_once(pages)


@pytest.mark.soak
@pytest.mark.only_soak
def test_pages_get_a_new_token_before_the_old_one_expires(browser: Browser, tmp_path: Path) -> None:
    with closing(World(tmp_path, token_seconds=6)) as world, opened(browser, world) as pages:
        for _ in range(5):
            for page in pages:
                page.reloads = 0
            wait_for_reloads(pages)

        check_every_number_once(pages)


@pytest.mark.soak
@pytest.mark.only_soak
def test_pages_hear_every_number_once_however_often_their_streams_are_cut(world: World, pages: list[LivePage]) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    rounds = 200
    for _ in range(rounds):
        world.proxy.cut_after(chance.randrange(1, 2_000))
        wait_until(lambda: world.proxy.has_cut, 60)
    world.proxy.cut()

    check_every_number_once(pages)
    report(f"example pages: seed {seed}, {rounds} cuts, reloads { ({page.name: page.reloads for page in pages}) }")
