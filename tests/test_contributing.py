"""The broker that CONTRIBUTING.md builds step by step passes the contract test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def code_with(text: str) -> str:
    """Return the block of Python code in CONTRIBUTING.md that contains `text`."""
    (found,) = [code for code in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if text in code]
    return str(found)


def insert(path: Path, after: str, text: str) -> None:
    content = path.read_text()
    assert content.count(after) == 1, f"{path.name}: {after!r} is there {content.count(after)} times"
    path.write_text(content.replace(after, after + text))


def test_broker_of_the_page_passes_the_contract(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__", "e2e"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "src/ssehub/brokers/file.py").write_text(code_with("class FileBroker"))
    worlds, contract = tmp_path / "tests/broker_worlds.py", tmp_path / "tests/test_broker_contract.py"
    insert(worlds, "from ssehub.brokers import Broker, Entry\n", "from ssehub.brokers.file import FileBroker\n")
    worlds.write_text(f"{worlds.read_text()}\n\n{code_with('class FileWorld')}")
    insert(contract, "from broker_worlds import (\n", "    FileWorld,\n")
    insert(contract, "WORLDS: dict[str, type[World]] = {\n", '    "file": FileWorld,\n')

    # Without coverage: it would report the copy as files of its own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "file", contract],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(tmp_path / "src")},
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert re.search(r"^\d\d passed", result.stdout, re.MULTILINE), result.stdout + result.stderr
