"""The README leads to a first event within two minutes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import require
from first_event import README, commands, page_of_ones_own, printed

ROOT = Path(__file__).parent.parent


def test_commands_of_the_readme_are_found() -> None:
    assert commands()[0] == "make run ARGS=--demo"
    assert printed(r"make run") == "make run"
    assert "make run" in README


def test_command_that_the_readme_does_not_print_is_reported() -> None:
    with pytest.raises(SystemExit, match="expected one command like"):
        printed(r"make dinner")


def test_page_of_ones_own_has_the_readme_script_with_the_url_of_the_hub() -> None:
    page = page_of_ones_own("a token", "/heard")

    assert 'new EventSource("http://127.0.0.1:8000/events/?token=" + token)' in page
    assert "/api/sse/" not in page
    assert 'const token = "a token"' in page


@pytest.mark.only_soak
@pytest.mark.soak
@pytest.mark.timeout(900)
def test_newcomer_hears_an_event_within_two_minutes_in_each_way() -> None:
    require(any(map(shutil.which, ("chromium", "firefox-esr"))), "Chromium or Firefox")

    measured = subprocess.run(["python3", "tests/first_event.py"], cwd=ROOT, capture_output=True, text=True)

    assert measured.returncode == 0, measured.stdout + measured.stderr
    assert measured.stdout.count(" s\n") == 3
