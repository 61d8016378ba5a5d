"""examples/llm, and the first page of docs/runs.md, in Chromium: reload, a second tab, stop, the death of the hub."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, Route, expect

from code_blocks import block_with
from conftest import connects, free_port, wait_until

pytestmark = pytest.mark.e2e

EXAMPLE = Path(__file__).parent.parent / "examples" / "llm"
RUNS = EXAMPLE.parent.parent / "docs" / "runs.md"
SCREENSHOTS = os.environ.get("LLM_SCREENSHOTS")
QUESTION = "Why do streams need an end?"
WORDS_PER_SECOND = 200
SECONDS = 30_000
"""How long Playwright waits for an answer that takes about two seconds, in milliseconds."""
QUIET = 4_000
"""How long it is watched that a browser does not ask again, in milliseconds: it would come back after 3 s."""
CLOSED = 2
"""The `readyState` of an EventSource that does not connect again."""

_spec = importlib.util.spec_from_file_location("llm_model", EXAMPLE / "model.py")
assert _spec and _spec.loader
model = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(model)


def text_of(attempt: int = 0) -> str:
    return str(model.text_of(QUESTION, attempt))


WAITING_MODEL = """
import asyncio, runpy, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import model

write = model.answer

async def answer(question, attempt):
    number = 0
    async for word in write(question, attempt):
        yield word
        number += 1
        while number > 100 and not Path("go").exists():
            await asyncio.sleep(0.01)

