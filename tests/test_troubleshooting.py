"""The curl commands of docs/troubleshooting.md, run against a hub."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from conftest import RunningHub

PAGE = (Path(__file__).parent.parent / "docs" / "troubleshooting.md").read_text()
COMMANDS = [line for line in re.findall(r"^    (curl .*)$", PAGE, re.MULTILINE) if "example.org" not in line]
CURL_TIMED_OUT = 28


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_page_is_answered(command: str, hub: RunningHub) -> None:
    ports = {"127.0.0.1:8000": f"127.0.0.1:{hub.port}", "127.0.0.1:8001": f"127.0.0.1:{hub.control_port}"}
    local = re.sub("|".join(ports), lambda found: ports[found[0]], command)

    result = subprocess.run(
        ["bash", "-c", f"TOKEN={hub.token()}\n{local}"], capture_output=True, text=True, timeout=20, check=False
    )

    assert result.returncode in (0, CURL_TIMED_OUT), result.stderr
    assert result.stdout


def test_every_entry_has_a_command() -> None:
    entries = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]

    assert [entry.split("\n")[0] for entry in entries if not re.search(r"^    \S", entry, re.MULTILINE)] == []
