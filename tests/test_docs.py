"""The documentation matches the code: settings, commands, options, routes, metrics, control events and public names."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import httpx
import pytest
from starlette.requests import HTTPConnection
from starlette.routing import Route

from code_blocks import block_with, run_block
from conftest import RunningHub
from known_metrics import exposed_name, known_metrics, labels_of
from ssehub import Hub, Tokens, create_client_app, create_control_app, settings
from ssehub.cli import ssehub
from ssehub.config import Config

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LIBRARY = (DOCS / "library.md").read_text()
FRAMEWORKS = (DOCS / "frameworks.md").read_text()
TOKENS = Tokens("a secret of 32 bytes, or rather more")
UNITS = ("seconds", "milliseconds", "bytes", "events")
TERMS = (
    *("hub", "event", "channel", "user", "publish", "dispatch", "broker", "log", "position", "cursor", "history"),
    *("floor", "subscriber", "sink", "sent", "frame", "batch", "round", "audience", "control event", "reset", "node"),
    *("worker", "backlog", "lagging"),
)


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def as_documented(default: object) -> str:
    """Return a setting's default as docs/configuration.md writes it."""
    if default is None:
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    return "empty" if default == [] else str(default)


@pytest.mark.parametrize("name", Config.model_fields)
def test_setting_is_documented_with_default_unit_and_effect(name: str) -> None:
    setting = Config.model_fields[name]
    lines = (DOCS / "configuration.md").read_text().split("\n")
    row = next((line for line in lines if line.startswith(f"| `{name}` |")), "")
    assert row, f"docs/configuration.md: add a row for the setting, which begins with | `{name}` |"
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    option, default = name.replace("_", "-"), as_documented(setting.default)

    assert cells[1:4] == [f"`SSEHUB_{name.upper()}`", f"`--{option}`", f"`{default}`"]
    if name.rpartition("_")[2] in UNITS:
        assert cells[4] == name.rpartition("_")[2]
    assert cells[5] == setting.description


def test_every_documented_setting_exists() -> None:
    documented = set(re.findall(r"^\| `(\w+)` \| `SSEHUB_", (DOCS / "configuration.md").read_text(), re.MULTILINE))

    assert documented == set(Config.model_fields)


@pytest.mark.parametrize("name", ssehub.commands)
def test_command_and_its_options_are_documented(name: str) -> None:
    section = (DOCS / "commands.md").read_text().split(f"## `ssehub {name}`")[1].split("\n## ")[0]
    command = ssehub.commands[name]
    options_of_settings = {f"--{setting.replace('_', '-')}" for setting in Config.model_fields}

    for option in (parameter for parameter in command.params if isinstance(parameter, click.Option)):
        if name in ("serve", "check") and option.opts[0] in options_of_settings:
            continue
        assert f"`{option.opts[0]}" in section


def test_every_route_is_documented() -> None:
    control = create_control_app(Hub(), tokens=TOKENS)
    client = create_client_app(Hub(), tokens=TOKENS)

    for app, page in ((control, "control-api.md"), (client, "client-api.md")):
        text = (DOCS / page).read_text()
        for route in app.routes:
            assert isinstance(route, Route)
            assert f"{route.path.partition('{')[0].rstrip('/')}" in text


def test_every_metric_is_documented_with_its_labels() -> None:
    rows = re.findall(r"^\| (`(?:ssehub|process)_[^|]+) \|", (DOCS / "monitoring.md").read_text(), re.MULTILINE)
    documented = {
        name: set(filter(None, labels.split(",")))
        for row in rows
        for name, labels in re.findall(r"`(\w+)(?:{([\w,]+)})?`", row)
    }

    assert documented == {exposed_name(metric): labels_of(metric) for metric in known_metrics()}


def test_every_control_event_is_documented() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "src/ssehub").rglob("*.py"))
    types = set(re.findall(r'"(stream-[a-z]+)"', sources))

    assert types >= {"stream-reset", "stream-expired"}
    for type in types:
        assert f"| `{type}` |" in (DOCS / "client-api.md").read_text()


def test_every_reason_is_documented() -> None:
    statistics = Hub().statistics

    for reason in statistics.endings:
        assert f"| `{reason}` |" in (DOCS / "control-api.md").read_text()
        assert f"`{reason}`" in LIBRARY
    for reason in statistics.resets:
        assert f"| `{reason}` |" in (DOCS / "client-api.md").read_text()