model.answer = answer
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""
"""Runs the example with a model that waits behind its 100th word until the file `go` is there.

So what a test does "in the middle of the answer" is done there on a slow machine, too.
"""


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[str]:
    ports = {name: str(free_port()) for name in ("LLM_PORT", "LLM_HUB_PORT", "LLM_CONTROL_PORT")}
    command = [sys.executable, "-c", WAITING_MODEL, str(EXAMPLE), *arguments]
    environment = {**os.environ, **ports, "LLM_WORDS_PER_SECOND": str(WORDS_PER_SECOND)}
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    try:
        names = ports if arguments else ["LLM_PORT"]
        wait_until(lambda: all(connects(int(ports[name])) for name in names) or process.poll() is not None, 20)
        yield f"http://127.0.0.1:{ports['LLM_PORT']}"
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (0, -signal.SIGINT)
        assert not any(connects(int(port)) for port in ports.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of the example."""
    return tmp_path_factory.mktemp("llm")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with running(folder) as url:
        yield url


@pytest.fixture
def go(folder: Path) -> Path:
    """The file that lets the model write its answer to the end."""
    file = folder / "go"
    file.unlink(missing_ok=True)
    return file


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 900, "height": 760})
    yield context
    context.close()


def ask(page: Page, url: str) -> None:
    page.goto(url)
    page.get_by_label("Your question").fill(QUESTION)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("article")).to_have_attribute("data-state", "open")


def wait_for_words(page: Page, count: int) -> None:
    page.wait_for_function(f"answers.size && [...answers.values()].at(-1).words >= {count}")


def expect_whole(page: Page, attempt: int = 0) -> None:
    expect(page.locator("article")).to_have_attribute("data-state", "done", timeout=SECONDS)
    assert page.locator(".text").evaluate("element => element.textContent") == text_of(attempt)


def test_every_word_is_there_once_after_a_reload_and_the_browser_stops_asking(
    context: BrowserContext, url: str, go: Path
) -> None:
    page, second = context.new_page(), context.new_page()
    second.goto(url)
    ask(page, url)
    wait_for_words(page, 60)
    requests: list[Request] = []
    page.on("request", lambda request: requests.append(request) if "run=" in request.url else None)

    page.reload()
    wait_for_words(page, 60)
    screenshot(page, "writing")
    assert page.locator("article").get_attribute("data-state") == "open"
    page.reload()
    go.touch()
    expect_whole(page)
    expect_whole(second)  # it has joined by the announcement

    assert len(requests) == 2
    assert page.evaluate("[...answers.values()].map(answer => answer.source.readyState)") == [CLOSED]
    screenshot(page, "done")


@pytest.mark.soak
def test_browser_does_not_ask_again_seconds_after_the_end(context: BrowserContext, url: str, go: Path) -> None:
    page = context.new_page()
    requests: list[Request] = []
    page.on("request", lambda request: requests.append(request) if "run=" in request.url else None)
    ask(page, url)
    go.touch()
    expect_whole(page)

    page.wait_for_timeout(QUIET)

    assert len(requests) == 1


def test_finished_answer_is_there_when_the_page_loads_again(context: BrowserContext, url: str, go: Path) -> None:
    page = context.new_page()
    ask(page, url)
    go.touch()
    expect_whole(page)

    page.reload()

    expect_whole(page)


@pytest.mark.usefixtures("go")
def test_question_that_is_asked_before_the_page_has_its_token_is_answered(context: BrowserContext, url: str) -> None:
    page = context.new_page()
    held: list[Route] = []
    page.route("**/state", lambda route: route.continue_() if held else held.append(route))
    page.goto(url)
    page.get_by_label("Your question").fill(QUESTION)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_timeout(200)

    held[0].continue_()

    expect(page.locator("article")).to_have_attribute("data-state", "open")


def test_stopped_answer_has_stopped_in_every_tab_and_asking_again_replaces_it(
    context: BrowserContext, url: str, go: Path
) -> None:
    page, second = context.new_page(), context.new_page()
    second.goto(url)
    ask(page, url)
    wait_for_words(second, 30)

    second.get_by_role("button", name="Stop").click()
    for tab in (page, second):
        expect(tab.locator("article")).to_have_attribute("data-state", "stopped")
    stopped = [tab.locator(".text").evaluate("element => element.textContent") for tab in (page, second)]
    screenshot(page, "stopped")

    page.get_by_role("button", name="Ask again").click()
    wait_for_words(second, 30)
    page.get_by_role("button", name="Ask again").click()  # in the middle of the answer
    go.touch()

    for tab in (page, second):
        expect(tab.locator(".count")).to_contain_text("attempt 3", timeout=SECONDS)
        expect_whole(tab, attempt=2)
    assert stopped[0] == stopped[1]
    assert text_of().startswith(stopped[0])
    assert len(stopped[0]) < len(text_of())


def test_answer_survives_the_death_of_its_hub(context: BrowserContext, tmp_path: Path) -> None:
    with running(tmp_path, "--separate-hub") as url:
        page = context.new_page()
        ask(page, url)
        wait_for_words(page, 60)

        page.get_by_role("button", name="Kill the hub").click()
        expect(page.locator("#status")).to_have_text("reconnecting")
        screenshot(page, "killed")
        page.reload()
        (tmp_path / "go").touch()

        expect_whole(page)


@pytest.mark.usefixtures("go")
@pytest.mark.parametrize("scheme, width", [("light", 900), ("dark", 900), ("dark", 380)])
def test_page_fits_its_window_and_has_names_for_everything(browser: Browser, url: str, scheme: str, width: int) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 760})  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(url)
    screenshot(page, f"empty-{scheme}-{width}")
    ask(page, url)
    wait_for_words(page, 30)

    screenshot(page, f"writing-{scheme}-{width}")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("button:visible, input:visible").evaluate_all(
        "elements => elements.every(element => element.textContent.trim() || element.labels?.length)"
    )
    context.close()


SLEEP = "asyncio.sleep(0.05)"
"""Between the words of the model of the first page. The tests need not wait so long."""
PACE = 'asyncio.sleep(0.01 if number < 60 or Path("go").exists() else 0.5)'
WORDS = "".join(f"word{number} " for number in range(1, 201))


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[str]:
    """The server of the first page; yields its URL."""
    code = block_with(RUNS, "async def ask(request)")
    assert code.count(SLEEP) == 1
    (tmp_path / "answers.py").write_text("from pathlib import Path\n" + code.replace(SLEEP, PACE))
    (command,) = re.findall(r"^    \.venv/bin/(uvicorn .*)$", RUNS.read_text(), re.MULTILINE)
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", *command.split(), "--port", str(port)], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: connects(port) or process.poll() is not None, 20)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def test_first_page_of_the_runs_page_survives_f5(page: Page, answers: str, tmp_path: Path) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url) if "/events/" in request.url else None)
    page.goto(answers)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("p")).to_contain_text("word20 ")

    page.reload()
    expect(page.locator("p")).to_contain_text("word40 ")
    page.reload()
    (tmp_path / "go").touch()

    page.wait_for_function(f"events?.readyState === {CLOSED}")
    assert page.locator("p").evaluate("element => element.textContent") == WORDS
    assert len(requests) == 3


def test_asking_again_on_the_first_page_shows_only_the_new_answer(page: Page, answers: str, tmp_path: Path) -> None:
    page.goto(answers)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("p")).to_contain_text("word20 ")

    page.get_by_role("button", name="Ask").click()
    (tmp_path / "go").touch()

    page.wait_for_function(f"events.readyState === {CLOSED}")
    assert page.locator("p").evaluate("element => element.textContent") == WORDS


def screenshot(page: Page, name: str) -> None:
    if SCREENSHOTS:
        page.screenshot(path=f"{SCREENSHOTS}/{name}.png")
