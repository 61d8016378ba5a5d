"""What a process obtains from its operating system."""

from __future__ import annotations

import subprocess
import sys

import pytest
import uvloop

from ssehub.platform import loop_factory, raise_descriptor_limit

LIMIT_OF_A_LOW_SOFT_LIMIT = """
import resource
from ssehub.platform import raise_descriptor_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
print(raise_descriptor_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_descriptor_limit_is_raised_as_far_as_allowed() -> None:
    result = subprocess.run(
        [sys.executable, "-c", LIMIT_OF_A_LOW_SOFT_LIMIT], capture_output=True, text=True, timeout=20, check=True
    )

    assert result.stdout.split() == ["200", "200", "200"]


def test_descriptor_limit_is_assumed_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)

    assert raise_descriptor_limit() == 16_384


def test_event_loops_are_uvloops_if_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with_uvloop = loop_factory()
    monkeypatch.setitem(sys.modules, "uvloop", None)
    without_uvloop = loop_factory()

    assert (with_uvloop, without_uvloop) == (uvloop.new_event_loop, None)