@pytest.mark.parametrize("name", sorted(name for name in dir(Hub()) if not name.startswith("_")))
def test_public_name_of_the_hub_is_documented(name: str) -> None:
    code = re.findall(r"`([^`\n]+)`", LIBRARY)

    assert any(re.search(rf"\bhub\.{name}\b", span) for span in code)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, value in vars(settings).items()
        if inspect.isclass(value) and issubclass(value, settings.Settings) and value is not settings.Settings
    ],
)
def test_settings_class_is_documented_with_its_fields(name: str) -> None:
    row = next((line for line in LIBRARY.split("\n") if line.startswith(f"| `{name}` |")), "")

    assert row, f"docs/library.md: add a row for the settings class, which begins with | `{name}` |"
    for field in getattr(settings, name).__dataclass_fields__:
        assert f"`{field}`" in row, f"docs/library.md: add `{field}` to the row that begins with | `{name}` |"


def test_glossary_has_every_term_once() -> None:
    words = (DOCS / "glossary.md").read_text().split("## Words\n")[1].split("\n## ")[0]
    rows = [cells[0].strip("` ") for line in words.split("\n") if (cells := line.strip("|").split(" | "))[1:]]

    assert len(rows) == len(set(rows))
    assert set(TERMS) <= set(rows)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_link_has_a_target(page: Path) -> None:
    for link in re.findall(r"\]\(([^):]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page

        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("block", re.findall(r"^```\w+\n(.*?)^```$", FRAMEWORKS, re.MULTILINE | re.DOTALL))
def test_code_of_the_frameworks_page_is_in_an_example(block: str) -> None:
    examples = [path.read_text() for path in (ROOT / "examples").glob("*/*") if path.suffix in (".html", ".py")]

    assert any(block in example for example in examples), block


def anchors(markdown: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub derives them."""
    headings = re.findall(r"^#+ (.*)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_make_target_has_its_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert targets

    for target in targets[1].split():
        assert re.search(rf"^{target}:.*## \S", makefile, re.MULTILINE)


# The Python code of docs/library.md, run as printed.


def code_with(text: str) -> str:
    """Return the block of Python code in docs/library.md that contains `text`."""
    return block_with(DOCS / "library.md", text)


@asynccontextmanager
async def client_of(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        yield http


@pytest.mark.anyio
async def test_application_of_the_library_page_publishes() -> None:
    block = run_block(code_with("lifespan=lifespan"))
    app, hub = block["app"], block["hub"]

    async with (
        app.router.lifespan_context(app),
        client_of(app) as http,
        hub.subscribe(channel="chat", user_id="alex") as messages,
    ):
        token = (await http.get("/token")).text
        refused = await http.get("/sse/events/", params={"token": "wrong"})
        published = await http.post("/say")
        message = await anext(messages)

    assert block["tokens"].verify(token).user_id == "alex"
    assert refused.status_code == 401
    assert published.text == "published\n"
    assert (message.type, message.json()) == ("message", {"text": "hi"})


@pytest.mark.anyio
async def test_login_of_the_library_page_grants_a_channel() -> None:
    users = iter([SimpleNamespace(name="alex"), None])

    async def user_of(connection: HTTPConnection) -> SimpleNamespace | None:
        return next(users)

    authenticate = run_block(code_with("def authenticate"), user_of=user_of)["authenticate"]
    connection = HTTPConnection({"type": "http", "headers": []})

    assert (await authenticate(connection)).channels == ("chat",)
    assert await authenticate(connection) is None


def test_settings_of_the_library_page_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert isinstance(run_block(code_with("streams=Streams("))["hub"], Hub)


def test_subscription_of_the_library_page_prints_a_message() -> None:
    command = [sys.executable, "-c", code_with("asyncio.run(main())")]

    printed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout

    assert printed.startswith("message hi ")


def test_run_of_the_library_page_prints_its_words_and_its_end() -> None:
    command = [sys.executable, "-c", code_with("asyncio.run(ask())")]

    printed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout

    assert printed == 'message Hello \nmessage world\nstream-finished {"reason":"done"}\n'


def test_test_of_the_library_page_passes(tmp_path: Path) -> None:
    (tmp_path / "test_orders.py").write_text(code_with("sse_hub"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_orders.py"]

    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60).stdout

    assert "1 passed" in printed, printed


def test_publisher_of_the_library_page_publishes(hub: RunningHub) -> None:
    code = code_with("import Publisher").replace("http://127.0.0.1:8001", hub.control_url)

    block = run_block(code)

    assert len(block["ids"]) == 1 and block["ids"][0] != block["id"]


def test_stream_of_the_library_page_publishes_a_thousand_events(hub: RunningHub) -> None:
    code = code_with("publish_numbers").replace("http://127.0.0.1:8001", hub.control_url)
    before = hub.metric("ssehub_events_published_total")

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert re.fullmatch(r"\d+-\d+\.\w+\n", ran.stdout), ran.stderr
    assert hub.metric("ssehub_events_published_total") == before + 1_001
