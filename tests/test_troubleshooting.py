"""The commands of docs/troubleshooting.md, run against a hub."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from conftest import RunningHub
from streams import listen

PAGE = (Path(__file__).parent.parent / "docs" / "troubleshooting.md").read_text()
COMMANDS = [
    line for line in re.findall(r"^    ((?:curl|ssehub|timeout) .*)$", PAGE, re.MULTILINE) if "example.org" not in line
]
CURL_TIMED_OUT, TIMED_OUT = 28, 124


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_page_is_answered(command: str, hub: RunningHub, tmp_path: Path) -> None:
    places = {
        "127.0.0.1:8000": f"127.0.0.1:{hub.port}",
        "127.0.0.1:8001": f"127.0.0.1:{hub.control_port}",
        "token.txt": str(tmp_path / "token"),
        "timeout 10 ssehub": f"timeout 10 {sys.executable} -m ssehub",
        "ssehub ": f"{sys.executable} -m ssehub ",
    }
    local = re.sub("|".join(map(re.escape, places)), lambda found: places[found[0]], command)
    token = hub.token()
    (tmp_path / "token").write_text(token)
    publish = f"curl -s -d 'userId=*&channel=chat&data=x' {hub.control_url}/emit/"
    script = (
        f"TOKEN={token}\nwhile sleep 1; do {publish}; done >/dev/null 2>&1 &\n{local}\nstatus=$?\nkill $!\nexit $status"
    )

    with closing(listen(hub.port, token)):
        result = subprocess.run(
            ["bash", "-c", script],
            env={**os.environ, "SSEHUB_CONTROL_URL": hub.control_url},
            capture_output=True,
            text=True,
            timeout=30,
        )

    assert result.returncode in (0, CURL_TIMED_OUT, TIMED_OUT), result.stderr
    assert result.stdout


def test_every_entry_has_a_command() -> None:
    entries = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]

    assert [entry.split("\n")[0] for entry in entries if not re.search(r"^    \S", entry, re.MULTILINE)] == []
