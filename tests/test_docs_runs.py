"""docs/runs.md: its curl commands, its recipes, and the words of its tables."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import httpx
import pytest

from code_blocks import block_with, run_block
from conftest import RunningHub
from ssehub.errors import ConflictReason
from ssehub.fanout.statistics import AppendRefusal
from ssehub.runs.model import RunError, RunState
from ssehub.settings import RunLimits

PAGE = Path(__file__).parent.parent / "docs" / "runs.md"
TEXT = PAGE.read_text()


def section(heading: str) -> str:
    return TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]


def test_curl_commands_of_the_runs_page_print_what_it_shows(hub: RunningHub) -> None:
    commands = re.findall(r"^    ((?:TOKEN=|curl |printf ).*)$", section("The same with curl"), re.MULTILINE)
    (shown,) = re.findall(r"^```\n(.*?)^```$", section("The same with curl"), re.MULTILINE | re.DOTALL)
    script = "\n".join(commands).replace("127.0.0.1:8000", f"127.0.0.1:{hub.port}")
    script = script.replace("127.0.0.1:8001", f"127.0.0.1:{hub.control_port}")

    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, timeout=20)

    printed = re.sub(r"-0\.\w+", "-0.LOG", done.stdout[done.stdout.index("event: stream-hello") :])
    assert len(commands) == 4
    assert printed.strip() == re.sub(r"-0\.\w+", "-0.LOG", shown).strip()


@pytest.mark.anyio
async def test_fastapi_recipe_of_the_runs_page_writes_what_the_model_says(monkeypatch: pytest.MonkeyPatch) -> None:
    openai = ModuleType("openai")
    vars(openai)["AsyncOpenAI"] = lambda: SimpleNamespace(
        chat=SimpleNamespace(completions=SimpleNamespace(create=fake_stream))
    )
    monkeypatch.setitem(sys.modules, "openai", openai)
    block = run_block(block_with(PAGE, "AsyncOpenAI"))
    hub = block["hub"]

    async with (
        hub,
        httpx.AsyncClient(transport=httpx.ASGITransport(block["app"]), base_url="http://localhost") as http,
    ):
        run = (await http.post("/ask", params={"question": "hi"})).raise_for_status().json()["run"]
        async with hub.subscribe(run=run, channel="answers", user_id="alex") as messages:
            read = [(message.type, message.data) async for message in messages]

    assert read == [("message", "Hello "), ("message", "world"), ("stream-finished", '{"reason":"done"}')]


async def fake_stream(**arguments: object) -> AsyncIterator[SimpleNamespace]:
    async def chunks() -> AsyncIterator[SimpleNamespace]:
        for content in ("Hello ", None, "world"):
            yield SimpleNamespace(choices=[SimpleNamespace(delta=SimpleNamespace(content=content))])
        yield SimpleNamespace(choices=[])

    return chunks()


def test_job_recipe_of_the_runs_page_shows_its_progress(hub: RunningHub) -> None:
    code = block_with(PAGE, "def convert").replace("http://127.0.0.1:8001", hub.control_url)

    run_block(code)["convert"](["a", "b"], lambda file: None)

    state = httpx.get(f"{hub.control_url}/runs/job-7").json()
    events = httpx.get(f"{hub.control_url}/runs/job-7/events").text
    assert (state["state"], state["events"]) == ("done", 2)
    assert '{\\"done\\":2,\\"of\\":2}' in events and '"progress"' in events


@pytest.mark.parametrize("word", [*RunState, *RunError])
def test_state_or_error_of_a_run_is_documented(word: str) -> None:
    assert f"\n| `{word}` |" in section("States")


@pytest.mark.parametrize("reason", ConflictReason)
def test_reason_of_a_conflict_is_documented(reason: str) -> None:
    assert f"\n| 409 | `{reason}` |" in section("Errors")


@pytest.mark.parametrize("reason", AppendRefusal)
def test_reason_of_a_refused_append_is_documented_with_its_status(reason: str) -> None:
    assert re.search(rf"^\| \d\d\d(, with `Retry-After`)? \| `{reason}` \|", section("Errors"), re.MULTILINE)


@pytest.mark.parametrize("setting", RunLimits.__dataclass_fields__)
def test_setting_of_runs_is_among_the_limits(setting: str) -> None:
    assert f"`{setting}`" in section("Limits and settings")
