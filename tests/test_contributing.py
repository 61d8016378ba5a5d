"""CONTRIBUTING.md is true: its setting, metric and broker work as printed, and the files it names exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent, indent

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src/ssehub"
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
TOUR = PAGE.split("## A tour\n")[1].split("\n## ")[0]
FILE = re.compile(r"`([\w./]+(?:\.py|\.lua|/))`")
TORN_LINE = """

async def test_line_that_a_kill_cut_off_is_dropped_from_the_file(tmp_path: Path, start_server: StartServer) -> None:
    world = FileWorld(tmp_path, start_server)
    async with world.running() as (broker, _):
        for data in ("1", "2"):
            await broker.publish([Publication([event(data)])])
    log = tmp_path / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-9])

    async with world.running() as (broker, _):
        await broker.publish([Publication([event("3")])])

    async with world.running() as (_, follower):
        assert follower.data == ["1", "3"]
    log.write_text(log.read_text() + "{}\\n")
    with pytest.raises(BrokerUnavailable, match="is damaged"):
        async with world.running():
            pass
"""


def code_with(text: str) -> str:
    """Return the block of code in CONTRIBUTING.md that contains `text`, without the indentation of its list."""
    blocks = [dedent(block) for block in re.findall(r"^ *```\w*\n(.*?)^ *```$", PAGE, re.MULTILINE | re.DOTALL)]
    (found,) = [block for block in blocks if text in block]
    return found


def insert(path: Path, after: str, text: str) -> None:
    content = path.read_text()
    assert content.count(after) == 1, f"{path.name}: {after!r} is there {content.count(after)} times"
    path.write_text(content.replace(after, after + text))


def insert_line(path: Path, beginning: str, text: str) -> None:
    """Insert `text` after the line of the file that begins with `beginning`, with the indentation of that line."""
    (line,) = [line for line in path.read_text().splitlines() if line.lstrip().startswith(beginning)]
    insert(path, f"{line}\n", indent(text, line[: -len(line.lstrip())]))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the project, to apply the page to."""
    for folder in ("src", "tests", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "e2e"))
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, tmp_path)
    return tmp_path


def run_tests(copy: Path, *arguments: str) -> str:
    """Run pytest in the folder `tests` of the copy, and return what it prints."""
    # Without coverage: it would report the copy as files of its own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=copy / "tests",
        env={**environment, "PYTHONPATH": str(copy / "src")},
        capture_output=True,
        text=True,
        timeout=100,
    )
    return result.stdout + result.stderr


def test_setting_of_the_page_is_an_option_and_documented(copy: Path) -> None:
    declaration = code_with("class Streams").split("...\n")[1]
    streams = '"""How many streams a hub accepts, and what it sends on them besides events."""\n\n'
    insert(copy / "src/ssehub/settings.py", streams, declaration)
    insert_line(copy / "docs/configuration.md", "| `stream_lifetime_seconds`", code_with("| `flush_seconds`"))

    printed = run_tests(copy, "test_docs.py", "-k", "flush_seconds or every_documented_setting_exists")

    assert re.search(r"^2 passed", printed, re.MULTILINE), printed


def test_metric_of_the_page_is_counted_shown_and_documented(copy: Path) -> None:
    fanout, tests = copy / "src/ssehub/fanout", copy / "tests"
    insert_line(fanout / "statistics.py", "loop_lag_seconds:", code_with("round_writes: int"))
    insert_line(fanout / "engine.py", "statistics.loop_lag_seconds =", code_with("round_writes = self._rounds"))
    insert_line(copy / "src/ssehub/web/metrics.py", '("loop_lag_seconds"', code_with('("round_writes"'))
    insert_line(copy / "docs/monitoring.md", "| `ssehub_loop_lag", code_with("| `ssehub_round_writes`"))
    insert_line(tests / "test_web_metrics.py", '"ssehub_lagging 0.0"', code_with('"ssehub_round_writes '))
    rounds = tests / "test_fanout_rounds.py"
    rounds.write_text(f"{rounds.read_text()}\n\n{code_with('def test_writes_of_the_latest_round')}")

    printed = run_tests(
        copy,
        *("test_docs.py", "test_fanout_rounds.py", "test_web_metrics.py"),
        *("-k", "writes_of_the_latest_round or show_what_the_hub_has_done or every_metric"),
    )

    assert re.search(r"^3 passed", printed, re.MULTILINE), printed


def test_broker_of_the_page_passes_the_contract(copy: Path) -> None:
    (copy / "src/ssehub/brokers/file.py").write_text(code_with("class FileBroker"))
    worlds, contract = copy / "tests/broker_worlds.py", copy / "tests/test_broker_contract.py"
    insert(worlds, "from ssehub.brokers import Broker, Entry\n", "from ssehub.brokers.file import FileBroker\n")
    worlds.write_text(f"{worlds.read_text()}\n\n{code_with('class FileWorld')}")
    insert(contract, "from broker_worlds import (\n", "    FileWorld,\n")
    insert(contract, "WORLDS: dict[str, type[World]] = {\n", '    "file": FileWorld,\n')
    contract.write_text(contract.read_text() + TORN_LINE)

    printed = run_tests(copy, "test_broker_contract.py", "-k", "file")

    assert re.search(r"^\d\d passed", printed, re.MULTILINE), printed


def test_every_file_that_the_tour_names_exists() -> None:
    folders = {ROOT, ROOT / "tests", PACKAGE}
    for line in TOUR.splitlines():
        row = line.strip("|").split(" | ") if line.startswith("| `") else [line]
        named_folders = {PACKAGE / name for name in FILE.findall(row[0]) if name.endswith("/")}

        for name in FILE.findall(line):
            assert any((folder / name).exists() for folder in named_folders | folders), f"{name} in: {line[:60]}"
